// Parts of blobs: the same answers whether the blob is stored, arriving, or not asked for yet.

import { describe, expect, it } from 'vitest'
import { FAR_AHEAD_BYTES } from '../../src/cache/tail-source.ts'
import type { Fault } from '../support/fake-upstream-faults.ts'
import { startLayover } from '../support/layover.ts'
import { blobOf } from '../support/images.ts'
import { waitFor } from '../support/wait-for.ts'

const NAME = 'library/alpine'
const SIZE = 1_500_000
/** Ranges far ahead of a download that have connections of their own. */
const TAILS_MAX = 16

type Part = readonly [first: number, last: number]

const RANGES: [string, Part][] = [
  ['bytes=0-0', [0, 0]],
  ['bytes=0-99', [0, 99]],
  ['bytes=700000-', [700_000, SIZE - 1]],
  ['bytes=-1', [SIZE - 1, SIZE - 1]],
  ['bytes=-500', [SIZE - 500, SIZE - 1]],
  [`bytes=-${SIZE * 2}`, [0, SIZE - 1]],
  [`bytes=1000-${SIZE * 2}`, [1000, SIZE - 1]],
  [`bytes=${SIZE - 1}-`, [SIZE - 1, SIZE - 1]],
]

const WHOLE = ['bytes=5-2', 'bytes=0-1,5-9', 'bytes=-', 'bytes=x-y', 'lines=1-2', 'bytes 0-5']

describe.each(['cold', 'warm', 'warm and small'] as const)('a range of a %s blob', (state) => {
  const sizeBytes = state === 'warm and small' ? 50_000 : SIZE

  it.each(RANGES)('%s is 206 with its bytes', async (range, [first, last]) => {
    const { layover, upstream } = await startLayover()
    const blob = blobOf(sizeBytes, 'range')
    upstream.addBlob(NAME, blob)
    const path = `/v2/${NAME}/blobs/${blob.digest}`
    if (state !== 'cold') {
      await layover.get(path)
      await layover.stored(blob.digest)
    }
    const answer = await layover.get(path, { headers: { Range: range } })
    if (sizeBytes === SIZE) {
      expect(answer.status).toBe(206)
      expect(answer.header('content-range')).toBe(`bytes ${first}-${last}/${SIZE}`)
      expect(answer.body.equals(blob.bytes.subarray(first, last + 1))).toBe(true)
    } else {
      expect([206, 416]).toContain(answer.status)
    }
    expect(answer.ending).toBe('complete')
    await layover.stored(blob.digest)
    expect(upstream.count()).toBe(1)
    expect(upstream.bytesSent(blob.digest)).toBe(sizeBytes)
  })

  it.each([`bytes=${SIZE}-`, `bytes=${SIZE}-${SIZE + 5}`, 'bytes=-0'])(
    '%s is 416 with the size',
    async (range) => {
      const { layover, upstream } = await startLayover()
      const blob = blobOf(sizeBytes, 'range')
      upstream.addBlob(NAME, blob)
      const path = `/v2/${NAME}/blobs/${blob.digest}`
      if (state !== 'cold') {
        await layover.get(path)
        await layover.stored(blob.digest)
      }
      const answer = await layover.get(path, { headers: { Range: range } })
      expect(answer.status).toBe(416)
      expect(answer.header('content-range')).toBe(`bytes */${sizeBytes}`)
      expect(answer.body.length).toBe(0)
      await layover.stored(blob.digest)
    },
  )

  it('is the whole if it is not one range, or If-Range names other content', async () => {
    const { layover, upstream } = await startLayover()
    const blob = blobOf(sizeBytes, 'range')
    upstream.addBlob(NAME, blob)
    const path = `/v2/${NAME}/blobs/${blob.digest}`
    if (state !== 'cold') await layover.get(path)
    const asked: Record<string, string>[] = [
      ...WHOLE.map((range) => ({ Range: range })),
      { Range: 'bytes=0-9', 'If-Range': '"something-else"' },
      { Range: 'bytes=0-9', 'If-Range': 'Fri, 01 Jan 2027 00:00:00 GMT' },
    ]
    for (const headers of asked) {
      const answer = await layover.get(path, { headers })
      expect(answer.status).toBe(200)
      expect(answer.body.equals(blob.bytes)).toBe(true)
    }
    const headers = { Range: 'bytes=0-9', 'If-Range': `"${blob.digest}"` }
    expect((await layover.get(path, { headers })).status).toBe(206)
    expect(upstream.count()).toBe(1)
  })

  it('is 304 for who has the blob', async () => {
    const { layover, upstream } = await startLayover()
    const blob = blobOf(sizeBytes, 'range')
    upstream.addBlob(NAME, blob)
    const path = `/v2/${NAME}/blobs/${blob.digest}`
    if (state !== 'cold') await layover.get(path)
    const headers = { 'If-None-Match': `"${blob.digest}"`, Range: 'bytes=0-9' }
    const answer = await layover.get(path, { headers })
    expect([answer.status, answer.body.length]).toEqual([304, 0])
    await layover.stored(blob.digest)
  })
})

