// Manifests when the upstream fails, refuses or lies: the old answer with a word about it, or an error that
// clients understand; never wrong content, and never "not found" for what only cannot be asked for.

import { rm } from 'node:fs/promises'
import { describe, expect, it } from 'vitest'
import { FakeClock } from '../support/fake-clock.ts'
import { blobFile, startLayover } from '../support/layover.ts'
import { buildImage, hostileManifests, type TestManifest } from '../support/images.ts'
import { waitFor } from '../support/wait-for.ts'

const NAME = 'library/alpine'
const PATH = `/v2/${NAME}/manifests/3`
/** Longer than tagttl, and than an upstream that failed is left alone. */
const LATER_MS = 61_000

describe('a tag that the upstream does not have', () => {
  it('is 404 MANIFEST_UNKNOWN, and not asked for again within 10 s', async () => {
    const clock = new FakeClock()
    const { layover, upstream } = await startLayover({ clock })
    upstream.addImage(NAME, 'other', buildImage())
    for (const method of ['HEAD', 'GET', 'GET']) {
      const answer = await layover.get(PATH, { method })
      expect(answer.status).toBe(404)
      if (method === 'HEAD') continue
      const body: unknown = JSON.parse(answer.body.toString())
      expect(body).toMatchObject({ errors: [{ code: 'MANIFEST_UNKNOWN' }] })
    }
    // With HEAD, and then with GET: some caches deny by HEAD what they have not fetched.
    expect(upstream.requests.map(({ method }) => method)).toEqual(['HEAD', 'GET'])
    upstream.addImage(NAME, '3', buildImage())
    await clock.advance(9_999)
    expect((await layover.get(PATH)).status).toBe(404)
    await clock.advance(1)
    expect((await layover.get(PATH)).status).toBe(200)
  })

  it.each([-86_400_000, 86_400_000])(
    'is asked for again after 10 s though the clock jumps by %i ms',
    async (jumpMs) => {
      const clock = new FakeClock()
      const { layover, upstream } = await startLayover({ clock })
      expect((await layover.get(PATH)).status).toBe(404)
      upstream.addImage(NAME, '3', buildImage())
      clock.jump(jumpMs)
      expect((await layover.get(PATH)).status).toBe(404)
      await clock.advance(10_000)
      expect((await layover.get(PATH)).status).toBe(200)
    },
  )

  it('is asked for each time with tagttl 0', async () => {
    const { layover, upstream } = await startLayover({ configuration: { proxy: { tagttl: '0' } } })
    await layover.get(PATH)
    upstream.addImage(NAME, '3', buildImage())
    expect((await layover.get(PATH)).status).toBe(200)
  })

  it('is gone when it was deleted', async () => {
    const clock = new FakeClock()
    const { layover, upstream } = await startLayover({ clock })
    upstream.addImage(NAME, '3', buildImage())
    await layover.get(PATH)
    upstream.deleteTag(NAME, '3')
    await clock.advance(LATER_MS)
    expect((await layover.get(PATH)).status).toBe(404)
  })

  it.each(['unauthorized', 'denied'] as const)(
    'or does not let us have (%s) is 404',
    async (why) => {
      const { layover, upstream } = await startLayover({ upstream: { auth: 'bearer' } })
      upstream.addImage(NAME, '3', buildImage())
      upstream.fault({ kind: 'manifest-tag' }, why)
      const answer = await layover.get(PATH)
      expect(answer.status).toBe(404)
      expect(answer.header('www-authenticate')).toBeUndefined()
    },
  )
})

describe('an upstream that cannot be asked', () => {
  it('is not asked about a known tag again for 10 s, and then once', async () => {
    const clock = new FakeClock()
    const { layover, upstream } = await startLayover({ clock })
    upstream.addImage(NAME, '3', buildImage())
    await layover.get(PATH)
    await clock.advance(LATER_MS)
    upstream.fault({}, 'rate-limited')
    upstream.reset()
    for (let round = 0; round < 5; round++) {
      expect((await layover.get(PATH)).header('x-cache')).toBe('STALE')
    }
    expect(upstream.count()).toBe(1)
    upstream.clearFaults()
    await clock.advance(10_000)
    expect((await layover.get(PATH)).header('x-cache')).toBe('HIT')
    expect(upstream.count()).toBe(2)
  })

  it('since it never answers is given up after 25 s', async () => {
    const clock = new FakeClock()
    const { layover, upstream } = await startLayover({ clock })
    upstream.addImage(NAME, '3', buildImage())
    await layover.get(PATH)
    await clock.advance(LATER_MS)
    upstream.fault({}, 'hang')
    const [known, cold] = [layover.get(PATH), layover.get(`/v2/${NAME}/manifests/4`)]
    await waitFor('both questions', () => upstream.count({ method: 'HEAD' }) === 3)
    await clock.advance(25_000)
    expect((await known).header('x-cache')).toBe('STALE')
    expect((await cold).status).toBe(503)
  })

  it('since it is down does not stop what is stored from being served after a restart', async () => {
    const { layover, upstream } = await startLayover()
    const image = buildImage({ layers: [300_000] })
    upstream.addImage(NAME, '3', image)
    await layover.get(PATH)
    const blobs = [image.config, ...image.layers]
    for (const { digest } of blobs) {
      await layover.get(`/v2/${NAME}/blobs/${digest}`)
      await layover.stored(digest)
    }
    await upstream.down()
    await layover.restart()
    const answer = await layover.get(PATH)
    expect(answer.header('x-cache')).toBe('STALE')
    expect(answer.body.equals(image.manifest.bytes)).toBe(true)
    for (const { bytes, digest } of blobs) {
      const blob = await layover.get(`/v2/${NAME}/blobs/${digest}`)
      expect(blob.body.equals(bytes)).toBe(true)
    }
  })
})

