// An upstream with a mirror in front of its origin. Whatever is wrong with the mirror, and however late that shows,
// the origin has the last word.

import { describe, expect, it, onTestFinished } from 'vitest'
import { startFakeUpstream, type FakeUpstream } from '../support/fake-upstream.ts'
import type { Fault, FaultName } from '../support/fake-upstream-faults.ts'
import { blobOf, buildArtifact, buildImage, type TestBlob } from '../support/images.ts'
import { startLayover, type Layover } from '../support/layover.ts'

const REPOSITORY = 'team/app'
const MIB = 1024 * 1024

interface Stage {
  readonly layover: Layover
  readonly mirror: FakeUpstream
  readonly origin: FakeUpstream
}

async function startMirrored(
  credentials?: { username: string; password: string },
  more: { mirrorAuth?: 'basic' } = {},
): Promise<Stage> {
  const mirror = await startFakeUpstream({ auth: more.mirrorAuth ?? 'none' })
  onTestFinished(() => mirror.close())
  const origin = await startFakeUpstream(credentials && { auth: 'basic', credentials })
  const { layover } = await startLayover({
    upstream: origin,
    configuration: { proxy: { remoteurl: [mirror.url, origin.url], ...credentials } },
  })
  return { layover, mirror, origin }
}

const pathOf = ({ digest }: TestBlob): string => `/v2/${REPOSITORY}/blobs/${digest}`
const hostOf = ({ url }: FakeUpstream): string => new URL(url).host

describe('an upstream with mirrors', () => {
  it('is asked through them in order, and a blob goes on at the next one when one breaks off', async () => {
    const { layover, mirror, origin } = await startMirrored()
    const image = buildImage({ layers: [300_000] })
    const [layer] = image.layers
    for (const each of [mirror, origin]) each.addImage(REPOSITORY, '1', image)
    const gate = mirror.gate({ kind: 'blob', method: 'GET' }, { afterBytes: 65_536 })
    expect((await layover.get(`/v2/${REPOSITORY}/manifests/1`)).status).toBe(200)
    expect(origin.count()).toBe(0)
    const client = await layover.open(`/v2/${REPOSITORY}/blobs/${layer?.digest}`)
    await gate.reached
    await mirror.down()
    const blob = await client.finish()
    expect(layer && blob.body.equals(layer.bytes)).toBe(true)
    expect(origin.requests.map(({ headers }) => headers.range)).toEqual([
      expect.stringMatching(/^bytes=[1-9]/),
    ])
  })

  it('has what its origin has, whatever they lack, and sends them no credentials', async () => {
    const credentials = { username: 'robot', password: 's3cret' }
    const { layover, mirror, origin } = await startMirrored(credentials, { mirrorAuth: 'basic' })
    origin.addImage(REPOSITORY, '1', buildImage())
    expect((await layover.get(`/v2/${REPOSITORY}/manifests/1`)).status).toBe(200)
    expect(mirror.requests.map(({ headers }) => headers.authorization)).not.toContain(
      expect.anything(),
    )
    expect(mirror.count()).toBeGreaterThan(0)
  })

  it('has the referrers of its origin, though a mirror that keeps none says that there are none', async () => {
    const { layover, mirror, origin } = await startMirrored()
    const image = buildImage()
    const signature = buildArtifact(image.manifest)
    for (const each of [mirror, origin]) each.addImage(REPOSITORY, '1', image)
    origin.addImage(REPOSITORY, undefined, signature)
    const list = await layover.get(`/v2/${REPOSITORY}/referrers/${image.manifest.digest}`)
    expect(JSON.parse(list.body.toString())).toMatchObject({
      manifests: [{ digest: signature.manifest.digest }],
    })
    expect(mirror.count({ kind: 'referrers' })).toBe(1)
  })
})