describe('a range of a blob whose length is a lie', () => {
  it('beyond a false end is not refused for good', async () => {
    const { layover, upstream } = await startLayover()
    const blob = blobOf(SIZE, 'false end')
    upstream.addBlob(NAME, blob)
    upstream.fault({ kind: 'blob' }, { truncateTo: 100_000 }, { times: 1 })
    const path = `/v2/${NAME}/blobs/${blob.digest}`
    const headers = { Range: 'bytes=700000-' }
    const refused = await layover.get(path, { headers })
    expect([refused.status, refused.header('retry-after')]).toEqual([503, '5'])
    expect(refused.body.toString()).toContain('sent wrong bytes')
    const answer = await layover.get(path, { headers })
    expect(answer.status).toBe(206)
    expect(answer.body.equals(blob.bytes.subarray(700_000))).toBe(true)
    await layover.stored(blob.digest)
  })
})

describe('a range of a blob that is arriving', () => {
  it('is answered at once, whether its bytes are here or not', async () => {
    const { layover, upstream } = await startLayover()
    const blob = blobOf(SIZE, 'arriving')
    upstream.addBlob(NAME, blob)
    const gate = upstream.gate({ kind: 'blob' }, { afterBytes: 1_000_000 })
    const path = `/v2/${NAME}/blobs/${blob.digest}`
    const here = await layover.get(path, { headers: { Range: 'bytes=1000-1999' } })
    expect(here.body.equals(blob.bytes.subarray(1000, 2000))).toBe(true)
    const ahead = await layover.open(path, { headers: { Range: 'bytes=1200000-1200999' } })
    expect([ahead.status, ahead.header('content-length')]).toEqual([206, '1000'])
    gate.release()
    const rest = await ahead.finish()
    expect(rest.body.equals(blob.bytes.subarray(1_200_000, 1_201_000))).toBe(true)
    await layover.stored(blob.digest)
    expect(upstream.count()).toBe(1)
  })
})

/** A download stands after its first bytes. */
async function startLargeDownload(fault: Fault = {}) {
  const { layover, upstream } = await startLayover()
  const blob = blobOf(FAR_AHEAD_BYTES + SIZE, 'far')
  upstream.addBlob(NAME, blob)
  upstream.fault({ kind: 'blob' }, fault)
  const gate = upstream.gate({ kind: 'blob' }, { afterBytes: 100_000 })
  return { layover, upstream, blob, gate, path: `/v2/${NAME}/blobs/${blob.digest}` }
}

describe('a range far ahead of a download', () => {
  it('comes straight from the upstream', async () => {
    const { blob, gate, layover, path, upstream } = await startLargeDownload()
    const whole = await layover.open(path)
    const tail = await layover.get(path, { headers: { Range: 'bytes=-1000' } })
    expect([tail.status, tail.ending]).toEqual([206, 'complete'])
    expect(tail.body.equals(blob.bytes.subarray(-1000))).toBe(true)
    gate.release()
    expect((await whole.finish()).body.equals(blob.bytes)).toBe(true)
    await layover.stored(blob.digest)
    expect(upstream.count()).toBe(2)
  })

  it('waits for it if many others are, too', async () => {
    const { blob, gate, layover, path, upstream } = await startLargeDownload()
    const whole = await layover.open(path)
    const tails = []
    for (let index = 0; index < TAILS_MAX + 4; index++) {
      tails.push(await layover.open(path, { headers: { Range: 'bytes=-200000' } }))
    }
    await waitFor('the ranges to be asked for', () => upstream.count() === 1 + TAILS_MAX)
    gate.release()
    for (const tail of tails) {
      expect((await tail.finish()).body.equals(blob.bytes.subarray(-200_000))).toBe(true)
    }
    expect((await whole.finish()).body.equals(blob.bytes)).toBe(true)
    expect(upstream.count()).toBe(1 + TAILS_MAX)
    await layover.stored(blob.digest)
  })

  it('waits for it if the upstream knows no ranges', async () => {
    const { blob, gate, layover, path } = await startLargeDownload({ range: 'ignored' })
    const tail = await layover.open(path, { headers: { Range: 'bytes=-1000' } })
    gate.release()
    expect((await tail.finish()).body.equals(blob.bytes.subarray(-1000))).toBe(true)
    await layover.stored(blob.digest)
  })
})

describe('HEAD of a blob', () => {
  it.each(['cold', 'warm'] as const)(
    'answers conditions and ranges as GET would (%s)',
    async (state) => {
      const { layover, upstream } = await startLayover()
      const blob = blobOf(SIZE, 'head')
      upstream.addBlob(NAME, blob)
      const path = `/v2/${NAME}/blobs/${blob.digest}`
      if (state === 'warm') {
        await layover.get(path)
        await layover.stored(blob.digest)
      }
      const head = async (headers: Record<string, string>): Promise<unknown[]> => {
        const answer = await layover.head(path, { headers })
        return [answer.status, answer.header('content-length'), answer.header('content-range')]
      }

      expect(await head({ Range: 'bytes=0-9' })).toEqual([206, '10', `bytes 0-9/${SIZE}`])
      expect(await head({ Range: `bytes=${SIZE}-` })).toEqual([416, '0', `bytes */${SIZE}`])
      expect(await head({ 'If-None-Match': `"${blob.digest}"` })).toEqual([
        304,
        undefined,
        undefined,
      ])
      expect(await head({})).toEqual([200, String(SIZE), undefined])
    },
  )
})
