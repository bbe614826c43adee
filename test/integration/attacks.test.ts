// Attacks that others have met, as tests named after them: what a hostile client, or a hostile manifest, can do to
// the cache. Those that aim at credentials and at our network are in test/unit/upstream/attacks.test.ts.

import { rm } from 'node:fs/promises'
import { join } from 'node:path'
import { createServer } from 'node:net'
import { describe, expect, it, onTestFinished } from 'vitest'
import { MEDIA_TYPES } from '../../src/oci/manifest.ts'
import {
  blobOf,
  buildImage,
  descriptorOf,
  hostileManifests,
  manifestFrom,
} from '../support/images.ts'
import { startLayover } from '../support/layover.ts'
import { hasRedisServer, RedisServer } from '../support/redis-server.ts'
import { startUpstreams, type UpstreamSet } from '../support/upstream-set.ts'
import { waitFor } from '../support/wait-for.ts'

const NAME = 'library/alpine'
const PRIVATE = 'team/private'
const OTHER = 'team/other'

describe('CVE-2024-39897: a blob of another repository by its digest', () => {
  it.each(['GET', 'HEAD'])('is not there for %s', async (method) => {
    const { layover, upstream } = await startLayover()
    const secret = blobOf(1000, 'secret')
    upstream.addBlob(PRIVATE, secret)
    upstream.addBlob(OTHER, blobOf(1, 'something else'))
    await layover.get(`/v2/${PRIVATE}/blobs/${secret.digest}`)
    await layover.stored(secret.digest)
    const answer = await layover.get(`/v2/${OTHER}/blobs/${secret.digest}`, { method })
    expect(answer.status).toBe(404)
    expect(answer.body.includes(secret.bytes.subarray(0, 64))).toBe(false)
    if (method === 'GET') expect(answer.body.toString()).toContain('"code":"BLOB_UNKNOWN"')
  })
})

describe('a manifest of one registry that names what another one has', () => {
  const SECRET = 'ghcr.test/corp/secret'
  const EVIL = 'quay.test_5000/x/evil'
  const secret = blobOf(2 * 1024 * 1024, 'secret of another registry')

  /** Anybody may push such a manifest, if the registry does not look. */
  async function startWithEvil(): Promise<UpstreamSet & { pullEvil: () => Promise<void> }> {
    const set = await startUpstreams()
    const config = blobOf(2, 'config')
    const naming = manifestFrom(MEDIA_TYPES.ociManifest, {
      config: descriptorOf('application/json', config),
      layers: [descriptorOf('application/octet-stream', secret)],
    })
    set.upstreams['ghcr.test'].addBlob('corp/secret', secret)
    set.upstreams['quay.test:5000'].addManifest('x/evil', naming.bytes, naming.mediaType, '1')
    const pullEvil = async (): Promise<void> => {
      expect((await set.layover.get(`/v2/${EVIL}/manifests/1`)).status).toBe(200)
    }
    return { ...set, pullEvil }
  }

  async function expectNoSecret({ layover, upstreams }: UpstreamSet): Promise<void> {
    const evil = upstreams['quay.test:5000']
    for (const method of ['HEAD', 'GET']) {
      const before = evil.count({ kind: 'blob' })
      const answer = await layover.get(`/v2/${EVIL}/blobs/${secret.digest}`, { method })
      expect(answer.status).toBe(404)
      expect(answer.body.includes(secret.bytes.subarray(0, 64))).toBe(false)
      expect(evil.count({ kind: 'blob' })).toBe(before + 1)
    }
    expect(evil.count({ kind: 'blob', method: 'GET' })).toBe(0)
    const links = (await layover.files('docker')).filter((file) => file.includes('x/evil/_layers'))
    expect(links).toEqual([])
  }

  it.each(['before', 'after'])('is not served its bytes, stored %s it came', async (when) => {
    const set = await startWithEvil()
    if (when === 'after') await set.pullEvil()
    await set.layover.get(`/v2/${SECRET}/blobs/${secret.digest}`)
    await set.layover.stored(secret.digest)
    if (when === 'before') await set.pullEvil()
    await expectNoSecret(set)
    await set.layover.restart()
    await set.pullEvil()
    await expectNoSecret(set)
  })

  it('does not join the download of the other one', async () => {
    const set = await startWithEvil()
    const { layover, pullEvil, upstreams } = set
    await pullEvil()
    const gate = upstreams['ghcr.test'].gate({ kind: 'blob', method: 'GET' }, { afterBytes: 1e6 })
    const client = await layover.open(`/v2/${SECRET}/blobs/${secret.digest}`)
    await client.read(1000)
    await expectNoSecret(set)
    gate.release()
    expect((await client.finish()).ending).toBe('complete')
    await layover.stored(secret.digest)
    await expectNoSecret(set)
  })

  it('is not served what the main registry has either', async () => {
    const set = await startWithEvil()
    const { layover, pullEvil, upstreams } = set
    upstreams.main.addBlob('corp/secret', secret)
    await layover.get(`/v2/corp/secret/blobs/${secret.digest}`)
    await layover.stored(secret.digest)
    await pullEvil()
    await expectNoSecret(set)
  })
})

