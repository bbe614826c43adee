// Many upstreams through one cache: how clients say which one they mean, and that nothing of one is ever told as
// another's.

import { createServer } from 'node:net'
import { describe, expect, it, onTestFinished } from 'vitest'
import { startFakeUpstream } from '../support/fake-upstream.ts'
import { rawGet, type RawResponse } from '../support/http-client.ts'
import { blobOf, buildImage } from '../support/images.ts'
import type { Layover } from '../support/layover.ts'
import { RawConnection } from '../support/raw-connection.ts'
import { NAMES, REPOSITORY, startUpstreams, type Name } from '../support/upstream-set.ts'

const GHCR = 'ghcr.test'
const QUAY = 'quay.test:5000'

type Keys = Readonly<Record<string, unknown>>

/** How a client asks for something of an upstream. @param rest for example `manifests/1` */
type Ask = (layover: Layover, name: Name, rest: string) => Promise<RawResponse>

const HOSTS = { [GHCR]: 'ghcr.cache.test', [QUAY]: 'quay.cache.test', main: 'cache.test' } as const
const PATHS = { [GHCR]: 'ghcr.test/', [QUAY]: 'quay.test_5000/', main: '' } as const
const nsOf = (name: Name): string => (name === 'main' ? '' : `?ns=${encodeURIComponent(name)}`)

const WAYS: Readonly<Record<string, Ask>> = {
  'the ns parameter': (layover, name, rest) =>
    layover.get(`/v2/${REPOSITORY}/${rest}${nsOf(name)}`),
  'the start of the name': (layover, name, rest) =>
    layover.get(`/v2/${PATHS[name]}${REPOSITORY}/${rest}`),
  'both of them': (layover, name, rest) =>
    layover.get(`/v2/${PATHS[name]}${REPOSITORY}/${rest}${nsOf(name)}`),
  'what stands before /v2/': (layover, name, rest) =>
    layover.get(`${name === 'main' ? '' : `/${name}`}/v2/${REPOSITORY}/${rest}${nsOf(name)}`),
  'the Host header': (layover, name, rest) =>
    layover.get(`/v2/${REPOSITORY}/${rest}`, { headers: { Host: `${HOSTS[name]}:5000` } }),
  'a listener of its own': (layover, name, rest) =>
    rawGet(`${layover.boundUrl(name) || layover.url}/v2/${REPOSITORY}/${rest}`),
}

describe.each(Object.entries(WAYS))('an upstream that is named by %s', (_way, ask) => {
  it('is the one that is asked, and its content is what comes', async () => {
    const { counts, images, layover, upstreams } = await startUpstreams()
    for (const round of ['cold', 'warm']) {
      for (const name of NAMES) {
        const { config, layers, manifest } = images[name]
        const before = counts()
        const answer = await ask(layover, name, 'manifests/1')
        expect([answer.status, answer.header('docker-content-digest')]).toEqual([
          200,
          manifest.digest,
        ])
        for (const { bytes, digest } of [config, ...layers]) {
          const blob = await ask(layover, name, `blobs/${digest}`)
          expect(blob.body.equals(bytes)).toBe(true)
          if (name !== 'main') expect(blob.header('oci-namespace')).toBe(name)
        }
        const list = await ask(layover, name, 'tags/list')
        expect(JSON.parse(list.body.toString())).toMatchObject({ tags: ['1'] })
        const after = counts()
        expect(Object.entries(after).filter(([key, n]) => n !== before[key as Name])).toEqual(
          round === 'cold' ? [[name, after[name]]] : [],
        )
      }
    }
    const asked = NAMES.flatMap((name) => upstreams[name].requests.map((each) => each.repository))
    expect(new Set(asked)).toEqual(new Set([REPOSITORY]))
  })

  it('does not give what only another one has', async () => {
    const { images, layover } = await startUpstreams()
    for (const name of NAMES) await ask(layover, name, 'manifests/1')
    for (const name of NAMES) {
      for (const other of NAMES) {
        if (other === name) continue
        const { layers, manifest } = images[other]
        for (const rest of [`manifests/${manifest.digest}`, `blobs/${layers[0]?.digest}`]) {
          expect((await ask(layover, name, rest)).status).toBe(404)
        }
      }
    }
  })
})

