// What a client must get, by the rules of what a cache promises; nothing here comes from the program:
//  1. What is cached and fresh is served, whatever the upstream does; it is not even asked.
//  2. What is odd but right in the end is no client's business. A download that breaks is resumed.
//  3. What the upstream does not have, or does not let us have, is 404, also if it is cached: it is gone.
//  4. While the upstream cannot be asked, what is cached is served and marked; else 503, with when to ask again.
//  5. A body that cannot be completed, or is wrong, ends by FIN short of its length: never clean, never reset.
//     What an earlier download has left completes no answer before the whole is verified.
//  6. A part of a blob is served as soon as it is there. One that ends before the blob does cannot be verified
//     before it is sent; one that is beyond the end of a false blob is not refused for good.

import type { Resource } from './fault-row.ts'
import { BLOB_BYTES } from './fault-row.ts'
import { meaningIn, type Cell } from './matrix.ts'

/** Both inclusive. */
export interface Part {
  readonly first: number
  readonly last: number
}

export interface Expected {
  /** `as-sent`: complete, but with bytes that are as wrong as the upstream's. */
  readonly outcome: 'content' | 'absent' | 'unavailable' | 'short' | 'as-sent'
  /** Of content: whether the cache alone had to do with it, the upstream too, or could not. */
  readonly source?: 'cache' | 'upstream' | 'stale'
  readonly retryAfterS?: number
}

/** What a client is told to wait if the upstream does not say. */
const RETRY_AFTER_DEFAULT_S = 5
/** The least that the part on disk has when a cell begins: more than what stands before the middle. */
export const PART_MIN_BYTES = 120_000
/** The most that the part on disk has when a cell begins. */
export const PART_MAX_BYTES = 200_000
/** A tag that is not there is not asked for again for so long. */
const ABSENCE_MS = 10_000
/** For how long at most an upstream that failed is not asked about what is known. */
const SUSPECT_MAX_MS = 60_000

/** @param part of a blob; undefined: the whole */
export function expectedOf(cell: Cell, part?: Part): Expected {
  const { state } = cell
  if (state === 'warm') return { outcome: 'content', source: 'cache' }
  if (!strikes(cell)) return { outcome: 'content', source: 'upstream' }
  const meaning = meaningIn(cell)
  switch (meaning.is) {
    case 'harmless':
      return { outcome: 'content', source: 'upstream' }
    case 'absent':
      return { outcome: 'absent' }
    case 'outage':
      if (state === 'stale' || state === 'moved') return { outcome: 'content', source: 'stale' }
      return { outcome: 'unavailable', retryAfterS: meaning.retryAfterS ?? RETRY_AFTER_DEFAULT_S }
    case 'cut':
      if (isHeldBack(cell, part)) return { outcome: 'short' }
      return cutShort(part, arrivingBytes(cell, meaning.arrivesBytes))
    case 'wrong':
      if (isHeldBack(cell, part) && meaning.announcedBytes >= BLOB_BYTES)
        return { outcome: 'short' }
      return wrong(part, meaning)
  }
}

/** Whether it begins in the part on disk: then it comes with the verification, or not at all. */
function isHeldBack({ state }: Cell, part: Part | undefined): boolean {
  return state === 'part' && part !== undefined && part.first < PART_MIN_BYTES
}

/** Whether the fault meets an answer that is needed. */
export function strikes(cell: Cell): boolean {
  const { resource, row, state } = cell
  if (state === 'warm') return false
  // A tag that still means the same manifest costs one HEAD, and no body.
  if (resource === 'tag' && state === 'stale' && row.shows === 'body') return false
  const meaning = meaningIn(cell)
  // The part on disk is older than the fault: what it has is not asked for again.
  const isRestRight =
    meaning.is === 'wrong' && meaning.announcedBytes === BLOB_BYTES && meaning.fromByte === 0
  return !(state === 'part' && isRestRight)
}

function arrivingBytes({ state }: Cell, ownBytes: number): number {
  return Math.min(BLOB_BYTES - 1, ownBytes + (state === 'part' ? PART_MAX_BYTES : 0))
}

function cutShort(part: Part | undefined, arrivesBytes: number): Expected {
  const isComplete = part !== undefined && part.last < arrivesBytes
  return isComplete ? { outcome: 'content', source: 'upstream' } : { outcome: 'short' }
}

function wrong(
  part: Part | undefined,
  { announcedBytes, fromByte }: { announcedBytes: number; fromByte: number },
): Expected {
  if (!part) return { outcome: 'short' }
  if (part.first >= announcedBytes) {
    return { outcome: 'unavailable', retryAfterS: RETRY_AFTER_DEFAULT_S }
  }
  if (part.last >= announcedBytes - 1 || part.last === BLOB_BYTES - 1) return { outcome: 'short' }
  return part.last < fromByte
    ? { outcome: 'content', source: 'upstream' }
    : { outcome: 'as-sent', source: 'upstream' }
}

const ABSENT_CODES: Readonly<Record<Resource, string>> = {
  tag: 'MANIFEST_UNKNOWN',
  digest: 'MANIFEST_UNKNOWN',
  token: 'MANIFEST_UNKNOWN',
  referrers: 'MANIFEST_UNKNOWN',
  blob: 'BLOB_UNKNOWN',
  tags: 'NAME_UNKNOWN',
}

export function errorCodeOf({ resource }: Cell, outcome: 'absent' | 'unavailable'): string {
  return outcome === 'absent' ? ABSENT_CODES[resource] : 'UNAVAILABLE'
}

/** How long after the end of the fault clients may still be told what it made of the answer. */
export function lastingMs(cell: Cell): number {
  const { row, state } = cell
  const meaning = meaningIn(cell)
  if (state === 'warm') return 0
  const asksForTag = cell.resource === 'tag' || cell.resource === 'token'
  const absenceMs = meaning.is === 'absent' && asksForTag ? ABSENCE_MS : 0
  const suspectMs = meaning.is === 'outage' && state === 'moved' ? SUSPECT_MAX_MS : 0
  return Math.max(row.lastsOnMs ?? 0, absenceMs, suspectMs)
}