// Where everything has to run, descriptor-cache.test.ts fails without a server.
describe.runIf(hasRedisServer)('CVE-2026-35172: a descriptor in a shared cache', () => {
  it('is no right to the blob, neither under another name nor after the link has gone', async () => {
    const redis = await RedisServer.start()
    const { layover, upstream } = await startLayover({
      configuration: {
        storage: { cache: { blobdescriptor: 'redis' } },
        redis: { addr: `127.0.0.1:${redis.port}` },
      },
    })
    const secret = blobOf(100_000, 'secret')
    upstream.addBlob(PRIVATE, secret)
    upstream.addBlob(OTHER, blobOf(1, 'something else'))
    await layover.get(`/v2/${PRIVATE}/blobs/${secret.digest}`)
    await layover.stored(secret.digest)
    await waitFor('the descriptor to be shared', async () => {
      return (await redis.ask((client) => client.keys('*'))).some((key) =>
        key.includes(secret.digest),
      )
    })
    const statusOf = async (name: string, method: string): Promise<number | undefined> =>
      (await layover.get(`/v2/${name}/blobs/${secret.digest}`, { method })).status
    for (const method of ['HEAD', 'GET']) expect(await statusOf(OTHER, method)).toBe(404)

    upstream.fault({ kind: 'blob', repository: PRIVATE }, 'denied')
    await layover.stop()
    const links = (await layover.files('docker')).filter((file) => file.endsWith('link'))
    expect(links).toHaveLength(1)
    for (const link of links) await rm(join(layover.rootDirectory, 'docker', link))
    await layover.start()
    for (const method of ['HEAD', 'GET']) expect(await statusOf(PRIVATE, method)).toBe(404)
  })
})

/** Somebody who listens where we must not connect to. */
async function startInside(): Promise<{ host: string; connections: () => number }> {
  let connections = 0
  const inside = createServer((socket) => {
    connections++
    socket.end()
  })
  await new Promise<void>((resolve) => inside.listen(0, '127.0.0.1', resolve))
  onTestFinished(() => void inside.close())
  const address = inside.address()
  const port = typeof address === 'object' && address ? address.port : 0
  return { host: `127.0.0.1:${port}`, connections: () => connections }
}

describe('CVE-2022-27907 and CVE-2020-13788: a client that names where we should connect to', () => {
  it('is told that it is not there, whether somebody listens or not', async () => {
    const inside = await startInside()
    const { layover, upstream } = await startLayover()
    const answers = []
    for (const host of [inside.host, '127.0.0.1:1', '169.254.169.254']) {
      const answer = await layover.get(`/v2/${NAME}/manifests/3?ns=${host}`)
      answers.push([answer.status, answer.body.toString().replaceAll(host, 'HOST')])
    }
    expect(new Set(answers.map((answer) => JSON.stringify(answer))).size).toBe(1)
    expect(answers[0]?.[0]).toBe(404)
    expect([inside.connections(), upstream.count()]).toEqual([0, 0])
  })

  it.each([
    (host: string) => `GET http://${host}/v2/${NAME}/manifests/3 HTTP/1.1\r\nHost: ${host}`,
    (host: string) => `GET //${host}/v2/${NAME}/manifests/3 HTTP/1.1\r\nHost: x`,
    (host: string) =>
      `GET /v2/${NAME}/manifests/3 HTTP/1.1\r\nHost: ${host}\r\nX-Forwarded-Host: ${host}`,
    (host: string) => `GET /v2/${NAME}/manifests/3@${host} HTTP/1.1\r\nHost: x`,
    (host: string) => `CONNECT ${host} HTTP/1.1\r\nHost: ${host}`,
  ])('is not followed there (%#)', async (requestFor) => {
    const inside = await startInside()
    const { layover } = await startLayover()
    await layover.send(`${requestFor(inside.host)}\r\nConnection: close\r\n\r\n`)
    expect(inside.connections()).toBe(0)
  })
})