describe('bytes that two upstreams have', () => {
  it('are fetched once, and served under the second after it was asked whether it has them', async () => {
    const { layover, upstreams } = await startUpstreams()
    const shared = blobOf(200_000, 'shared')
    upstreams[GHCR].addBlob(REPOSITORY, shared)
    upstreams.main.addBlob(REPOSITORY, shared)
    const paths = [`/v2/ghcr.test/${REPOSITORY}`, `/v2/${REPOSITORY}`, `/v2/quay.test_5000/x`]
    const statuses: (number | undefined)[] = []
    for (const path of paths) {
      const { body, status } = await layover.get(`${path}/blobs/${shared.digest}`)
      await layover.stored(shared.digest)
      statuses.push(status)
      expect(body.equals(shared.bytes)).toBe(status === 200)
    }
    expect(statuses).toEqual([200, 200, 404])
    expect(upstreams.main.requests.map(({ method }) => method)).toEqual(['HEAD'])
    expect(upstreams[QUAY].requests.map(({ method }) => method)).toEqual(['HEAD'])
  })
})

describe('a request that names two upstreams', () => {
  it.each([
    ['by its name and ns', `/v2/ghcr.test/${REPOSITORY}/manifests/1?ns=quay.test:5000`, {}],
    ['before /v2/ and by ns', `/ghcr.test/v2/${REPOSITORY}/manifests/1?ns=quay.test:5000`, {}],
    ['before /v2/ and by its name', `/ghcr.test/v2/quay.test_5000/${REPOSITORY}/manifests/1`, {}],
    ['by ns twice', `/v2/${REPOSITORY}/manifests/1?ns=quay.test:5000&ns=ghcr.test`, {}],
    ['by Host and ns', `/v2/${REPOSITORY}/manifests/1?ns=ghcr.test`, { Host: 'quay.cache.test' }],
  ])('%s is refused, and the log says so once', async (_how, path, headers) => {
    const { counts, layover } = await startUpstreams()
    for (let i = 0; i < 2; i++) {
      const answer = await layover.get(path, { headers })
      expect(answer.status).toBe(404)
      expect(answer.body.toString()).toContain('it is for one registry only')
    }
    expect(counts()).toEqual({ [GHCR]: 0, [QUAY]: 0, main: 0 })
    const message = 'a client names two registries at once; check its mirror settings'
    expect(layover.messages().filter((each) => each === message)).toHaveLength(1)
  })

  it('by Host and in its first line goes by the latter', async () => {
    const { counts, images, layover } = await startUpstreams()
    const target = `http://ghcr.cache.test:5000/v2/${REPOSITORY}/manifests/1`
    const text = `GET ${target} HTTP/1.1\r\nHost: quay.cache.test\r\nConnection: close\r\n\r\n`
    const answer = await (await RawConnection.open(layover.url, text)).ended()
    expect(answer).toContain(`Docker-Content-Digest: ${images[GHCR].manifest.digest}`)
    expect(counts()).toMatchObject({ [QUAY]: 0, main: 0 })
  })

  it('in the same way is one that names one', async () => {
    const { images, layover } = await startUpstreams()
    const answer = await layover.get(`/v2/${REPOSITORY}/manifests/1?ns=ghcr.test&ns=&ns=GHCR.test`)
    expect(answer.header('docker-content-digest')).toBe(images[GHCR].manifest.digest)
  })

  it('by its listener and ns is refused', async () => {
    const { counts, layover } = await startUpstreams()
    const url = `${layover.boundUrl(GHCR)}/v2/${REPOSITORY}/manifests/1?ns=quay.test:5000`
    expect((await rawGet(url)).status).toBe(404)
    expect(counts()).toEqual({ [GHCR]: 0, [QUAY]: 0, main: 0 })
  })
})

describe('a registry that is not configured', () => {
  it.each([
    `/v2/${REPOSITORY}/manifests/1?ns=other.test`,
    `/v2/${REPOSITORY}/manifests/1?ns=127.0.0.1:1`,
    `/v2/${REPOSITORY}/manifests/1?ns=a%20b%0d%0ac`,
    `/v2/${REPOSITORY}/blobs/${blobOf(1, 1).digest}?ns=${'x'.repeat(300)}.test`,
    `/other.test/v2/${REPOSITORY}/manifests/1`,
    '/other.test/v2/',
    '/other.test/v2/_catalog',
  ])('is 404, and nobody is asked: %s', async (path) => {
    const { counts, layover } = await startUpstreams()
    expect((await layover.get(path)).status).toBe(404)
    expect(counts()).toEqual({ [GHCR]: 0, [QUAY]: 0, main: 0 })
  })

  it('is no name at Docker Hub, which has none with a dot', async () => {
    const hub = await startFakeUpstream()
    onTestFinished(() => hub.close())
    const { counts, layover } = await startUpstreams({
      proxy: { upstreams: { 'docker.io': { remoteurl: hub.url } } },
    })
    const path = `/v2/other.test/${REPOSITORY}/manifests/1?ns=docker.io`
    expect((await layover.get(path)).status).toBe(404)
    expect([hub.count(), counts().main]).toEqual([0, 0])
  })
})

