// Manifests that go well: by tag and by digest, fresh and old, and what the upstream is asked for each.

import { describe, expect, it } from 'vitest'
import { FakeClock } from '../support/fake-clock.ts'
import { startLayover } from '../support/layover.ts'
import { buildImage, buildIndex, hostileManifests } from '../support/images.ts'
import { MEDIA_TYPES } from '../../src/oci/manifest.ts'
import { digestOf } from '../../src/oci/digest.ts'
import type { FakeUpstream } from '../support/fake-upstream.ts'

const NAME = 'library/alpine'
const PATH = `/v2/${NAME}/manifests/3`
const TAG_TTL_MS = 60_000

/** What the upstream was asked, for example `HEAD 3`. */
function asked(upstream: FakeUpstream): string[] {
  return upstream.requests.map(({ method, reference }) => `${method} ${reference}`)
}

describe('a manifest by tag', () => {
  it('costs one HEAD and one GET by digest, and then nothing for tagttl', async () => {
    const clock = new FakeClock()
    const { layover, upstream } = await startLayover({ clock })
    const { manifest } = buildImage()
    upstream.addImage(NAME, '3', buildImage())
    const cold = await layover.get(PATH)
    expect(cold.body.equals(manifest.bytes)).toBe(true)
    expect(asked(upstream)).toEqual(['HEAD 3', `GET ${manifest.digest}`])
    for (let round = 0; round < 5; round++) {
      await clock.advance(TAG_TTL_MS / 6)
      expect((await layover.get(PATH)).header('x-cache')).toBe('HIT')
      expect((await layover.head(PATH)).status).toBe(200)
    }
    expect(upstream.count()).toBe(2)

    await clock.advance(TAG_TTL_MS / 6)
    const revalidated = await layover.get(PATH)
    expect(revalidated.header('cache-status')).toBe('layover; fwd=stale; fwd-status=200; ttl=60')
    expect(asked(upstream).slice(2)).toEqual(['HEAD 3'])
  })

  it('is announced as registry:2 announces it, whether cold or warm, GET or HEAD', async () => {
    const { layover, upstream } = await startLayover({ clock: new FakeClock() })
    const { manifest } = buildImage()
    upstream.addImage(NAME, '3', buildImage())
    const expected = {
      'Docker-Distribution-Api-Version': 'registry/2.0',
      'Content-Type': MEDIA_TYPES.ociManifest,
      'Content-Length': String(manifest.bytes.length),
      'Docker-Content-Digest': manifest.digest,
      Etag: `"${manifest.digest}"`,
    }
    const cold = await layover.get(PATH)
    expect(Object.fromEntries(cold.headers)).toMatchObject({ ...expected, 'X-Cache': 'MISS' })
    const warm = await layover.head(PATH)
    expect(Object.fromEntries(warm.headers)).toMatchObject({
      ...expected,
      'X-Cache': 'HIT',
      Age: '0',
      'Cache-Status': 'layover; hit; ttl=60',
    })
    expect(warm.body.length).toBe(0)
    expect(warm.header('transfer-encoding')).toBeUndefined()
  })

  it('tells its age and how long it stays fresh', async () => {
    const clock = new FakeClock()
    const { layover, upstream } = await startLayover({ clock })
    upstream.addImage(NAME, '3', buildImage())
    await layover.get(PATH)
    await clock.advance(20_500)
    const { headers } = await layover.get(PATH)
    expect(Object.fromEntries(headers)).toMatchObject({
      Age: '20',
      'Cache-Status': 'layover; hit; ttl=39',
    })
  })

  it('is fetched by digest once when the tag has moved', async () => {
    const clock = new FakeClock()
    const { layover, upstream } = await startLayover({ clock })
    const next = buildImage({ seed: 'next' })
    upstream.addImage(NAME, '3', buildImage())
    await layover.get(PATH)
    upstream.addImage(NAME, '3', next)
    upstream.reset()
    expect((await layover.get(PATH)).header('x-cache')).toBe('HIT')
    await clock.advance(TAG_TTL_MS)
    expect((await layover.get(PATH)).body.equals(next.manifest.bytes)).toBe(true)
    expect((await layover.get(PATH)).body.equals(next.manifest.bytes)).toBe(true)
    expect(asked(upstream)).toEqual(['HEAD 3', `GET ${next.manifest.digest}`])
  })

  it('moves back to what it was at the price of a HEAD', async () => {
    const clock = new FakeClock()
    const { layover, upstream } = await startLayover({ clock })
    const [one, two] = [buildImage({ seed: 1 }), buildImage({ seed: 2 })]
    for (const image of [one, two]) {
      upstream.addImage(NAME, '3', image)
      await layover.get(PATH)
      await clock.advance(TAG_TTL_MS)
    }
    upstream.addImage(NAME, '3', one)
    upstream.reset()
    expect((await layover.get(PATH)).body.equals(one.manifest.bytes)).toBe(true)
    expect(asked(upstream)).toEqual(['HEAD 3'])
  })

  it('is what was HEADed, even if the tag moves between HEAD and GET', async () => {
    const { layover, upstream } = await startLayover()
    const [one, two] = [buildImage({ seed: 1 }), buildImage({ seed: 2 })]
    upstream.addImage(NAME, '3', one)
    upstream.addImage(NAME, undefined, two)
    upstream.fault({ kind: 'manifest-tag' }, { moveTagTo: two.manifest.digest }, { times: 1 })
    const answer = await layover.get(PATH)
    expect(answer.header('docker-content-digest')).toBe(one.manifest.digest)
    expect(answer.body.equals(one.manifest.bytes)).toBe(true)
  })

  it('is asked for each time with tagttl 0, and together by those who ask together', async () => {
    const { layover, upstream } = await startLayover({ configuration: { proxy: { tagttl: '0' } } })
    upstream.addImage(NAME, '3', buildImage())
    await layover.get(PATH)
    await layover.get(PATH)
    expect(upstream.count({ method: 'HEAD' })).toBe(2)
    const gate = upstream.gate({ method: 'HEAD' })
    upstream.reset()
    const herd = Array.from({ length: 20 }, () => layover.get(PATH))
    await gate.reached
    gate.release()
    const statuses = (await Promise.all(herd)).map(({ status }) => status)
    expect(new Set(statuses)).toEqual(new Set([200]))
    expect(upstream.count({ method: 'GET' })).toBe(0)
    expect(upstream.count({ method: 'HEAD' })).toBeLessThan(20)
  })

  it('costs 50 clients together one HEAD and one GET', async () => {
    const { layover, upstream } = await startLayover()
    const { manifest } = buildImage()
    upstream.addImage(NAME, '3', buildImage())
    const answers = await Promise.all(Array.from({ length: 50 }, () => layover.get(PATH)))
    for (const answer of answers) expect(answer.body.equals(manifest.bytes)).toBe(true)
    expect(asked(upstream)).toEqual(['HEAD 3', `GET ${manifest.digest}`])
  })

  it('is not checked too early or too late when the clock is set', async () => {
    const clock = new FakeClock()
    const { layover, upstream } = await startLayover({ clock })
    upstream.addImage(NAME, '3', buildImage())
    await layover.get(PATH)
    clock.jump(-86_400_000)
    await layover.get(PATH)
    expect(upstream.count({ method: 'HEAD' })).toBe(2)
    const answer = await layover.get(PATH)
    expect(Number(answer.header('age'))).toBeGreaterThanOrEqual(0)
    expect(upstream.count({ method: 'HEAD' })).toBe(2)
  })
})