describe('CVE-2020-15157: layers that say where they are', () => {
  it('are looked for at the upstream and nowhere else', async () => {
    const elsewhere = await startInside()
    const { layover, upstream } = await startLayover()
    const { config } = buildImage()
    const foreign = blobOf(100, 'foreign')
    const manifest = manifestFrom(MEDIA_TYPES.dockerManifest, {
      config: descriptorOf('application/vnd.docker.container.image.v1+json', config),
      layers: [
        {
          ...descriptorOf('application/vnd.docker.image.rootfs.foreign.diff.tar.gzip', foreign),
          urls: [`http://${elsewhere.host}/layer`],
        },
      ],
    })
    upstream.addManifest(NAME, manifest.bytes, manifest.mediaType, '3')
    expect((await layover.get(`/v2/${NAME}/manifests/3`)).status).toBe(200)
    expect((await layover.get(`/v2/${NAME}/blobs/${foreign.digest}`)).status).toBe(404)
    expect(elsewhere.connections()).toBe(0)
  })
})

describe('CVE-2024-3727: what is no digest, in places where digests are', () => {
  const EVIL = ['sha256:../../../../etc/passwd', 'sha256:', '../x', `sha256:${'0'.repeat(63)}/`]

  it.each(EVIL)('of a manifest is passed over (%s)', async (digest) => {
    const { layover, upstream } = await startLayover()
    const layers = [{ mediaType: 'application/octet-stream', size: 1, digest }]
    const manifest = manifestFrom(MEDIA_TYPES.ociManifest, { config: layers[0], layers })
    upstream.addManifest(NAME, manifest.bytes, manifest.mediaType, '3')
    const answer = await layover.get(`/v2/${NAME}/manifests/3`)
    expect(answer.body.equals(manifest.bytes)).toBe(true)
    for (const file of await layover.files('docker')) expect(file).not.toMatch(/\.\.|passwd/)
  })

  it.each(EVIL)('of an answer is passed over (%s)', async (digest) => {
    const { layover, upstream } = await startLayover()
    const image = buildImage()
    upstream.addImage(NAME, '3', image)
    upstream.fault({ kind: 'manifest-tag' }, { headers: { 'Docker-Content-Digest': digest } })
    const answer = await layover.get(`/v2/${NAME}/manifests/3`)
    expect(answer.header('docker-content-digest')).toBe(image.manifest.digest)
    for (const { path } of upstream.requests) expect(path).not.toContain('passwd')
  })
})

describe('CVE-2021-41190: an image that is an index to somebody else', () => {
  const { config } = buildImage()
  const shapes = {
    both: hostileManifests.imageAndIndex(),
    'an image that says it is an index': manifestFrom(MEDIA_TYPES.ociIndex, { config, layers: [] }),
    'an index that says it is an image': manifestFrom(MEDIA_TYPES.ociManifest, { manifests: [] }),
    'a list that says it is an image': manifestFrom(MEDIA_TYPES.dockerManifest, { manifests: [] }),
  }

  it.each(Object.entries(shapes))('is neither kept nor served: %s', async (_what, manifest) => {
    const { layover, upstream } = await startLayover()
    upstream.addManifest(NAME, manifest.bytes, manifest.mediaType, '3')
    for (const reference of ['3', manifest.digest]) {
      expect((await layover.get(`/v2/${NAME}/manifests/${reference}`)).status).toBe(503)
    }
    expect(await layover.files('docker')).toEqual([])
  })

  it('is not made one by the type that the upstream sends with it', async () => {
    const { layover, upstream } = await startLayover()
    const image = buildImage()
    upstream.addImage(NAME, '3', image)
    upstream.fault({}, { headers: { 'Content-Type': MEDIA_TYPES.ociIndex } })
    const answer = await layover.get(`/v2/${NAME}/manifests/3`)
    expect(answer.header('content-type')).toBe(MEDIA_TYPES.ociManifest)
  })
})

describe('CVE-2023-2253: a catalog of any length', () => {
  it.each(['1000000000000', '9223372036854775807', '-1', '1e9', 'NaN', '0x7fffffff', ''])(
    'is not made room for (n=%s)',
    async (n) => {
      const { layover } = await startLayover()
      for (const path of ['_catalog', `${NAME}/tags/list`]) {
        const answer = await layover.get(`/v2/${path}?n=${n}`)
        expect([200, 400, 404]).toContain(answer.status)
        expect(answer.body.length).toBeLessThan(1000)
      }
    },
  )
})

