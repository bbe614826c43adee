// Range against a model: for every header that a client may send, the answer is what RFC 9110 §14 allows.

import * as fc from 'fast-check'
import { describe, expect, it } from 'vitest'
import { selectRange } from '../../src/http/range.ts'

const ETAG = '"sha256:abc"'
const SIZES = fc.integer({ min: 0, max: 1000 })
const POSITIONS = fc.integer({ min: 0, max: 2000 })

describe('selectRange', () => {
  it('answers first-last as arrays do', () => {
    fc.assert(
      fc.property(POSITIONS, POSITIONS, SIZES, (first, last, sizeBytes) => {
        const range = selectRange(`bytes=${first}-${last}`, undefined, { etag: ETAG, sizeBytes })
        const all = Array.from({ length: sizeBytes }, (_, index) => index)
        const part = all.slice(first, last + 1)
        if (last < first) expect(range).toBe('whole')
        else if (part.length === 0) expect(range).toBe('unsatisfiable')
        else expect(range).toEqual({ first: part[0], last: part.at(-1) })
      }),
    )
  })

  it('answers first- and -count as arrays do', () => {
    fc.assert(
      fc.property(POSITIONS, SIZES, fc.boolean(), (number, sizeBytes, isSuffix) => {
        const header = isSuffix ? `bytes=-${number}` : `bytes=${number}-`
        const range = selectRange(header, undefined, { etag: ETAG, sizeBytes })
        const all = Array.from({ length: sizeBytes }, (_, index) => index)
        const part = isSuffix ? all.slice(Math.max(0, sizeBytes - number)) : all.slice(number)
        if (part.length === 0) expect(range).toBe('unsatisfiable')
        else expect(range).toEqual({ first: part[0], last: part.at(-1) })
      }),
    )
  })

  it('never leaves the content, whatever is asked', () => {
    const headers = fc.oneof(
      fc.string(),
      fc.string().map((text) => `bytes=${text}`),
      fc.stringMatching(/^bytes=\d{0,400}-\d{0,400}$/),
    )
    fc.assert(
      fc.property(headers, SIZES, (header, sizeBytes) => {
        const range = selectRange(header, undefined, { etag: ETAG, sizeBytes })
        if (typeof range === 'string') return
        expect(range.first).toBeGreaterThanOrEqual(0)
        expect(range.last).toBeGreaterThanOrEqual(range.first)
        expect(range.last).toBeLessThan(sizeBytes)
        expect(Number.isInteger(range.first) && Number.isInteger(range.last)).toBe(true)
      }),
    )
  })

  it('gives the whole whenever If-Range names anything but this content', () => {
    fc.assert(
      fc.property(fc.string(), (ifRange) => {
        const range = selectRange('bytes=0-0', ifRange, { etag: ETAG, sizeBytes: 10 })
        expect(range).toEqual(ifRange.trim() === ETAG ? { first: 0, last: 0 } : 'whole')
      }),
    )
  })
})
