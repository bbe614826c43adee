import { pino } from 'pino'
import { describe, expect, it } from 'vitest'
import { Repositories } from '../../../src/cache/repositories.ts'
import { UpstreamHealth } from '../../../src/cache/upstream-health.ts'
import { Upstream } from '../../../src/cache/upstream.ts'
import { Upstreams } from '../../../src/cache/upstreams.ts'
import { parseRepositoryName, parseTag, type Tag } from '../../../src/oci/reference.ts'
import { parseRegistryHost, type RegistryHost } from '../../../src/oci/registry-host.ts'
import { FakeClock } from '../../support/fake-clock.ts'
import { makeClient, repositoryOf } from '../upstream/small-server.ts'

const RULES = { tagTtlMs: 60_000, tagRules: [], allow: [], deny: [] }

function hostOf(text: string): RegistryHost {
  const host = parseRegistryHost(text)
  if (!host) throw new Error(`not a registry: ${text}`)
  return host
}

function tagOf(text: string): Tag {
  const tag = parseTag(text)
  if (!tag) throw new Error(`not a tag: ${text}`)
  return tag
}

function upstreamOf(
  name: string,
  rules: Partial<ConstructorParameters<typeof Upstream>[1]> = {},
): Upstream {
  const { client } = makeClient(`https://${name}`)
  return new Upstream(
    { registry: client, health: new UpstreamHealth({ clock: new FakeClock() }) },
    { ...RULES, ttlMs: 0, namespace: hostOf(name), isDockerHub: false, isMain: false, ...rules },
  )
}

function upstreams(
  mainTtlMs = 1_000,
  { isDockerHub = false, host = 'main.example' } = {},
): { all: Upstreams; created: string[] } {
  const created: string[] = []
  const create = (host: RegistryHost): Upstream => {
    created.push(host)
    return upstreamOf(host)
  }
  const main = upstreamOf(host, { isMain: true, ttlMs: mainTtlMs, isDockerHub })
  const all = new Upstreams({
    main,
    mainServesDockerHub: false,
    others: [
      upstreamOf('ghcr.io', { ttlMs: 2_000 }),
      upstreamOf('corp.example:5000', { ttlMs: 0 }),
    ],
    patterns: [
      ...(isDockerHub ? [] : [{ pattern: '*', ttlMs: 3_000, create }]),
      { pattern: '*.pkg.dev', ttlMs: 4_000, create },
    ],
    hosts: new Map(),
  })
  return { all, created }
}

describe('rules for tags', () => {
  it('are overruled by those that say more', () => {
    const upstream = upstreamOf('ghcr.io', {
      tagRules: [
        { pattern: '*', ttlMs: 1 },
        { pattern: 'v*', ttlMs: 2 },
        { pattern: 'v1.2', ttlMs: 3 },
        { pattern: 'v1.2*', ttlMs: 4 },
      ],
    })
    const found = ['latest', 'v1', 'v1.2', 'v1.20'].map((tag) => upstream.ttlMsOfTag(tagOf(tag)))
    expect(found).toEqual([1, 2, 3, 4])
  })
})

describe('how long content is kept', () => {
  it.each([
    ['library/alpine', 1_000],
    ['a.b/x', 1_000],
    ['ghcr.io', 1_000],
    ['ghcr.io/org/app', 2_000],
    ['corp.example_5000/app', 0],
    ['corp.example/app', 1_000],
    ['europe-west1-docker.pkg.dev/p/app', 4_000],
    ['quay.io/org/app', 3_000],
  ])('is told by the stored name: %s', (name, ttlMs) => {
    const { all, created } = upstreams()
    expect(all.ttlMsOf(parseRepositoryName(name))).toBe(ttlMs)
    expect(created).toEqual([])
  })

  it('is that of the main upstream for what no repository links', () => {
    expect(upstreams().all.ttlMsOf(undefined)).toBe(1_000)
  })

  it('is one of those that are there', () => {
    expect(upstreams(7).all.ttlsMs).toEqual([7, 2_000, 0, 4_000, 3_000])
  })
})

