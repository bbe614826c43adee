// What a pull costs of the upstream's limit, and what happens when little of it is left.

import { describe, expect, it } from 'vitest'
import { FakeClock } from '../support/fake-clock.ts'
import type { FakeUpstream } from '../support/fake-upstream.ts'
import { rawGet } from '../support/http-client.ts'
import { buildImage, type TestImage } from '../support/images.ts'
import { startLayover, type Layover } from '../support/layover.ts'

const NAME = 'library/alpine'
const PATH = `/v2/${NAME}/manifests/3`
const TAG_TTL_MS = 60_000

/** As a client does it: the tag, then all that its manifest names. */
async function pull(layover: Layover, { config, layers, manifest }: TestImage): Promise<void> {
  expect((await layover.head(PATH)).status).toBe(200)
  expect((await layover.get(`/v2/${NAME}/manifests/${manifest.digest}`)).status).toBe(200)
  for (const { digest } of [config, ...layers]) {
    expect((await layover.get(`/v2/${NAME}/blobs/${digest}`)).status).toBe(200)
    await layover.stored(digest)
  }
}

function asked(upstream: FakeUpstream): string[] {
  return upstream.requests.map(({ method, reference }) => `${method} ${reference}`)
}

/** From now on each answer says that so many pulls are left. @returns takes it back */
function leave(upstream: FakeUpstream, remaining: number, { source }: { source?: string } = {}) {
  const headers = {
    'RateLimit-Limit': '100;w=21600',
    'RateLimit-Remaining': `${remaining};w=21600`,
    ...(source && { 'Docker-RateLimit-Source': source }),
  }
  return upstream.fault({ kind: ['manifest-tag', 'manifest-digest'] }, { headers })
}

async function startWithImage() {
  const clock = new FakeClock()
  const { layover, upstream } = await startLayover({ clock })
  const image = buildImage({ seed: 'old' })
  upstream.addImage(NAME, '3', image)
  const gauge = (which: string): Promise<number> =>
    layover.metric(`layover_upstream_ratelimit_${which}{upstream="${new URL(upstream.url).host}"}`)
  return { clock, layover, upstream, image, gauge }
}

describe('a pull of an image that is cached', () => {
  it('costs nothing within tagttl, and one HEAD after it', async () => {
    const { clock, image, layover, upstream } = await startWithImage()
    await pull(layover, image)
    upstream.reset()
    await clock.advance(TAG_TTL_MS - 1)
    await pull(layover, image)
    expect(asked(upstream)).toEqual([])
    await clock.advance(1)
    await pull(layover, image)
    expect(asked(upstream)).toEqual(['HEAD 3'])
  })
})

describe('pulls that are nearly spent', () => {
  it('on Docker Hub are not spent on a tag that has moved: HEAD is free and is asked', async () => {
    const { clock, gauge, image, layover, upstream } = await startWithImage()
    const takeBack = leave(upstream, 5, { source: 'an-account' })
    await pull(layover, image)
    expect([await gauge('limit'), await gauge('remaining')]).toEqual([100, 5])
    await clock.advance(TAG_TTL_MS)
    upstream.reset()
    expect((await layover.get(PATH)).header('x-cache')).toBe('HIT')
    expect(asked(upstream)).toEqual(['HEAD 3'])

    const moved = buildImage({ seed: 'new' })
    upstream.addImage(NAME, '3', moved)
    await clock.advance(TAG_TTL_MS)
    upstream.reset()
    const old = await layover.get(PATH)
    expect(old.header('docker-content-digest')).toBe(image.manifest.digest)
    expect(old.header('x-cache')).toBe('STALE')
    expect(old.header('warning')).toContain('lets us have 5 of 100 pulls in 6 h')
    expect(old.header('cache-status')).toContain('detail=stale-saving-pulls')
    expect(asked(upstream)).toEqual(['HEAD 3'])

    takeBack()
    leave(upstream, 80, { source: 'an-account' })
    const fresh = await layover.get(PATH)
    expect(fresh.header('docker-content-digest')).toBe(moved.manifest.digest)
    expect(await gauge('remaining')).toBe(80)
  })

  it('elsewhere are not spent on asking about cached tags at all', async () => {
    const { clock, image, layover, upstream } = await startWithImage()
    leave(upstream, 5)
    await pull(layover, image)
    await clock.advance(TAG_TTL_MS)
    upstream.reset()
    for (let i = 0; i < 3; i++) {
      const old = await layover.get(PATH)
      expect([old.status, old.header('x-cache')]).toEqual([200, 'STALE'])
    }
    expect(asked(upstream)).toEqual([])
  })

  it('are spent on what is not cached', async () => {
    const { clock, image, layover, upstream } = await startWithImage()
    leave(upstream, 1, { source: 'an-account' })
    await pull(layover, image)
    const other = buildImage({ seed: 'other' })
    upstream.addImage(NAME, '4', other)
    await clock.advance(TAG_TTL_MS)
    const cold = await layover.get(`/v2/${NAME}/manifests/4`)
    expect(cold.body.equals(other.manifest.bytes)).toBe(true)
    expect(cold.header('x-cache')).toBe('MISS')
  })

  it('show in the log and in /readyz?verbose, which stays ready', async () => {
    const { image, layover, upstream } = await startWithImage()
    leave(upstream, 4, { source: 'an-account' })
    await pull(layover, image)
    const told = 'lets us have 4 of 100 pulls in 6 h'
    const ready = await rawGet(`${layover.url}/readyz?verbose`)
    expect(ready.status).toBe(200)
    expect(ready.body.toString()).toContain(told)
    expect(layover.messages().filter((message) => message.includes(told))).toHaveLength(1)
  })
})