describe('an upstream that lies', () => {
  it.each(['wrong-first-byte', 'long-body', 'short-body'] as const)(
    'about the content of a digest (%s) gets nothing stored, and nothing served',
    async (fault) => {
      const { layover, upstream } = await startLayover()
      const { manifest } = buildImage()
      upstream.addImage(NAME, '3', buildImage())
      const mend = upstream.fault({ method: 'GET' }, fault)
      for (const path of [PATH, `/v2/${NAME}/manifests/${manifest.digest}`]) {
        expect((await layover.get(path)).status).toBe(503)
      }
      expect(await layover.files('docker')).toEqual([])
      mend()
      expect((await layover.get(PATH)).body.equals(manifest.bytes)).toBe(true)
    },
  )

  it('about the digest of a tag in HEAD is asked for the tag itself', async () => {
    const { layover, upstream } = await startLayover()
    const { manifest } = buildImage()
    upstream.addImage(NAME, '3', buildImage())
    upstream.fault({ method: 'HEAD' }, 'digest-header-wrong')
    const answer = await layover.get(PATH)
    expect([answer.status, answer.header('docker-content-digest')]).toEqual([200, manifest.digest])
  })

  it('about the digest of a tag in GET too is out of order, and the tag is not said to be gone', async () => {
    const { layover, upstream } = await startLayover()
    upstream.addImage(NAME, '3', buildImage())
    upstream.fault({}, 'digest-header-wrong')
    expect((await layover.get(PATH)).status).toBe(503)
    expect(await layover.files('docker')).toEqual([])
    expect(await layover.metric('layover_digest_mismatches_total{type="manifest"}')).toBe(1)
  })

  const refused: [string, TestManifest][] = [
    ['schema 1', hostileManifests.schema1()],
    ['an image and an index at once', hostileManifests.imageAndIndex()],
    ['more than 4 MiB', hostileManifests.oversized()],
  ]
  it.each(refused)('with %s is 503, and nothing is stored', async (_, manifest) => {
    const { layover, upstream } = await startLayover()
    upstream.addManifest(NAME, manifest.bytes, manifest.mediaType, '3')
    for (const reference of ['3', manifest.digest]) {
      expect((await layover.get(`/v2/${NAME}/manifests/${reference}`)).status).toBe(503)
    }
    expect(await layover.files('docker')).toEqual([])
  })

  it('with a manifest of exactly 4 MiB is believed', async () => {
    const { layover, upstream } = await startLayover()
    const manifest = hostileManifests.oversized(4 * 1024 * 1024)
    upstream.addManifest(NAME, manifest.bytes, manifest.mediaType, '3')
    expect((await layover.get(PATH)).body.length).toBe(4 * 1024 * 1024)
  })

  it.each(['html-200', 'garbage'] as const)(
    'with something that is no manifest (%s) is 503, and stale for a known tag',
    async (fault) => {
      const { layover, upstream } = await startLayover({
        configuration: { proxy: { tagttl: '0' } },
      })
      upstream.addImage(NAME, '3', buildImage())
      const bogus = upstream.fault({}, fault)
      expect((await layover.get(PATH)).status).toBe(503)
      expect(await layover.files('docker')).toEqual([])
      bogus()
      expect((await layover.get(PATH)).status).toBe(200)
      upstream.fault({}, fault)
      upstream.fault({}, 'digest-header-missing')
      expect((await layover.get(PATH)).header('x-cache')).toBe('STALE')
    },
  )
})

describe('a manifest that is lost from the disk', () => {
  it('is fetched again', async () => {
    const { layover, upstream } = await startLayover()
    const { manifest } = buildImage()
    upstream.addImage(NAME, '3', buildImage())
    await layover.get(PATH)
    await layover.stop()
    await rm(`${layover.rootDirectory}/${blobFile(manifest.digest)}`)
    await layover.start()
    for (const reference of [manifest.digest, '3']) {
      const answer = await layover.get(`/v2/${NAME}/manifests/${reference}`)
      expect(answer.body.equals(manifest.bytes)).toBe(true)
    }
  })
})
