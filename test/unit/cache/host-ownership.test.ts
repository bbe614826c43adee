import { mkdir, readdir, rm, writeFile } from 'node:fs/promises'
import path from 'node:path'
import { pino } from 'pino'
import { describe, expect, it } from 'vitest'
import { settleHosts, type HostOwnershipDeps } from '../../../src/cache/host-ownership.ts'
import { openVolume } from '../../support/volume-rig.ts'

describe('what another upstream has stored', () => {
  it('stops the start when it cannot be taken away', async () => {
    const { index, paths } = await openVolume()
    await mkdir(path.join(paths.repositories, 'gcr.io', 'p'), { recursive: true })
    // Nothing can be moved there.
    await rm(paths.temporary, { recursive: true })
    await writeFile(paths.temporary, '')
    const writer = { write: () => Promise.reject(new Error('nothing is settled')) }
    const upstreams = {
      hostNames: { others: ['gcr.io'], main: [] },
      main: { isDockerHub: false, name: 'cache.corp' },
    } as unknown as HostOwnershipDeps['upstreams']
    const settled = settleHosts({
      index,
      paths,
      writer,
      upstreams,
      logger: pino({ level: 'silent' }),
    })
    await expect(settled).rejects.toThrow(
      `could not take away what another upstream has stored in ${paths.repositories}/gcr.io: `,
    )
    await rm(paths.temporary)
    await mkdir(paths.temporary)
  })

  it('stays beside Docker Hub where that has no such names, and goes where it may have', async () => {
    const { index, paths } = await openVolume()
    const stored = ['gcr.io', 'quay.io', 'cache.corp', 'docker.io', 'registry_5000', 'library']
    for (const name of stored) await mkdir(path.join(paths.repositories, name), { recursive: true })
    const before = {
      main: ['cache.corp'],
      others: ['*', 'docker.io', 'gcr.io', 'registry:5000'],
    }
    await mkdir(path.dirname(paths.hostNames), { recursive: true })
    await writeFile(paths.hostNames, JSON.stringify(before))
    const written: unknown[] = []
    const settle = (others: string[]): Promise<void> =>
      settleHosts({
        index,
        paths,
        logger: pino({ level: 'silent' }),
        writer: {
          write: async (file, text) => {
            await writeFile(file, text)
            written.push(JSON.parse(String(text)))
          },
        },
        upstreams: {
          hostNames: { others, main: ['docker.io'] },
          main: { isDockerHub: true, name: 'registry-1.docker.io' },
        } as unknown as HostOwnershipDeps['upstreams'],
      })
    const left = async () => (await readdir(paths.repositories)).sort()
    await settle([])
    expect(await left()).toEqual(stored.filter((name) => name !== 'registry_5000').sort())
    expect(written).toEqual([{ main: ['cache.corp'], others: ['*', 'docker.io', 'gcr.io'] }])
    // What was cache.corp's own name is another's now.
    await settle(['cache.corp', 'quay.io'])
    expect(await left()).toEqual(['docker.io', 'gcr.io', 'library', 'quay.io'])
    await settle(['cache.corp', 'quay.io'])
    expect(written).toHaveLength(2)
  })
})
