// However many questions one request costs, they share one limit: clients give up after 30 s without headers.

import { describe, expect, it } from 'vitest'
import { FakeClock } from '../support/fake-clock.ts'
import { startLayover } from '../support/layover.ts'
import { blobOf, buildImage, buildIndex } from '../support/images.ts'
import type { FakeUpstream } from '../support/fake-upstream.ts'
import type { Layover } from '../support/layover.ts'
import type { RawRequestOptions, RawResponse } from '../support/http-client.ts'
import { isStillWaiting } from '../support/spool-rig.ts'
import { waitFor } from '../support/wait-for.ts'

const NAME = 'library/alpine'
const LIMIT_MS = 25_000
/** For an answer from what is known, in place of a question that ends in vain. */
const GRACE_MS = 2_000
/** Of every answer but the last: two of them leave little of the limit. */
const ANSWER_MS = 12_000

interface Stage {
  readonly layover: Layover
  readonly upstream: FakeUpstream
  readonly clock: FakeClock
}

async function start(proxy: Readonly<Record<string, unknown>> = {}): Promise<Stage> {
  const clock = new FakeClock()
  return { ...(await startLayover({ clock, configuration: { proxy } })), clock }
}

/** Lets each question but the last be answered after 12 s, and the last one never. @returns what the client got */
async function askSlowly(
  { clock, layover, upstream }: Stage,
  path: string,
  { questions, ...options }: RawRequestOptions & { questions: number },
): Promise<RawResponse> {
  const before = upstream.count()
  let gate = upstream.gate({})
  const answer = layover.get(path, options)
  const startedMs = clock.monotonic()
  for (let count = 1; count < questions; count++) {
    await waitFor(`question ${count}`, () => upstream.count() === before + count)
    await clock.advance(ANSWER_MS)
    const answered = gate
    gate = upstream.gate({})
    answered.release()
  }
  await waitFor('the last question', () => upstream.count() === before + questions)
  const leftMs = startedMs + LIMIT_MS - clock.monotonic()
  await clock.advance(leftMs - 1)
  expect(await isStillWaiting(answer)).toBe(true)
  await clock.advance(1)
  return answer
}

function expectTimeout(answer: RawResponse): void {
  expect([answer.status, answer.header('retry-after')]).toEqual([503, '5'])
}

describe('a request whose questions take longer than a client waits', () => {
  it('is answered in time: a tag costs a HEAD and a GET', async () => {
    const stage = await start()
    stage.upstream.addImage(NAME, '3', buildImage())

    expectTimeout(await askSlowly(stage, `/v2/${NAME}/manifests/3`, { questions: 2 }))
  })

  it('is answered in time: the image in a list costs one more', async () => {
    const stage = await start()
    stage.upstream.addImage(NAME, '3', buildIndex([buildImage()], { kind: 'docker' }))
    const headers = { Accept: 'application/vnd.docker.distribution.manifest.v2+json' }

    const path = `/v2/${NAME}/manifests/3`
    expectTimeout(await askSlowly(stage, path, { questions: 3, headers }))
  })

  it('is answered in time: a HEAD that tells no size is followed by a GET', async () => {
    const stage = await start()
    const blob = blobOf(1000, 'sizeless')
    stage.upstream.addBlob(NAME, blob)
    stage.upstream.fault({ method: 'HEAD' }, 'no-content-length')

    const path = `/v2/${NAME}/blobs/${blob.digest}`
    expectTimeout(await askSlowly(stage, path, { questions: 2, method: 'HEAD' }))
  })
})

describe('a request whose questions wait for a connection', () => {
  it.each(['manifests/3', 'tags/list'])('is answered from what is known: %s', async (what) => {
    const { clock, layover, upstream } = await start({ maxconnections: 1, tagttl: 0 })
    const blob = blobOf(200_000, 'large enough to wait')
    upstream.addImage(NAME, '3', buildImage())
    upstream.addBlob(NAME, blob)
    const path = `/v2/${NAME}/${what}`
    await layover.get(`/v2/${NAME}/manifests/3`)
    const gate = upstream.gate({ kind: 'blob' }, { afterBytes: 100_000 })
    const download = await layover.open(`/v2/${NAME}/blobs/${blob.digest}`)

    const asked = layover.get(path)
    await waitFor('the second request', async () => {
      return (await layover.metric('registry_http_in_flight_requests')) === 2
    })
    expect(await isStillWaiting(asked)).toBe(true)
    await clock.advance(LIMIT_MS)

    const answer = await asked
    expect([answer.status, answer.header('x-cache')]).toEqual([200, 'STALE'])
    gate.release()
    expect((await download.finish()).body.equals(blob.bytes)).toBe(true)
  })
})

describe('a client that shares the question of another one', () => {
  it('is told when that fails', async () => {
    const { clock, layover, upstream } = await start()
    upstream.addImage(NAME, '3', buildImage())
    const path = `/v2/${NAME}/manifests/3`
    const gate = upstream.gate({ method: 'HEAD' })
    const first = layover.get(path)
    await gate.reached
    await clock.advance(20_000)
    const second = layover.get(path)
    await waitFor('the second request', async () => {
      return (await layover.metric('registry_http_in_flight_requests')) === 2
    })
    await clock.advance(5_000)

    expectTimeout(await first)
    expectTimeout(await second)
    gate.release()
    expect((await layover.get(path)).status).toBe(200)
  })

  it('waits no longer than it can, though the other one came later and can', async () => {
    const { clock, layover, upstream } = await start()
    const image = buildImage()
    upstream.addImage(NAME, '3', image)
    const head = upstream.gate({ method: 'HEAD' })
    const get = upstream.gate({ method: 'GET' })
    const early = layover.get(`/v2/${NAME}/manifests/3`)
    await head.reached
    await clock.advance(20_000)
    const late = layover.get(`/v2/${NAME}/manifests/${image.manifest.digest}`)
    await get.reached
    head.release()
    // The early one goes on to the GET that the late one has begun: there is no second.
    expect(await isStillWaiting(early)).toBe(true)
    await clock.advance(LIMIT_MS + GRACE_MS - 20_000)

    expectTimeout(await early)
    expect(await isStillWaiting(late)).toBe(true)
    get.release()
    expect((await late).status).toBe(200)
    expect(upstream.count({ method: 'GET' })).toBe(1)
  })
})

describe('a blob whose size comes last', () => {
  it('is asked for again by a client that could not wait for its end', async () => {
    const { clock, layover, upstream } = await start()
    const blob = blobOf(2 * 1024 * 1024, 'size comes last')
    upstream.addBlob(NAME, blob)
    upstream.fault({ kind: 'blob' }, 'chunked')
    const gate = upstream.gate({ kind: 'blob' }, { afterBytes: 1024 * 1024 })
    const path = `/v2/${NAME}/blobs/${blob.digest}`
    const first = layover.get(path)
    await gate.reached
    await clock.advance(LIMIT_MS + GRACE_MS)

    expectTimeout(await first)
    gate.release()
    await layover.stored(blob.digest)
    expect((await layover.get(path)).body.equals(blob.bytes)).toBe(true)
    expect(upstream.count({ kind: 'blob' })).toBe(1)
  })
})