describe('CVE-2017-11468: a manifest of any length', () => {
  it('is refused, and no more of it is read than four mebibytes', async () => {
    const { layover, upstream } = await startLayover()
    const manifest = hostileManifests.oversized(32 * 1024 * 1024)
    upstream.addManifest(NAME, manifest.bytes, manifest.mediaType, '3')
    expect((await layover.get(`/v2/${NAME}/manifests/3`)).status).toBe(503)
    expect(await layover.files('docker')).toEqual([])
    expect(upstream.bytesSent(manifest.digest)).toBeLessThan(24 * 1024 * 1024)
  })
})

describe('CVE-2026-41888: deleting where nothing can be deleted', () => {
  it.each(['DELETE', 'PUT', 'POST', 'PATCH'])('%s changes nothing', async (method) => {
    const { layover, upstream } = await startLayover()
    const image = buildImage()
    upstream.addImage(NAME, '3', image)
    await layover.get(`/v2/${NAME}/manifests/3`)
    const before = await layover.files('docker')
    upstream.reset()
    for (const reference of ['3', image.manifest.digest]) {
      const answer = await layover.get(`/v2/${NAME}/manifests/${reference}`, { method })
      expect([answer.status, answer.header('allow')]).toEqual([405, 'GET, HEAD'])
    }
    expect(await layover.files('docker')).toEqual(before)
    expect(upstream.count()).toBe(0)
    expect((await layover.get(`/v2/${NAME}/manifests/3`)).header('x-cache')).toBe('HIT')
  })
})

/** A part of a JSON web token. */
function encoded(json: object): string {
  return Buffer.from(JSON.stringify(json)).toString('base64url')
}

describe('CVE-2025-24976: a token that brings its own key', () => {
  it('opens nothing, is believed by nobody and passed on to nobody', async () => {
    const credentials = { username: 'robot', password: 'right' }
    const { layover, upstream } = await startLayover({ upstream: { auth: 'bearer', credentials } })
    const image = buildImage()
    upstream.addImage(PRIVATE, '3', image)
    const header = { typ: 'JWT', alg: 'ES256', jwk: { kty: 'EC', crv: 'P-256', x: 'x', y: 'y' } }
    const access = [{ type: 'repository', name: PRIVATE, actions: ['*'] }]
    const forged = `${encoded(header)}.${encoded({ sub: 'admin', access })}.c2ln`
    for (const authorization of [`Bearer ${forged}`, 'Basic YWRtaW46YWRtaW4=']) {
      const answer = await layover.get(`/v2/${PRIVATE}/manifests/3`, {
        headers: { Authorization: authorization, Cookie: 'session=1' },
      })
      expect(answer.status).toBe(404)
      expect(answer.header('www-authenticate')).toBeUndefined()
    }
    const sent = JSON.stringify(upstream.requests.map(({ headers }) => headers))
    for (const secret of [forged, 'YWRtaW46YWRtaW4=', 'session']) expect(sent).not.toContain(secret)
    expect(JSON.stringify([layover.log, layover.accessLines])).not.toContain(forged)
  })
})

describe('CVE-2024-4956: a path that leaves the root', () => {
  it.each([
    '/%2F%2F%2F%2F%2F%2F%2F..%2F..%2F..%2F..%2Fetc%2Fpasswd',
    '//////../../../../../etc/passwd',
    '/v2/../../../../etc/passwd',
    '/v2/..%2f..%2f..%2fetc%2fpasswd',
    '/v2/%2e%2e/%2e%2e/secret/manifests/latest',
    '/v2/library/alpine/blobs/..%5c..%5c..%5csecret',
    '/v2/library/alpine/manifests/..%2f..%2f..%2f..%2fsecret',
    '/v2/library/alpine/blobs/sha256:..%2f..%2fsecret',
    '/v2/library/..;/..;/secret/manifests/latest',
    '/v2/library/alpine%00/manifests/latest',
    '/v2/library/alpine/manifests/%252e%252e%252fsecret',
  ])('%s leads nowhere', async (path) => {
    const { layover, upstream } = await startLayover()
    const text = await layover.send(`GET ${path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n`)
    expect(text).toMatch(/^HTTP\/1\.1 40[04] /)
    expect(text).not.toContain('root:')
    expect(upstream.count()).toBe(0)
    expect(await layover.files('docker')).toEqual([])
  })
})