describe('Docker Hub', () => {
  it.each([
    '/v2/alpine/manifests/3?ns=docker.io',
    '/v2/library/alpine/manifests/3?ns=index.docker.io',
    '/v2/library/alpine/manifests/3?ns=Registry-1.Docker.IO',
    '/v2/docker.io/alpine/manifests/3',
    '/v2/docker.io/library/alpine/manifests/3?ns=docker.io',
    '/index.docker.io/v2/alpine/manifests/3',
    '/docker.io/v2/library/alpine/manifests/3',
  ])('is one registry, whatever it is called: %s', async (path) => {
    const hub = await startFakeUpstream()
    onTestFinished(() => hub.close())
    hub.addImage('library/alpine', '3', buildImage())
    const { counts, layover } = await startUpstreams({
      proxy: { upstreams: { 'docker.io': { remoteurl: hub.url } } },
    })
    const answer = await layover.get(path)
    expect([answer.status, answer.header('oci-namespace')]).toEqual([200, 'docker.io'])
    expect(counts().main).toBe(0)
  })

  it('is asked for at the main upstream, which may be its mirror, if it is not configured', async () => {
    const { images, layover, upstreams } = await startUpstreams()
    const answer = await layover.get(`/v2/${REPOSITORY}/manifests/1?ns=docker.io`)
    expect(answer.header('docker-content-digest')).toBe(images.main.manifest.digest)
    // Whether it is one, nobody has said.
    expect(answer.header('oci-namespace')).toBe(new URL(upstreams.main.url).host)
  })

  it('may be a project of the main upstream, whose name then stays as it is', async () => {
    const { layover, upstreams } = await startUpstreams()
    const image = buildImage({ seed: 'project' })
    upstreams.main.addImage('docker.io/library/alpine', '3', image)
    const other = buildImage({ seed: 'other' })
    upstreams.main.addImage('library/alpine', '3', other)
    const path = '/v2/docker.io/library/alpine/manifests/3'
    const asProject = await layover.get(path)
    expect(asProject.header('docker-content-digest')).toBe(image.manifest.digest)
    for (const asked of [`${path}?ns=docker.io`, `/docker.io${path}`]) {
      const asRegistry = await layover.get(asked)
      expect(asRegistry.header('docker-content-digest')).toBe(other.manifest.digest)
    }
  })
})

async function catalog(layover: Layover, path: string): Promise<string[]> {
  const { body } = await layover.get(path)
  return (JSON.parse(body.toString()) as { repositories: string[] }).repositories
}

describe('the catalog', () => {
  it('has all that is stored; that of one upstream has its own, as that calls them', async () => {
    const { layover } = await startUpstreams()
    for (const path of ['ghcr.test/', 'quay.test_5000/', '']) {
      await layover.get(`/v2/${path}${REPOSITORY}/manifests/1`)
    }
    const all = [`ghcr.test/${REPOSITORY}`, `quay.test_5000/${REPOSITORY}`, REPOSITORY]
    expect(await catalog(layover, '/v2/_catalog')).toEqual(all)
    expect(await catalog(layover, '/ghcr.test/v2/_catalog')).toEqual([REPOSITORY])
    expect(await catalog(layover, '/v2/_catalog?ns=quay.test:5000')).toEqual([REPOSITORY])
    const bound = await rawGet(`${layover.boundUrl(GHCR)}/v2/_catalog`)
    expect(JSON.parse(bound.body.toString())).toEqual({ repositories: [REPOSITORY] })
  })

  it('leads to its next page by the way that led to the first', async () => {
    const { layover, upstreams } = await startUpstreams()
    for (const tag of ['2', '3']) upstreams[GHCR].addImage(REPOSITORY, tag, buildImage())
    const links = []
    for (const path of [
      `/ghcr.test/v2/${REPOSITORY}/tags/list?n=1`,
      `/v2/${REPOSITORY}/tags/list?n=1&ns=ghcr.test`,
    ]) {
      links.push((await layover.get(path)).header('link'))
    }
    expect(links).toEqual([
      `</ghcr.test/v2/${REPOSITORY}/tags/list?last=1&n=1>; rel="next"`,
      `</v2/${REPOSITORY}/tags/list?last=1&n=1&ns=ghcr.test>; rel="next"`,
    ])
  })
})

