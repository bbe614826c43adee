// The words of the matrix: what a fault is, where it strikes, and what it means. A row says what a fault
// amounts to; what clients get follows from that by rule (see expectation.ts).

import type { Fault, FaultName } from '../support/fake-upstream-faults.ts'
import type { RequestKind } from '../support/fake-upstream-requests.ts'

/** What clients ask for while the fault lasts; `token`: a tag, for which a token is needed first. */
export const RESOURCES = ['tag', 'digest', 'blob', 'token', 'tags', 'referrers'] as const
export type Resource = (typeof RESOURCES)[number]

/** Of the whole image: everything but the token, which is no content. */
export const CONTENT = ['tag', 'digest', 'blob', 'tags', 'referrers'] as const
/** What is small and read whole before it is passed on. */
export const SMALL = ['tag', 'digest', 'token', 'tags', 'referrers'] as const
export const MANIFESTS = ['tag', 'digest'] as const

/**
 * What the cache knows. `cold`: nothing. `warm`: all, and fresh. `stale`: all, but the time for which it is
 * taken for granted is over. `moved`: the same, and the tag means another image now. `part`: the beginning
 * of the blob, left by a download that was given up.
 */
export const STATES = ['cold', 'warm', 'stale', 'moved', 'part'] as const
export type State = (typeof STATES)[number]

/**
 * `one`: GET. `head`: HEAD. `twenty`: five before the upstream answers, and fifteen while it sends; every
 * fifth of them wants the end of a blob alone. `range`: the middle of a blob. `slow`: takes nothing before
 * another client has everything. `leaves`: before it has everything.
 */
export const CLIENTS = ['one', 'head', 'twenty', 'range', 'slow', 'leaves'] as const
export type ClientKind = (typeof CLIENTS)[number]

export const BLOB_BYTES = 600_000

/** How a fault is told to the fake upstream. */
export interface Plan {
  /** Default: all requests for the resource. */
  readonly kinds?: readonly RequestKind[]
  readonly method?: 'GET' | 'HEAD'
  /** Whatever repository it is for, and if it is for none. */
  readonly strikesAll?: boolean
  /** `first-image`: only what concerns the manifest that the tag means at first. */
  readonly reference?: 'first-image'
  readonly fault: Fault | FaultName | 'tag-moves'
  /** Default: until it is mended. */
  readonly times?: number
}

export type Meaning =
  /** Odd, but right in the end: no client notices. */
  | { readonly is: 'harmless' }
  /** The upstream does not have it, or does not let us have it. */
  | { readonly is: 'absent' }
  /** The upstream cannot be asked now. */
  | { readonly is: 'outage'; readonly retryAfterS?: number }
  /** A blob's headers come, but never more than this of its body. */
  | { readonly is: 'cut'; readonly arrivesBytes: number }
  /** A blob of this length comes, whose bytes are wrong from `fromByte` on. */
  | { readonly is: 'wrong'; readonly announcedBytes: number; readonly fromByte: number }

export const HARMLESS: Meaning = { is: 'harmless' }
export const ABSENT: Meaning = { is: 'absent' }
export const OUTAGE: Meaning = { is: 'outage' }

export type HostileContent =
  'oversized' | 'schema-1' | 'image-and-index' | 'unknown-media-type' | 'sha512' | 'many-tags'

export interface FaultRow {
  readonly name: string
  /** One line for people. */
  readonly about: string
  readonly at: readonly Resource[]
  readonly means: Meaning
  /** Where it means something else. */
  readonly meansAt?: Partial<Record<Resource, Meaning>>
  /** `headers`: it strikes before a body, HEAD too. `body`: HEAD is answered as it should be. */
  readonly shows: 'headers' | 'body'
  /** Where it means something else for the rest of a blob than for the whole. */
  readonly meansForRest?: Meaning
  readonly plans: readonly Plan[]
  /** Nobody listens where the upstream was. */
  readonly isDown?: true
  /** What the upstream holds is odd by itself, and stays so. */
  readonly content?: HostileContent
  /** Default: all. */
  readonly states?: readonly State[]
  /** An upstream and a cache of their own kind; default `anonymous`. */
  readonly station?: StationKind
  /** A token for the repository is at hand before the fault. */
  readonly holdsToken?: true
  /** The download breaks when everything before the break has been taken; else a break may take it along. */
  readonly breaksLate?: true
  /** Wrong bytes stay on disk that nothing tells from right ones: who asks next may find out, by an end that is short. */
  readonly leavesWrong?: true
  /** Counters that must have moved: content that was not what its digest says, a download that went on. */
  readonly counts?: 'mismatch' | 'resume'
  /** How long clients are told the same, or an old answer, after it is over; default 0. */
  readonly lastsOnMs?: number
}

/** `login`: the cache has a password. `tls`: the upstream speaks https. */
export type StationKind = 'anonymous' | 'login' | 'tls'

export function meaningOf(row: FaultRow, resource: Resource): Meaning {
  return row.meansAt?.[resource] ?? row.means
}
