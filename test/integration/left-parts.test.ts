// What a download that was given up has left on disk. Nothing of it is verified: it goes on from the upstream that
// sent it, and nobody is given a complete answer with it before the whole is known to be right.

import { readdir, writeFile } from 'node:fs/promises'
import { join } from 'node:path'
import { describe, expect, it } from 'vitest'
import type { Fault } from '../support/fake-upstream-faults.ts'
import type { FakeUpstream } from '../support/fake-upstream.ts'
import { blobOf, buildImage, type TestBlob } from '../support/images.ts'
import { FAR_AHEAD_BYTES } from '../../src/cache/tail-source.ts'
import { partFile, startLayover, type Layover } from '../support/layover.ts'
import { REPOSITORY, startUpstreams } from '../support/upstream-set.ts'
import { waitFor } from '../support/wait-for.ts'

const NAME = 'library/alpine'
const SIZE = 2_000_000
const CUT_AT = 1_000_000
const FLIPPED_AT = 1000
/** In the part, and right. */
const RIGHT_PART = { first: 200_000, last: 299_999 }
const RIGHT_RANGE = { headers: { Range: `bytes=${RIGHT_PART.first}-${RIGHT_PART.last}` } }
/** In the part, with the byte that is wrong. */
const WRONG_RANGE = { headers: { Range: 'bytes=0-1999' } }

async function start(sizeBytes = SIZE) {
  const { layover, upstream } = await startLayover({ mayLeaveParts: true })
  const blob = blobOf(sizeBytes, 'left part')
  upstream.addBlob(NAME, blob)
  return { blob, layover, upstream, path: `/v2/${NAME}/blobs/${blob.digest}` }
}

/** Has a download given up after a part of it, which stays. */
async function leavePart(
  { layover, path, upstream }: { layover: Layover; path: string; upstream: FakeUpstream },
  fault: Fault = {},
): Promise<void> {
  const gate = upstream.gate({ kind: 'blob' }, { afterBytes: CUT_AT - 1 })
  upstream.fault({ kind: 'blob' }, { ...fault, cutAtByte: CUT_AT }, { times: 1 })
  const client = await layover.open(path)
  await client.read(CUT_AT / 2)
  upstream.fault({ kind: 'blob' }, 'not-found')
  gate.release()
  expect((await client.finish()).ending).toBe('fin')
  await over(layover)
  upstream.clearFaults()
  upstream.clearGates()
  expect(await parts(layover)).toHaveLength(1)
  upstream.reset()
}

function parts({ rootDirectory }: Layover): Promise<string[]> {
  return readdir(join(rootDirectory, 'layover/spool'))
}

function rangesAsked({ requests }: FakeUpstream): unknown[] {
  return requests.filter(({ kind }) => kind === 'blob').map(({ headers }) => headers.range)
}

/** For `subarray`. */
function boundsOf({ headers: { Range } }: typeof RIGHT_RANGE): [first: number, end: number] {
  const [first = Number.NaN, last = Number.NaN] = Range.replace('bytes=', '').split('-').map(Number)
  return [first, last + 1]
}

async function over(layover: Layover): Promise<void> {
  const isOver = async (): Promise<boolean> => (await layover.metric('layover_fills_running')) === 0
  await waitFor('the download to be over', isOver)
}

async function expectServed(layover: Layover, path: string, blob: TestBlob): Promise<void> {
  const answer = await layover.get(path)
  expect([answer.status, answer.ending]).toEqual([200, 'complete'])
  expect(answer.body.equals(blob.bytes)).toBe(true)
  await layover.stored(blob.digest)
}