describe('below http.prefix', () => {
  it('an upstream stands between the prefix and /v2/', async () => {
    const { images, layover } = await startUpstreams({ http: { prefix: '/x' } })
    const path = `/ghcr.test/v2/${REPOSITORY}`
    const answer = await layover.get(`${path}/manifests/1`)
    expect(answer.header('docker-content-digest')).toBe(images[GHCR].manifest.digest)
    expect((await layover.get('/ghcr.test/v2')).header('location')).toBe('/x/ghcr.test/v2/')
    const outside = await rawGet(layover.url.replace('/x', path))
    expect(outside.status).toBe(404)
  })
})

describe('what is told of a request', () => {
  it('is by its upstream, in the access log, the metrics and on disk', async () => {
    const { images, layover } = await startUpstreams()
    await layover.get(`/v2/ghcr.test/${REPOSITORY}/manifests/1`)
    expect(await layover.lastAccessLine()).toMatchObject({
      upstream: GHCR,
      repository: `ghcr.test/${REPOSITORY}`,
    })
    const labels = `upstream="ghcr.test",kind="manifest",method="HEAD",code="200"`
    expect(await layover.metric(`layover_upstream_requests_total{${labels}}`)).toBe(1)
    const outcome = 'layover_requests_total{upstream="ghcr.test",type="manifest",outcome="miss"}'
    expect(await layover.metric(outcome)).toBe(1)
    const link = (await layover.files('docker')).find((file) => file.includes('current/link'))
    expect(link).toContain(`repositories/ghcr.test/${REPOSITORY}/_manifests/tags/1/`)
    expect(images[GHCR].manifest.digest).not.toBe(images.main.manifest.digest)
  })
})

describe('the rules of an upstream', () => {
  it('say which repositories clients may have; others are 404, and not asked for', async () => {
    const { layover, upstreams } = await startUpstreams({
      [GHCR]: { allow: ['team/**'], deny: ['team/secret', '**/internal-*'] },
    })
    for (const name of ['team/secret', 'team/x/internal-1', 'other/app']) {
      upstreams[GHCR].addImage(name, '1', buildImage())
      const answer = await layover.get(`/v2/${name}/manifests/1?ns=ghcr.test`)
      expect(answer.status).toBe(404)
      expect(answer.body.toString()).toContain(`${name} is not allowed here`)
    }
    expect(upstreams[GHCR].count()).toBe(0)
    expect((await layover.get(`/v2/ghcr.test/${REPOSITORY}/manifests/1`)).status).toBe(200)
  })

  it('say how long tags are taken for granted, those that never move even after a restart', async () => {
    const { layover, upstreams } = await startUpstreams({
      proxy: { tagttl: '0' },
      [GHCR]: { tagttl: '1h', tagrules: { latest: '0s', '*': '2h', 'v*.*': 'immutable' } },
    })
    const asked = async (tag: string, prefix = 'ghcr.test/'): Promise<number> => {
      const upstream = prefix === '' ? upstreams.main : upstreams[GHCR]
      upstream.addImage(REPOSITORY, tag, buildImage())
      await layover.get(`/v2/${prefix}${REPOSITORY}/manifests/${tag}`)
      upstream.reset()
      await layover.get(`/v2/${prefix}${REPOSITORY}/manifests/${tag}`)
      return upstream.count({ kind: 'manifest-tag' })
    }
    expect(await asked('latest')).toBe(1)
    expect(await asked('other')).toBe(0)
    expect(await asked('v1.2')).toBe(0)
    expect(await asked('v1.2', '')).toBe(1)
    await layover.restart()
    upstreams[GHCR].reset()
    const moved = await layover.get(`/v2/ghcr.test/${REPOSITORY}/manifests/v1.2`)
    expect([moved.status, upstreams[GHCR].count()]).toEqual([200, 0])
  })

  it('say how long content is kept', async () => {
    const { images, layover } = await startUpstreams({ [GHCR]: { ttl: '2h' } })
    for (const name of ['ghcr.test/', '']) {
      await layover.get(`/v2/${name}${REPOSITORY}/manifests/1`)
    }
    const line = 'Adding new scheduler entry for'
    expect(layover.messages().filter((message) => message.startsWith(line))).toEqual([
      `${line} ghcr.test/${REPOSITORY}@${images[GHCR].manifest.digest} with ttl=2h0m0s`,
      `${line} ${REPOSITORY}@${images.main.manifest.digest} with ttl=168h0m0s`,
    ])
  })

  it('are its own trouble: one that is down does not make another one stale', async () => {
    const { layover, upstreams } = await startUpstreams({ proxy: { tagttl: '0' } })
    for (const prefix of ['', 'ghcr.test/']) {
      await layover.get(`/v2/${prefix}${REPOSITORY}/manifests/1`)
    }
    await upstreams.main.down()
    const outcomes = []
    for (const prefix of ['', 'ghcr.test/', '', 'ghcr.test/']) {
      const answer = await layover.get(`/v2/${prefix}${REPOSITORY}/manifests/1`)
      outcomes.push(answer.header('x-cache'))
    }
    expect(outcomes).toEqual(['STALE', 'HIT', 'STALE', 'HIT'])
    await upstreams.main.up()
  })
})

