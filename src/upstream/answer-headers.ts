// What the headers of a registry's answer say. All of it may be missing, wrong or hostile: what cannot be
// understood is undefined, never an exception.

import type { Clock } from '../clock.ts'
import type { IncomingHttpHeaders } from 'node:http'
import { parseDigest, type Digest } from '../oci/digest.ts'
import { isEncoded } from './response-body.ts'

/** What is asked beyond this is a mistake, or an attempt to switch us off. */
const RETRY_AFTER_MAX_MS = 60 * 60 * 1000

export interface ContentRange {
  /** Undefined in the answer to a range beyond the end (416): nothing of the content is sent. */
  readonly startOffset: number | undefined
  readonly totalBytes: number | undefined
}

/** @see https://www.rfc-editor.org/rfc/rfc9110#section-14.4 */
export function contentRange(headers: IncomingHttpHeaders): ContentRange | undefined {
  const text = headers['content-range']?.trim() ?? ''
  const match = /^bytes\s+(?:(\d{1,15})-(\d{1,15})|\*)\/(?:(\d{1,15})|\*)$/i.exec(text)
  if (!match) return undefined
  const [first, last, total] = match.slice(1).map((digits) => (digits ? Number(digits) : undefined))
  if (first !== undefined && last !== undefined && last < first) return undefined
  if (last !== undefined && total !== undefined && total <= last) return undefined
  return { startOffset: first, totalBytes: total }
}

/** Of the content in bytes: what an encoded body's length says is of no use to anyone. */
export function contentLength(headers: IncomingHttpHeaders): number | undefined {
  const text = headers['content-length']
  if (isEncoded(headers) || text === undefined || !/^\d{1,15}$/.test(text)) return undefined
  return Number(text)
}

/** Without its parameters, in lower case. */
export function mediaType(headers: IncomingHttpHeaders): string | undefined {
  return headers['content-type']?.split(';')[0]?.trim().toLowerCase() || undefined
}

/** What the upstream claims; to be verified. */
export function contentDigest(headers: IncomingHttpHeaders): Digest | undefined {
  const text = headers['docker-content-digest']
  return typeof text === 'string' ? parseDigest(text) : undefined
}

/** Beyond any real page marker; the marker comes back to us from clients. */
const QUERY_LENGTH_MAX = 4096

/**
 * The query string (without `?`) of the `Link` to the next page. Only the query, since it goes to the URL
 * that we would ask anyway: whatever host or path a hostile (or badly proxied) upstream names, nobody asks it.
 *
 * @see https://www.rfc-editor.org/rfc/rfc8288#section-3
 */
export function nextPageQuery({ link }: IncomingHttpHeaders): string | undefined {
  const text = typeof link === 'string' ? link : (link ?? []).join(', ')
  for (const [, target = '', params = ''] of text.matchAll(/<([^<>]*)>([^<]*)/g)) {
    if (!/;\s*rel\s*=\s*(?:next\b|"(?:[^"]*\s)?next[\s"])/i.test(params)) continue
    const query = /^[^?#]*\?([^#]*)/.exec(target)?.[1]
    return query !== undefined && query.length <= QUERY_LENGTH_MAX ? query : undefined
  }
  return undefined
}

/**
 * What registries say in the query of a `Link` of where a list goes on. No other parameter is handed on: the marker
 * comes back to us from clients, and another might name another registry (`ns`) or repository.
 */
const PAGE_PARAMETER =
  /^(?:page|p|n|limit|(?:page|per)_?size|per_?page|last|next|start|offset|after|cursor|marker|(?:next_?)?(?:page_?)?token|next_?page|continuation_?token)$/i

/**
 * Of a query string, what says where a list goes on, spelled as it was; undefined if nothing does.
 *
 * @param query without `?`; from an upstream, or from a client that says it is
 */
export function pageMarkerOf(query: string): string | undefined {
  if (query.length > QUERY_LENGTH_MAX) return undefined
  const kept = query.split('&').filter((pair) => {
    const [name = ''] = pair.split('=', 1)
    // Some servers take a semicolon for a separator, too.
    return PAGE_PARAMETER.test(name) && !pair.includes(';')
  })
  return kept.length > 0 ? kept.join('&') : undefined
}

/** Where a list of tags goes on: the query of its next page, taken apart. */
export interface TagsCursor {
  readonly count: number | undefined
  readonly last: string
}

/** @param lastTag where to go on if the link does not say: some name the next page in their own terms */
export function nextTagsCursor(
  headers: IncomingHttpHeaders,
  lastTag: string | undefined,
): TagsCursor | undefined {
  const query = nextPageQuery(headers)
  if (query === undefined) return undefined
  const params = new URLSearchParams(query)
  const last = params.get('last') || lastTag
  const count = params.get('n') ?? ''
  if (last === undefined) return undefined
  return { count: /^\d{1,9}$/.test(count) ? Number(count) : undefined, last }
}

/**
 * @returns undefined when the header is missing or malformed; at most one hour
 * @see https://www.rfc-editor.org/rfc/rfc9110#section-10.2.3
 */
export function retryAfterMsOf(headers: IncomingHttpHeaders, clock: Clock): number | undefined {
  const value = headers['retry-after']?.trim()
  if (!value) return undefined
  const waitMs = /^\d+$/.test(value) ? Number(value) * 1000 : Date.parse(value) - clock.now()
  return Number.isNaN(waitMs) ? undefined : Math.min(Math.max(waitMs, 0), RETRY_AFTER_MAX_MS)
}