describe('registries that patterns stand for', () => {
  it('are made when they are first named, by the pattern that says most, and once', () => {
    const { all, created } = upstreams()
    const found = ['a.pkg.dev', 'quay.io', 'a.pkg.dev'].map((name) => all.find(hostOf(name)))
    expect(created).toEqual(['a.pkg.dev', 'quay.io'])
    expect(found[0]).toBe(found[2])
    expect(all.find(hostOf('ghcr.io'))?.name).toBe('ghcr.io')
    expect(all.find(hostOf('printer.local'))).toBeUndefined()
  })

  it('are as many as fit, whatever clients name', () => {
    const { all, created } = upstreams()
    for (let i = 0; i < 150; i++) all.find(hostOf(`r${i}.example.com`))
    all.find(hostOf('r149.example.com'))
    expect(created).toHaveLength(150)
    all.find(hostOf('r0.example.com'))
    expect(created).toHaveLength(151)
  })

  it('have names of their own where stored names are told apart', () => {
    const { all } = upstreams()
    const quay = all.find(hostOf('quay.io'))
    const stored = ['quay.io/a', 'ghcr.io/a', 'a', 'corp.example_5000/a'].map(repositoryOf)
    const namesAt = (upstream = all.main): (string | undefined)[] =>
      stored.map((name) => all.nameAt(upstream, name))
    expect(namesAt()).toEqual([undefined, undefined, 'a', undefined])
    expect(namesAt(quay)).toEqual(['a', undefined, undefined, undefined])
  })

  it("leave names behind that are nobody else's, Docker Hub's least of all", () => {
    const { all } = upstreams(0, { isDockerHub: true })
    const stored = ['quay.io/a', 'library/a', 'localhost/a'].map(repositoryOf)
    const names = stored.map((name) => all.nameAt(all.main, name))
    expect(names).toEqual([undefined, 'library/a', 'localhost/a'])
  })
})

it.each(['q.cache.example', 'Q.cache.example:5000', 'q.cache.example.', 'q.cache.example.:5000'])(
  'a name of this cache stands for its upstream also written so: %s',
  (host) => {
    const main = upstreamOf('main.example', { isMain: true })
    const quay = upstreamOf('quay.io')
    const hosts = new Map([['q.cache.example', quay]])
    const all = new Upstreams({
      main,
      mainServesDockerHub: false,
      others: [quay],
      patterns: [],
      hosts,
    })
    expect(all.findByHost(host)).toBe(quay)
  },
)

describe('a name that begins with that of the main upstream', () => {
  const cases = [
    ['main.example', false, 'ghcr.io/org/app'],
    ['main.example', false, 'corp.example_5000/org/app'],
    ['main.example', false, 'x.pkg.dev/org/app'],
    ['docker.io', true, 'ghcr.io/org/app'],
    ['docker.io', true, 'example.com/org/app'],
  ] as const

  it.each(cases)('(%s, Docker Hub: %s) may not go on with %s', (host, isDockerHub, rest) => {
    const { all } = upstreams(0, { isDockerHub, host })
    const repositories = new Repositories({ upstreams: all, logger: pino({ enabled: false }) })
    const addresses = [{}, { ns: hostOf(host) }, { prefix: hostOf(host) }, { bound: all.main.name }]
    for (const address of addresses) {
      const locate = (): unknown =>
        repositories.locate(address, repositoryOf(`${host}/${rest}`), 'MANIFEST_UNKNOWN', undefined)
      expect(locate).toThrow(expect.objectContaining({ code: 'MANIFEST_UNKNOWN' }))
    }
    const plain = repositoryOf(`${host}/team/app`)
    expect(repositories.locate({}, plain, 'MANIFEST_UNKNOWN', undefined)).toMatchObject({
      name: 'team/app',
      storedName: 'team/app',
      upstream: all.main,
    })
  })
})

it.each(['metadata.google.internal', 'nas.home.arpa', '127.0.0.1', 'quay.io_22'])(
  'a name that is not public is nobody else, and may be a part of a name of the main upstream: %s',
  (component) => {
    const { all, created } = upstreams()
    const repositories = new Repositories({ upstreams: all, logger: pino({ enabled: false }) })
    const name = repositoryOf(`${component}/x/y`)
    const located = repositories.locate({}, name, 'MANIFEST_UNKNOWN', undefined)
    expect(located).toMatchObject({ upstream: all.main, name, storedName: name })
    const ns = hostOf(component.replace('_', ':'))
    expect(() =>
      repositories.locate({ ns }, repositoryOf('x/y'), 'MANIFEST_UNKNOWN', undefined),
    ).toThrow(expect.objectContaining({ code: 'MANIFEST_UNKNOWN' }))
    expect(created).toEqual([])
  },
)
