// Tells a client, and whoever debugs one, where an answer came from: `Cache-Status` (RFC 9211), `Age`
// (RFC 9111), `X-Cache` for the eye, and a `Warning` that container tools show when the answer is old.

import type { Freshness } from '../cache/answer.ts'
import type { CacheOutcome } from '../telemetry/metrics.ts'
import type { HeaderList } from './exchange.ts'

const CACHE_NAME = 'layover'

const X_CACHE: Readonly<Record<CacheOutcome, string>> = {
  hit: 'HIT',
  revalidated: 'HIT',
  stale: 'STALE',
  miss: 'MISS',
  coalesced: 'MISS',
  bypass: 'MISS',
}

/**
 * Adds to `headers` what tells where the answer came from.
 *
 * @param nowMs since the epoch
 */
export function addFreshness(headers: HeaderList, freshness: Freshness, nowMs: number): HeaderList {
  const { asOfMs, outcome, staleReason } = freshness
  const xCache = X_CACHE[outcome]
  headers.push('Cache-Status', cacheStatus(freshness, nowMs), 'X-Cache', xCache)
  if (xCache !== 'MISS') headers.push('Age', String(Math.max(0, seconds(nowMs - asOfMs))))
  if (staleReason !== undefined)
    headers.push('Warning', `299 - "${CACHE_NAME}: ${quotable(staleReason)}"`)
  return headers
}

function cacheStatus(
  { freshUntilMs, isStored, outcome, staleCause = 'upstream-failed' }: Freshness,
  nowMs: number,
): string {
  // Infinitely old: asked for the first time since the start.
  const ttl =
    freshUntilMs === undefined || !Number.isFinite(freshUntilMs)
      ? undefined
      : seconds(freshUntilMs - nowMs)
  const remaining = ttl === undefined ? '' : `; ttl=${ttl}`
  switch (outcome) {
    case 'hit':
      return `${CACHE_NAME}; hit${remaining}`
    case 'stale':
      return `${CACHE_NAME}; hit${remaining}; detail=stale-${staleCause}`
    case 'revalidated':
      return `${CACHE_NAME}; fwd=stale; fwd-status=200${remaining}`
    case 'miss':
      return `${CACHE_NAME}; fwd=uri-miss; fwd-status=200${isStored ? '; stored' : ''}`
    case 'coalesced':
      return `${CACHE_NAME}; fwd=uri-miss; collapsed`
    case 'bypass':
      return `${CACHE_NAME}; fwd=bypass`
  }
}

function seconds(durationMs: number): number {
  return Math.floor(durationMs / 1000)
}

/** The inside of a quoted header string: visible ASCII, and short enough for a terminal. */
function quotable(text: string): string {
  return text
    .replace(/["\\]/g, "'")
    .replace(/[^ -~]+/g, ' ')
    .slice(0, 300)
}
