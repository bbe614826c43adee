import { describe, expect, it } from 'vitest'
import type { Freshness } from '../../../src/cache/answer.ts'
import { addFreshness } from '../../../src/http/freshness-headers.ts'
import { byName } from '../../support/header-list.ts'

const NOW_MS = 1_000_000

const headersOf = (freshness: Freshness): Record<string, string> =>
  byName(addFreshness([], freshness, NOW_MS))

describe('freshness headers', () => {
  it.each([
    ['hit', 'HIT', 'layover; hit; ttl=30'],
    ['stale', 'STALE', 'layover; hit; ttl=30; detail=stale-upstream-failed'],
    ['revalidated', 'HIT', 'layover; fwd=stale; fwd-status=200; ttl=30'],
    ['miss', 'MISS', 'layover; fwd=uri-miss; fwd-status=200; stored'],
    ['coalesced', 'MISS', 'layover; fwd=uri-miss; collapsed'],
    ['bypass', 'MISS', 'layover; fwd=bypass'],
  ] as const)('of %s are %s and "%s"', (outcome, xCache, cacheStatus) => {
    const times = { asOfMs: NOW_MS - 20_999, freshUntilMs: NOW_MS + 30_999 }
    const freshness = { outcome, ...times, isStored: true }
    const headers = headersOf(freshness)
    expect(headers['X-Cache']).toBe(xCache)
    expect(headers['Cache-Status']).toBe(cacheStatus)
    expect(headers['Age']).toBe(xCache === 'MISS' ? undefined : '20')
  })

  it('do not say stored of what is not kept', () => {
    const freshness = { outcome: 'miss', asOfMs: NOW_MS } as const
    const headers = headersOf(freshness)
    expect(headers['Cache-Status']).toBe('layover; fwd=uri-miss; fwd-status=200')
  })

  it('name no ttl for what never changes, nor for what was not asked for since the start', () => {
    for (const freshUntilMs of [undefined, Number.NEGATIVE_INFINITY]) {
      const freshness = { outcome: 'hit', asOfMs: NOW_MS, freshUntilMs } as const
      expect(headersOf(freshness)['Cache-Status']).toBe('layover; hit')
    }
  })

  it('name a ttl below zero for what is older than it should be', () => {
    const freshness = { outcome: 'stale', asOfMs: 0, freshUntilMs: NOW_MS - 5_000 } as const
    expect(headersOf(freshness)['Cache-Status']).toContain('ttl=-5')
  })

  it('name no age below zero, though the clock was set back', () => {
    const freshness = { outcome: 'hit', asOfMs: NOW_MS + 60_000 } as const
    expect(headersOf(freshness)['Age']).toBe('0')
  })

  it('tell an old answer that saves pulls from one that replaces a failure', () => {
    const freshness = { outcome: 'stale', asOfMs: 0, staleCause: 'saving-pulls' } as const
    const status = headersOf(freshness)['Cache-Status']
    expect(status).toBe('layover; hit; detail=stale-saving-pulls')
  })

  it('warn of an old answer in one short line of ASCII', () => {
    const staleReason = `bad "news"\r\nSet-Cookie: x=1\u2028\\ ${'x'.repeat(1000)}`
    const freshness = { outcome: 'stale', asOfMs: 0, staleReason } as const
    const warning = headersOf(freshness)['Warning'] ?? ''
    expect(warning).toMatch(/^299 - "layover: bad 'news' Set-Cookie: x=1 ' x+"$/)
    expect(warning.length).toBeLessThan(330)
  })
})
