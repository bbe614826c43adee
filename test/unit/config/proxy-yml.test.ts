// The reference configuration at the top of the project: what its comments promise must be so.

import { readFileSync } from 'node:fs'

import { describe, expect, it } from 'vitest'

import { load } from './fixture.ts'

const TEXT = readFileSync(new URL('../../../proxy.yml', import.meta.url), 'utf8')
const COMMENTED_DEFAULT = /^#(?=\s*[a-z]\w*:)/gm
const COMMENTED_EXAMPLE = /^##(?=\s*(?:[a-z][\w.]*|"[^"]+"):)/gm

/** Lets the numbers of a check that is off by default be seen. */
const CHECKED = { REGISTRY_HEALTH_STORAGEDRIVER_ENABLED: 'true' }

describe('proxy.yml', () => {
  it('loads without a warning', () => {
    const { configuration, warnings, problems } = load(TEXT)
    expect({ warnings, problems }).toEqual({ warnings: [], problems: [] })
    expect(configuration).toMatchObject({
      storage: { rootDirectory: './data', descriptorCache: { kind: 'inmemory' } },
      http: { listen: { host: undefined, port: 5000 } },
      proxy: { main: { remoteUrls: ['https://registry-1.docker.io'] } },
    })
  })

  it('shows the real defaults behind "#"', () => {
    expect(TEXT.match(COMMENTED_DEFAULT)?.length).toBeGreaterThan(25)
    const uncommented = load(TEXT.replaceAll(COMMENTED_DEFAULT, ''), CHECKED)
    expect(uncommented).toEqual(load(TEXT, CHECKED))
  })

  it('shows examples behind "##" that work', () => {
    const { configuration, warnings, problems } = load(TEXT.replaceAll(COMMENTED_EXAMPLE, ''))
    expect({ warnings, problems }).toEqual({ warnings: [], problems: [] })
    expect(configuration).toMatchObject({
      storage: {
        maxSize: { kind: 'bytes', bytes: 200 * 1024 ** 3 },
        minFree: { kind: 'part', part: 0.05 },
        retention: [
          { match: 'library/node:lts*', isPinned: true },
          { match: 'ci/**', ttlMs: 24 * 3_600_000 },
        ],
        scrub: { intervalMs: 168 * 3_600_000, bytesPerSecond: 20e6 },
      },
      http: { debug: { prometheusPath: '/metrics' } },
      redis: { addresses: [{ host: 'redis', port: 6379 }] },
      proxy: {
        main: { credentials: { username: 'somebody' } },
        others: [
          { name: 'ghcr.io' },
          { credentials: { passwordFile: '/run/secrets/quay' } },
          { name: 'registry.k8s.io' },
          { credentials: { helper: 'ecr-login' } },
          { requestsPerSecond: 20, hosts: ['corp.cache.example'] },
          { name: '*' },
        ],
      },
    })
  })
})