describe('a manifest by digest', () => {
  it('costs one GET, and then nothing ever', async () => {
    const clock = new FakeClock()
    const { layover, upstream } = await startLayover({ clock })
    const { manifest } = buildImage()
    upstream.addImage(NAME, undefined, buildImage())
    const path = `/v2/${NAME}/manifests/${manifest.digest}`
    expect((await layover.head(path)).header('content-length')).toBe(String(manifest.bytes.length))
    await clock.advance(TAG_TTL_MS * 100)
    await upstream.down()
    const answer = await layover.get(path)
    expect(answer.body.equals(manifest.bytes)).toBe(true)
    expect(answer.header('cache-status')).toBe('layover; hit')
    await layover.restart()
    expect((await layover.get(path)).body.equals(manifest.bytes)).toBe(true)
    expect(upstream.count()).toBe(1)
  })

  it('may be named by sha512', async () => {
    const { layover, upstream } = await startLayover()
    const { bytes, mediaType } = buildImage().manifest
    const digest = digestOf(bytes, 'sha512')
    upstream.addManifest(NAME, bytes, mediaType)
    upstream.moveTag(NAME, digest, digestOf(bytes))
    upstream.fault({ kind: 'manifest-digest' }, 'digest-header-missing')
    const answer = await layover.get(`/v2/${NAME}/manifests/${digest}`)
    expect(answer.status).toBe(200)
    expect(answer.header('docker-content-digest')).toBe(digest)
    await layover.stored(digest)
  })
})

