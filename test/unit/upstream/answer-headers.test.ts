import { describe, expect, it } from 'vitest'
import {
  contentLength,
  contentRange,
  mediaType,
  nextPageQuery,
  nextTagsCursor,
} from '../../../src/upstream/answer-headers.ts'

describe('contentRange', () => {
  it.each([
    ['bytes 100-999/1000', { startOffset: 100, totalBytes: 1000 }],
    ['Bytes 0-0/*', { startOffset: 0, totalBytes: undefined }],
    ['bytes */0', { startOffset: undefined, totalBytes: 0 }],
  ])('reads %s', (text, expected) => {
    expect(contentRange({ 'content-range': text })).toEqual(expected)
  })

  it.each(['bytes 9-1/10', 'bytes 0-10/10', 'bytes 1-/10', 'items 0-1/2', 'bytes -1/2', ''])(
    'does not take %j',
    (text) => {
      expect(contentRange({ 'content-range': text })).toBeUndefined()
    },
  )
})

describe('contentLength', () => {
  it('is unknown when the body is encoded, and when it is no number', () => {
    expect(contentLength({ 'content-length': '12' })).toBe(12)
    expect(contentLength({ 'content-length': '12', 'content-encoding': 'identity' })).toBe(12)
    expect(contentLength({ 'content-length': '12', 'content-encoding': 'gzip' })).toBeUndefined()
    expect(contentLength({ 'content-length': '-1' })).toBeUndefined()
    expect(contentLength({})).toBeUndefined()
  })
})

describe('mediaType', () => {
  it('comes without parameters', () => {
    expect(mediaType({ 'content-type': 'Application/JSON; charset=utf-8' })).toBe(
      'application/json',
    )
    expect(mediaType({ 'content-type': ';' })).toBeUndefined()
  })
})

describe('nextPageQuery', () => {
  it.each([
    ['</v2/a/tags/list?n=2&last=b>; rel="next"', 'n=2&last=b'],
    ['<https://evil.test/../..?last=b#x>; rel=next', 'last=b'],
    ['</x?a=1>; rel="prev", </x?a=2>; title="t"; rel="next"', 'a=2'],
    ['<?a=1>; rel="prev next"', 'a=1'],
  ])('takes only the query: %s', (link, expected) => {
    expect(nextPageQuery({ link })).toBe(expected)
  })

  it.each([
    '</x?a=1>; rel="prev"',
    '</x?a=1>; rel="nextish"',
    '</x>; rel="next"',
    'garbage',
    `</x?a=${'b'.repeat(5000)}>; rel="next"`,
    '<'.repeat(30_000),
    `</x?a=1>${'; rel = '.repeat(4000)}`,
  ])('has nothing for %.40s', (link) => {
    expect(nextPageQuery({ link })).toBeUndefined()
  })
})

describe('nextTagsCursor', () => {
  it('reads count and last', () => {
    const link = '</v2/a/tags/list?n=2&last=b%2B>; rel="next"'
    expect(nextTagsCursor({ link }, 'z')).toEqual({ count: 2, last: 'b+' })
  })

  it('goes on after the last tag when the link names the page in other terms', () => {
    const link = '</v2/a/tags/list?next_page=abc&n=x>; rel="next"'
    expect(nextTagsCursor({ link }, 'z')).toEqual({ count: undefined, last: 'z' })
    expect(nextTagsCursor({ link }, undefined)).toBeUndefined()
  })
})