describe('a mirror that sends a wrong manifest', () => {
  it.each([
    ['other bytes', { flipByteAt: 20 }],
    ['a web page', 'html-200'],
    ['one under the digest of another', 'digest-header-wrong'],
  ] as [string, Fault | FaultName][])('(%s) is one whose origin is asked', async (_, fault) => {
    const { layover, mirror, origin } = await startMirrored()
    const image = buildImage()
    for (const each of [mirror, origin]) each.addImage(REPOSITORY, '1', image)
    mirror.fault({ kind: ['manifest-tag', 'manifest-digest'] }, fault)
    for (const reference of ['1', image.manifest.digest]) {
      const answer = await layover.get(`/v2/${REPOSITORY}/manifests/${reference}`)
      expect([answer.status, answer.body.equals(image.manifest.bytes)]).toEqual([200, true])
    }
    expect(mirror.count()).toBeGreaterThan(0)
  })

  it('is counted', async () => {
    const { layover, mirror, origin } = await startMirrored()
    const image = buildImage()
    for (const each of [mirror, origin]) each.addImage(REPOSITORY, '1', image)
    mirror.fault({ kind: 'manifest-digest' }, 'html-200')
    await layover.get(`/v2/${REPOSITORY}/manifests/${image.manifest.digest}`)
    expect(await layover.metric('layover_digest_mismatches_total{type="manifest"}')).toBe(1)
  })
})

/** An image of one layer that both have, and that the mirror sends so; its manifest is known. */
async function pullManifest(
  { layover, mirror, origin }: Stage,
  sizeBytes: number,
): Promise<TestBlob> {
  const image = buildImage({ layers: [sizeBytes] })
  for (const each of [mirror, origin]) each.addImage(REPOSITORY, '1', image)
  expect((await layover.get(`/v2/${REPOSITORY}/manifests/1`)).status).toBe(200)
  const [layer] = image.layers
  if (!layer) throw new Error('the image has no layer')
  return layer
}