describe('If-None-Match', () => {
  it.each(['"{digest}"', 'W/"{digest}"', '{digest}', '"other", "{digest}"', '*'])(
    '%s is answered with 304 without a body',
    async (pattern) => {
      const { layover, upstream } = await startLayover()
      const { manifest } = buildImage()
      upstream.addImage(NAME, '3', buildImage())
      const headers = { 'If-None-Match': pattern.replace('{digest}', manifest.digest) }
      const answer = await layover.get(PATH, { headers })
      expect(answer.status).toBe(304)
      expect(answer.header('etag')).toBe(`"${manifest.digest}"`)
      expect(answer.header('docker-content-digest')).toBe(manifest.digest)
      expect([answer.body.length, answer.trailing.length]).toEqual([0, 0])
    },
  )

  it('of something else is answered with the manifest', async () => {
    const { layover, upstream } = await startLayover()
    upstream.addImage(NAME, '3', buildImage())
    const headers = { 'If-None-Match': `"${digestOf(Buffer.from('else'))}"` }
    expect((await layover.get(PATH, { headers })).status).toBe(200)
  })
})

describe('a client that does not understand lists', () => {
  const images = [buildImage({ kind: 'docker' }), buildImage({ kind: 'docker', seed: 2 })]
  const headers = { Accept: MEDIA_TYPES.dockerManifest }

  it('gets the linux/amd64 image of a manifest list', async () => {
    const { layover, upstream } = await startLayover()
    upstream.addImage(NAME, '3', buildIndex(images, { kind: 'docker' }))
    const answer = await layover.get(PATH, { headers })
    expect(answer.header('docker-content-digest')).toBe(images[0]?.manifest.digest)
    expect(answer.header('content-type')).toBe(MEDIA_TYPES.dockerManifest)
    const whole = await layover.get(PATH)
    expect(whole.header('content-type')).toBe(MEDIA_TYPES.dockerList)
  })

  it('gets an OCI index as it is', async () => {
    const { layover, upstream } = await startLayover()
    const index = buildIndex(images)
    upstream.addImage(NAME, '3', index)
    const answer = await layover.get(PATH, { headers })
    expect(answer.header('docker-content-digest')).toBe(index.manifest.digest)
  })

  it('gets by digest what it asked for', async () => {
    const { layover, upstream } = await startLayover()
    const index = buildIndex(images, { kind: 'docker' })
    upstream.addImage(NAME, '3', index)
    const answer = await layover.get(`/v2/${NAME}/manifests/${index.manifest.digest}`, { headers })
    expect(answer.header('content-type')).toBe(MEDIA_TYPES.dockerList)
  })
})

describe('an upstream with habits of its own', () => {
  it.each([
    ['refuses HEAD', { method: 'HEAD' }, 'no-head'],
    ['tells no digest', { kind: 'manifest-tag' }, 'digest-header-missing'],
  ] as const)('that %s is asked with a GET', async (_, match, fault) => {
    const clock = new FakeClock()
    const { layover, upstream } = await startLayover({ clock })
    const { manifest } = buildImage()
    upstream.addImage(NAME, '3', buildImage())
    upstream.fault(match, fault)
    expect((await layover.get(PATH)).body.equals(manifest.bytes)).toBe(true)
    expect(asked(upstream)).toEqual(['HEAD 3', 'GET 3'])
    expect((await layover.get(PATH)).header('x-cache')).toBe('HIT')
    expect(upstream.count()).toBe(2)
  })

  it('that sends a media type nobody knows is passed on', async () => {
    const { layover, upstream } = await startLayover()
    const manifest = hostileManifests.unknownMediaType()
    upstream.addManifest(NAME, manifest.bytes, manifest.mediaType, '3')
    const answer = await layover.get(PATH)
    expect(answer.header('content-type')).toBe(manifest.mediaType)
    expect(answer.body.equals(manifest.bytes)).toBe(true)
  })

  it('that serves official images without their prefix is asked as the client asks', async () => {
    const { layover, upstream } = await startLayover()
    upstream.addImage('alpine', '3', buildImage())
    expect((await layover.get('/v2/alpine/manifests/3')).status).toBe(200)
    expect(upstream.requests[0]?.repository).toBe('alpine')
  })

  it('that sits below a path is asked there', async () => {
    const { layover, upstream } = await startLayover({
      upstream: { pathPrefix: '/artifactory/api/docker/hub' },
    })
    upstream.addImage(NAME, '3', buildImage())
    expect((await layover.get(PATH)).status).toBe(200)
  })
})