describe('a part that is left', () => {
  it('is gone on with after a restart', async () => {
    const scene = await start()
    await leavePart(scene)
    await scene.layover.restart()
    await expectServed(scene.layover, scene.path, scene.blob)
    expect(rangesAsked(scene.upstream)).toEqual([expect.stringMatching(/^bytes=\d{6,}-$/)])
  })

  it.each(['unchanged', 'restarted'])('is no business of another upstream (%s)', async (how) => {
    const { layover, upstreams } = await startUpstreams()
    const blob = blobOf(SIZE, 'of two upstreams')
    const { main, 'ghcr.test': other } = upstreams
    for (const upstream of [main, other]) upstream.addBlob(REPOSITORY, blob)
    const path = `/v2/ghcr.test/${REPOSITORY}/blobs/${blob.digest}`
    await leavePart({ layover, path, upstream: other }, { flipByteAt: FLIPPED_AT })
    if (how === 'restarted') await layover.restart()
    const range = await layover.get(`/v2/${REPOSITORY}/blobs/${blob.digest}`, WRONG_RANGE)
    expect([range.status, range.ending]).toEqual([206, 'complete'])
    expect(range.body.equals(blob.bytes.subarray(0, 2000))).toBe(true)
    await expectServed(layover, `/v2/${REPOSITORY}/blobs/${blob.digest}`, blob)
    expect(rangesAsked(main)).toEqual([undefined])
    expect(await parts(layover)).toEqual([])
  })

  it('by an older version, which did not note who had sent it, is discarded', async () => {
    const { blob, layover, path, upstream } = await start()
    await layover.stop()
    const old = partFile(blob.digest, upstream).replace(/-[0-9a-f]{32}\.part$/, '.part')
    await writeFile(join(layover.rootDirectory, old), Buffer.alloc(CUT_AT))
    await layover.start()
    expect(await parts(layover)).toEqual([])
    await expectServed(layover, path, blob)
    expect(rangesAsked(upstream)).toEqual([undefined])
  })

  it.each(['unchanged', 'restarted'])('and is wrong completes no range (%s)', async (how) => {
    const scene = await start()
    const { blob, layover, path, upstream } = scene
    await leavePart(scene, { flipByteAt: FLIPPED_AT })
    if (how === 'restarted') await layover.restart()
    const range = await layover.get(path, WRONG_RANGE)
    expect([range.status, range.ending, range.body.length]).toEqual([206, 'fin', 0])
    await expectServed(layover, path, blob)
    expect(rangesAsked(upstream)).toEqual([expect.stringContaining('bytes='), undefined])
  })

  it('serves a range as soon as the whole is verified', async () => {
    const scene = await start()
    const { blob, layover, path, upstream } = scene
    await leavePart(scene)
    const gate = upstream.gate({ kind: 'blob' }, { afterBytes: 100_000 })
    const client = await layover.open(path, RIGHT_RANGE)
    const whole = await layover.open(path)
    await gate.reached
    // What has come is passed on to who wants all of it, and to nobody who would be content with this.
    await whole.read(CUT_AT / 2)
    expect(layover.accessLines.filter(({ status }) => status === 206)).toEqual([])
    gate.release()
    const { body, ending, status } = await client.finish()
    expect([status, ending]).toEqual([206, 'complete'])
    expect(body.equals(blob.bytes.subarray(RIGHT_PART.first, RIGHT_PART.last + 1))).toBe(true)
    expect((await whole.finish()).body.equals(blob.bytes.subarray(CUT_AT / 2))).toBe(true)
    await layover.stored(blob.digest)
    expect(rangesAsked(upstream)).toHaveLength(1)
  })

  it.each([RIGHT_RANGE, WRONG_RANGE])(
    'of a blob that will take long keeps nobody waiting: the range comes from the upstream (%j)',
    async (range) => {
      const scene = await start(CUT_AT + FAR_AHEAD_BYTES + CUT_AT)
      const { blob, layover, path, upstream } = scene
      await leavePart(scene, { flipByteAt: FLIPPED_AT })
      const gate = upstream.gate({ kind: 'blob' }, { afterBytes: 200_000 })
      const whole = await layover.open(path)
      await gate.reached
      const { body, ending, status } = await layover.get(path, range)
      expect([status, ending]).toEqual([206, 'complete'])
      expect(body.equals(blob.bytes.subarray(...boundsOf(range)))).toBe(true)
      gate.release()
      whole.leave()
      // The part was wrong: what was made of it is discarded.
      await over(layover)
      expect(await parts(layover)).toEqual([])
    },
  )
})

describe('what contradicts itself is not left', () => {
  const contradictions: [string, Fault][] = [
    ['a length that is too large', { flipByteAt: FLIPPED_AT, contentLength: SIZE + 1_000_000 }],
    ['no length and too short', { truncateTo: CUT_AT, framing: 'chunked' }],
    [
      'no length, too short and no ranges',
      { truncateTo: CUT_AT, framing: 'close', range: 'ignored' },
    ],
    ['a web page', { body: '<h1>Sign in</h1>'.repeat(9000), framing: 'chunked', range: 'ignored' }],
  ]
  it.each(contradictions)('%s', async (_, fault) => {
    const { layover, upstream } = await startLayover()
    const image = buildImage({ layers: [SIZE] })
    const [layer] = image.layers
    if (!layer) throw new Error('the image has no layer')
    upstream.addImage(NAME, '3', image)
    // The manifest tells how long it is.
    await layover.get(`/v2/${NAME}/manifests/3`)
    upstream.fault({ kind: 'blob' }, fault)
    const path = `/v2/${NAME}/blobs/${layer.digest}`
    const bad = await layover.get(path)
    expect([bad.status, bad.ending]).toEqual([200, 'fin'])
    await over(layover)
    expect(await parts(layover)).toEqual([])
    upstream.clearFaults()
    upstream.reset()
    const range = await layover.get(path, WRONG_RANGE)
    expect(range.body.equals(layer.bytes.subarray(0, 2000))).toBe(true)
    await expectServed(layover, path, layer)
    expect(rangesAsked(upstream)).toEqual([undefined])
  })

  it.each([
    [SIZE, { cutAtByte: 65_536, contentLength: SIZE * 2 }],
    [0, { contentLength: 1 }],
  ])(
    'a length that changes between attempts, which is no bug of ours (%i bytes)',
    async (sizeBytes, fault) => {
      const { layover, upstream } = await startLayover()
      const blob = blobOf(sizeBytes, 'changes')
      upstream.addBlob(NAME, blob)
      upstream.fault({ kind: 'blob' }, fault, { times: 1 })
      const path = `/v2/${NAME}/blobs/${blob.digest}`
      expect((await layover.get(path)).ending).toBe('fin')
      await expectServed(layover, path, blob)
      expect(layover.log.filter(({ isBug }) => isBug === true)).toEqual([])
    },
  )
})