describe('a mirror that sends a wrong blob', () => {
  it('is passed over from then on: who was sent wrong bytes is cut off, and the next one served', async () => {
    const { layover, mirror, origin } = await startMirrored()
    const blobs = [blobOf(2 * MIB, 'flipped'), blobOf(2 * MIB, 'another')]
    for (const each of [mirror, origin]) for (const blob of blobs) each.addBlob(REPOSITORY, blob)
    mirror.fault({ kind: 'blob' }, { flipByteAt: MIB })
    const [blob, another] = blobs
    if (!blob || !another) throw new Error('no blobs')
    expect((await layover.get(pathOf(blob))).ending).toBe('fin')
    for (const each of blobs) {
      const answer = await layover.get(pathOf(each))
      expect([answer.ending, answer.body.equals(each.bytes)]).toEqual(['complete', true])
    }
    expect(mirror.count()).toBe(1)
    expect(layover.log).toContainEqual(
      expect.objectContaining({
        msg: 'the upstream sent wrong bytes; nothing of them is kept',
        sentBy: hostOf(mirror),
      }),
    )
    expect(layover.messages()).toContain('a mirror is passed over for 300 s')
  })

  it('of another length, when nobody knows better, is cut off once', async () => {
    const { layover, mirror, origin } = await startMirrored()
    const blob = blobOf(2 * MIB, 'short')
    for (const each of [mirror, origin]) each.addBlob(REPOSITORY, blob)
    mirror.fault({ kind: 'blob' }, { truncateTo: MIB })
    const path = pathOf(blob)
    expect((await layover.get(path)).ending).toBe('fin')
    expect((await layover.get(path)).body.equals(blob.bytes)).toBe(true)
    expect(mirror.count()).toBe(1)
  })

  it.each([
    ['empty', 'empty-body'],
    ['a web page', 'html-200'],
    ['shorter', { truncateTo: 100_000 }],
    ['longer', { appendBytes: 100_000 }],
    ['announced as longer', { contentLength: 2 * MIB }],
    ['empty, without a length', { truncateTo: 0, framing: 'chunked' }],
    ['shorter, without a length', { truncateTo: 100_000, framing: 'chunked' }],
  ] as [string, Fault | FaultName][])(
    'of another length than a manifest says (%s) is not begun with',
    async (_, fault) => {
      const stage = await startMirrored()
      const layer = await pullManifest(stage, MIB)
      stage.mirror.fault({ kind: 'blob', method: 'GET' }, fault)
      const answer = await stage.layover.get(pathOf(layer))
      expect([answer.status, answer.ending]).toEqual([200, 'complete'])
      expect(answer.body.equals(layer.bytes)).toBe(true)
    },
  )

  it.each([
    ['empty', 'empty-body'],
    ['a web page', 'html-200'],
    ['small', { truncateTo: 60_000 }],
    ['without a length', { flipByteAt: 0, framing: 'chunked' }],
  ] as [string, Fault | FaultName][])(
    'of which nothing is sent before it is verified (%s) costs nobody anything',
    async (_, fault) => {
      const { layover, mirror, origin } = await startMirrored()
      const blob = blobOf(300_000, 'no manifest')
      for (const each of [mirror, origin]) each.addBlob(REPOSITORY, blob)
      mirror.fault({ kind: 'blob', method: 'GET' }, fault)
      const gate = mirror.gate({ kind: 'blob', method: 'GET' })
      const path = pathOf(blob)
      const answers = Promise.all([layover.get(path), layover.get(path)])
      await gate.reached
      gate.release()
      for (const { body, ending } of await answers) {
        expect([ending, body.equals(blob.bytes)]).toEqual(['complete', true])
      }
      expect([mirror.count({ method: 'GET' }), origin.count({ method: 'GET' })]).toEqual([1, 1])
    },
  )

  it('is tried when its origin is out of order, and asked no more often for that', async () => {
    const { layover, mirror, origin } = await startMirrored()
    const blob = blobOf(10_000, 'down')
    mirror.addBlob(REPOSITORY, blob)
    mirror.fault({ kind: 'blob' }, { flipByteAt: 0 })
    origin.fault({}, 'unavailable')
    const answer = await layover.get(pathOf(blob))
    expect(answer.status).toBe(503)
    expect(mirror.count()).toBe(2)
    mirror.clearFaults()
    const mended = await layover.get(pathOf(blob))
    expect(mended.body.equals(blob.bytes)).toBe(true)
  })
})

describe('a mirror whose bodies break off', () => {
  it.each([
    ['at the same byte each time, without ranges', { cutAtByte: 65_536, range: 'ignored' }],
    ['and which refuses the rest', { cutAtByte: 65_536, range: 'refused' }],
    ['before the first byte', { cutAtByte: 0 }],
    ['after fewer bytes than it has announced', { truncateTo: MIB, contentLength: 2 * MIB }],
  ] as [string, Fault][])('(%s) leaves the rest to its origin', async (_, fault) => {
    const { layover, mirror, origin } = await startMirrored()
    const blob = blobOf(2 * MIB, 'cut')
    for (const each of [mirror, origin]) each.addBlob(REPOSITORY, blob)
    mirror.fault({ kind: 'blob' }, fault)
    const answer = await layover.get(pathOf(blob))
    expect([answer.ending, answer.body.equals(blob.bytes)]).toEqual(['complete', true])
    expect([mirror.count(), origin.count()]).toEqual([1, 1])
    await layover.stored(blob.digest)
  })

  it('and were wrong from the beginning is passed over, though its origin has sent the rest', async () => {
    const { layover, mirror, origin } = await startMirrored()
    const blob = blobOf(2 * MIB, 'wrong and cut')
    for (const each of [mirror, origin]) each.addBlob(REPOSITORY, blob)
    mirror.fault({ kind: 'blob' }, { flipByteAt: 10, cutAtByte: MIB })
    const path = pathOf(blob)
    expect((await layover.get(path)).ending).toBe('fin')
    expect((await layover.get(path)).body.equals(blob.bytes)).toBe(true)
    expect(mirror.count()).toBe(1)
    expect(layover.messages()).toContain('a mirror is passed over for 300 s')
  })
})