function wildcard(more: Keys = {}): Keys {
  return { upstreams: { '*': { enabled: true, ...more } } }
}

describe('any public registry, if that is wanted', () => {
  it.each([
    'localhost',
    'localhost:5000',
    '127.0.0.1:80',
    '169.254.169.254',
    'registry.internal',
    'printer.local',
    'registry.default.svc.cluster.local',
    'example.com:8080',
    'xn--a.com',
    '0x7f.1',
  ])('is not %s', async (name) => {
    const { counts, layover } = await startUpstreams({ proxy: wildcard() })
    const path = `/v2/${REPOSITORY}/manifests/1?ns=${encodeURIComponent(name)}`
    const answer = await layover.get(path)
    expect(answer.status).toBe(404)
    expect(answer.body.toString()).toContain(`does not serve the registry ${name}`)
    expect(counts()).toEqual({ [GHCR]: 0, [QUAY]: 0, main: 0 })
  })

  it('is asked by https, under the name that the client gave', async () => {
    const asked: string[] = []
    const proxy = createServer((socket) => {
      socket.on('error', () => {})
      socket.once('data', (bytes) => {
        asked.push(bytes.toString('latin1').split('\r\n')[0] ?? '')
        socket.end('HTTP/1.1 502 Bad Gateway\r\nContent-Length: 0\r\n\r\n')
      })
    })
    await new Promise<void>((resolve) => proxy.listen(0, '127.0.0.1', resolve))
    onTestFinished(() => void proxy.close())
    const address = proxy.address()
    const port = typeof address === 'object' ? address?.port : 0
    const { layover } = await startUpstreams({
      proxy: wildcard({ httpproxy: `http://127.0.0.1:${port}`, deny: ['registry.example.com/x'] }),
    })
    for (const path of [
      '/v2/a/b/manifests/1?ns=registry.example.com',
      '/v2/registry.example.com/a/b/manifests/1',
    ]) {
      asked.splice(0)
      expect((await layover.get(path)).status).toBe(503)
      expect(new Set(asked)).toEqual(new Set(['CONNECT registry.example.com:443 HTTP/1.1']))
    }
    expect((await layover.get('/v2/registry.example.com/x/manifests/1')).status).toBe(404)
    const labels = 'upstream="*",kind="manifest",method="HEAD",code="error"'
    expect(await layover.metric(`layover_upstream_requests_total{${labels}}`)).toBeGreaterThan(0)
  })
})

describe('the registries below a domain', () => {
  it('are not asked within our network, unless that is allowed', async () => {
    const { layover, upstreams } = await startUpstreams({
      proxy: { upstreams: { '*.localhost': {} } },
    })
    const path = `/v2/${REPOSITORY}/manifests/1?ns=inside.localhost`
    expect((await layover.get(path)).status).toBe(503)
    expect(layover.messages()).toContainEqual(
      expect.stringMatching(
        /^inside\.localhost leads to .* at no public address: .*\.redirecthosts$/,
      ),
    )
    expect(upstreams.main.count()).toBe(0)
  })
})
