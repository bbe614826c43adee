// What can be wrong with an answer. A fault is plain data (it survives JSON), several may be combined, and
// the usual ones have names. This file changes answers; fake-upstream-wire.ts does what concerns time and
// the connection.

import { brotliCompressSync, deflateSync, gzipSync } from 'node:zlib'
import { digestOf } from '../../src/oci/digest.ts'
import { errorAnswer, rangeAnswer, type Answer } from './fake-upstream-answers.ts'

export interface Fault {
  // Time.
  /** Waits before the headers. */
  readonly latencyMs?: number
  /** Never answers; the connection stays open. */
  readonly hangBeforeHeaders?: true
  /** Sends that many bytes of the body, then nothing; the connection stays open. */
  readonly hangAtByte?: number
  /** Sends the body no faster than this. */
  readonly bytesPerSecond?: number
  /** Sends the body in small portions. */
  readonly drip?: { readonly bytes: number; readonly intervalMs: number }

  // The connection.
  /** Ends the connection after that many bytes of the body; `last` is before the last byte. */
  readonly cutAtByte?: number | 'last' | 'before-headers'
  /** Default `fin`. After `rst` a client has received at most the bytes before the cut. */
  readonly cutBy?: 'fin' | 'rst'
  /** Answers with something that is not HTTP. */
  readonly notHttp?: true

  // The body. Positions count from the start of the content, whatever range was asked for.
  /** Leaves only that many bytes; Content-Length agrees with them. */
  readonly truncateTo?: number
  /** Adds that many spaces; Content-Length agrees with them. */
  readonly appendBytes?: number
  /** Inverts a byte. */
  readonly flipByteAt?: number
  /** Merged into a JSON body; null removes a field. */
  readonly mergeJson?: Readonly<Record<string, unknown>>
  /** Compresses although `identity` was asked for; `unheard-of` only claims to. */
  readonly contentEncoding?: 'gzip' | 'deflate' | 'br' | 'unheard-of'

  // The answer as a whole.
  /** Replaces the answer: 401 with the right challenge, from 400 on with the usual JSON, else empty. */
  readonly status?: number
  /** Replaces the body. */
  readonly body?: string
  readonly redirect?: RedirectFault
  /** A tag is moved to this digest as soon as this answer is made. */
  readonly moveTagTo?: string

  // The headers.
  /** Set last, in this spelling; null removes one. */
  readonly headers?: Readonly<Record<string, string | readonly string[] | null>>
  /** `close`: neither length nor chunks, the end of the connection is the end of the body. */
  readonly framing?: 'chunked' | 'close'
  /** A wrong length. The connection ends after the body. */
  readonly contentLength?: number

  // Ranges.
  /** `ignored`: 200 with everything. `refused`: 416. `shifted`: 206 with the range one byte further on. */
  readonly range?: 'ignored' | 'refused' | 'shifted'
}

export interface RedirectFault {
  /** Sent as it is. Without it, and without `loop`, a chain begins that ends at the content. */
  readonly location?: string
  /** To the same URL again. */
  readonly loop?: true
  /** Length of the chain; default 1. */
  readonly hops?: number
  /** Locations without scheme and host. */
  readonly relative?: true
  /** The chain leads to the CDN's port. */
  readonly crossHost?: true
  /** To the CDN by a signed URL: one that works once, or one that is refused with 403. For blobs. */
  readonly signed?: 'once' | 'expired'
  /** Default 307. */
  readonly status?: number
}

const WRONG_DIGEST = digestOf(Buffer.from('something else'))

const HTML = '<!DOCTYPE html><html><body><h1>Sign in to the hotel Wi-Fi</h1></body></html>'

const HTML_HEADERS = { 'Content-Type': 'text/html; charset=utf-8', 'Docker-Content-Digest': null }

/** Longer than any answer here, so that its end never comes. */
const LENGTH_TOO_LONG_BYTES = 2_000_000

/** The usual faults, each with what it does. To be narrowed with a match: `no-head` is meant for HEAD. */
const TABLE = {
  // Time.
  slow: ['waits a moment before the headers', { latencyMs: 15 }],
  throttled: ['sends 6 MB a second', { bytesPerSecond: 6_000_000 }],
  dripping: ['sends 16 bytes at a time', { drip: { bytes: 16, intervalMs: 1 } }],
  hang: ['never answers', { hangBeforeHeaders: true }],
  'hang-after-headers': ['sends headers, then nothing', { hangAtByte: 0 }],
  'hang-in-body': ['sends ten bytes, then nothing', { hangAtByte: 10 }],

  // The connection.
  'cut-before-headers': ['ends without an answer', { cutAtByte: 'before-headers' }],
  'cut-at-start': ['ends after the headers', { cutAtByte: 0 }],
  'cut-in-first-chunk': ['ends after 100 bytes', { cutAtByte: 100 }],
  'cut-at-64k': ['ends after 64 KiB', { cutAtByte: 65_536 }],
  'cut-at-last-byte': ['ends before the last byte', { cutAtByte: 'last' }],
  'reset-before-headers': [
    'resets without an answer',
    { cutAtByte: 'before-headers', cutBy: 'rst' },
  ],
  'reset-at-start': ['resets after the headers', { cutAtByte: 0, cutBy: 'rst' }],
  'reset-in-first-chunk': ['resets after 100 bytes', { cutAtByte: 100, cutBy: 'rst' }],
  'reset-at-64k': ['resets after 64 KiB', { cutAtByte: 65_536, cutBy: 'rst' }],
  'reset-at-last-byte': ['resets before the last byte', { cutAtByte: 'last', cutBy: 'rst' }],
  'not-http': ['answers as an SSH server', { notHttp: true }],

  // The body and its length.
  'empty-body': ['a clean answer of no bytes', { truncateTo: 0 }],
  'short-body': ['a clean answer of ten bytes', { truncateTo: 10 }],
  'long-body': ['a clean answer, one byte too long', { appendBytes: 1 }],
  'huge-body': ['10 MB more than there should be', { appendBytes: 10_000_000 }],
  'wrong-first-byte': ['the first byte is inverted', { flipByteAt: 0 }],
  'length-too-long': ['Content-Length is too large', { contentLength: LENGTH_TOO_LONG_BYTES }],
  'length-too-short': ['Content-Length is 20', { contentLength: 20 }],
  'no-content-length': ['the end of the connection is the end', { framing: 'close' }],
  chunked: ['chunks instead of Content-Length', { framing: 'chunked' }],
  gzip: ['compressed, although identity was asked for', { contentEncoding: 'gzip' }],
  brotli: ['the same with br', { contentEncoding: 'br' }],
  'unknown-encoding': [
    'says that it is compressed in a way that nobody knows',
    { contentEncoding: 'unheard-of' },
  ],
  garbage: ['neither JSON nor anything else', { body: '\u0000{"token": not json' }],
  'html-200': ['200 with a web page', { body: HTML, headers: HTML_HEADERS }],
  'digest-header-missing': [
    'no Docker-Content-Digest',
    { headers: { 'Docker-Content-Digest': null } },
  ],
  'digest-header-wrong': [
    'the Docker-Content-Digest of something else',
    { headers: { 'Docker-Content-Digest': WRONG_DIGEST } },
  ],

  // Statuses.
  unauthorized: ['401, whatever the request carries', { status: 401 }],
  denied: ['403', { status: 403 }],
  'not-found': ['404', { status: 404 }],
  'html-404': ['404 with a web page', { status: 404, body: HTML, headers: HTML_HEADERS }],
  'no-head': ['405, for HEAD', { status: 405 }],
  'rate-limited': ['429', { status: 429 }],
  'rate-limited-60s': [
    '429 with Retry-After: 60',
    { status: 429, headers: { 'Retry-After': '60' } },
  ],
  'rate-limited-until-date': [
    '429 with a date in Retry-After',
    { status: 429, headers: { 'Retry-After': 'Fri, 01 Jan 2027 00:00:00 GMT' } },
  ],
  'rate-limited-absurdly': [
    '429 with a Retry-After of ages',
    { status: 429, headers: { 'Retry-After': '99999999999999999999' } },
  ],
  'rate-limited-as-text': [
    '429 without JSON',
    { status: 429, body: 'Too Many Requests\n', headers: { 'Content-Type': 'text/plain' } },
  ],
  'internal-error': ['500', { status: 500 }],
  'bad-gateway': ['502 with a web page', { status: 502, body: HTML, headers: HTML_HEADERS }],
  unavailable: ['503', { status: 503 }],
  'unavailable-120s': [
    '503 with Retry-After: 120',
    { status: 503, headers: { 'Retry-After': '120' } },
  ],
  'gateway-timeout': ['504', { status: 504 }],

  // Redirects.
  'redirect-relative': ['to another path, without a host', { redirect: { relative: true } }],
  'redirect-cross-host': ['to another host', { redirect: { crossHost: true } }],
  'redirect-thrice': ['three hops', { redirect: { hops: 3 } }],
  'redirect-11-hops': ['eleven hops', { redirect: { hops: 11 } }],
  'redirect-loop': ['to itself', { redirect: { loop: true } }],
  'redirect-without-location': ['307 and no Location', { status: 307 }],
  'redirect-to-http': ['to plain http', { redirect: { location: 'http://127.0.0.1:9/blob' } }],
  'redirect-to-loopback': [
    'to 127.0.0.1, where nobody listens',
    { redirect: { location: 'http://127.0.0.1:9/blob' } },
  ],
  'redirect-to-loopback-6': ['to [::1]', { redirect: { location: 'http://[::1]:9/blob' } }],
  'redirect-to-link-local': [
    'to the metadata service of a cloud',
    { redirect: { location: 'http://169.254.169.254/latest/meta-data/' } },
  ],
  'redirect-signed': ['to the CDN, by a URL that works once', { redirect: { signed: 'once' } }],
  'redirect-expired': [
    'to the CDN, by a URL that has expired',
    { redirect: { signed: 'expired' } },
  ],

  // Ranges.
  'range-ignored': ['200 with everything', { range: 'ignored' }],
  'range-refused': ['416', { range: 'refused' }],
  'range-shifted': ['206 with the range one byte further on', { range: 'shifted' }],

  // Tokens and lists.
  'no-expiry': ['a token without expires_in', { mergeJson: { expires_in: null } }],
  'no-token': ['an answer without a token', { mergeJson: { token: null, access_token: null } }],
  'link-to-other-host': [
    'the next page is at another host',
    { headers: { Link: '<https://example.invalid/v2/x/tags/list>; rel="next"' } },
  ],
  'link-upwards': [
    'the next page is outside of the registry',
    { headers: { Link: '</v2/../../secret?n=1&last=a>; rel="next"' } },
  ],
  'link-malformed': ['no Link by any grammar', { headers: { Link: '<<<>;;;rel=next' } }],
  'link-endless': [
    'a Link of 8 KiB',
    { headers: { Link: `</v2/x/tags/list?last=${'a'.repeat(8192)}>; rel="next"` } },
  ],
} as const satisfies Record<string, readonly [about: string, fault: Fault]>

export type FaultName = keyof typeof TABLE

type NamedFaults = { readonly [Name in FaultName]: (typeof TABLE)[Name][1] }

/** By name: what to tell the upstream. */
export const NAMED_FAULTS = mapped(([, fault]) => fault) as NamedFaults

/** By name: what it does, in a few words. */
export const FAULT_NOTES = mapped(([about]) => about)

function mapped<T>(of: (entry: readonly [string, Fault]) => T): Readonly<Record<FaultName, T>> {
  const entries = Object.entries(TABLE).map(([name, entry]) => [name, of(entry)])
  return Object.fromEntries(entries) as Record<FaultName, T>
}

/** Later ones win, but headers add up. */
export function combined(faults: readonly Fault[]): Fault {
  const headers: Fault['headers'] = Object.assign({}, ...faults.map((fault) => fault.headers))
  return Object.assign({}, ...faults, { headers })
}

/**
 * The answer that a fault makes of the right one, without its redirects.
 *
 * @param range the request's Range header
 * @param challenge the 401 that belongs to the request
 */
export function faultyAnswer(
  right: Answer,
  fault: Fault,
  range: string | undefined,
  challenge: Answer,
): Answer {
  let answer = right
  if (fault.status !== undefined) answer = replacement(fault.status, challenge)
  answer = { ...answer, body: faultyBody(answer.body, fault) }
  if (fault.contentEncoding !== undefined) answer = encoded(answer, fault.contentEncoding)
  else if (answer.headers['Accept-Ranges'] !== undefined) answer = ranged(answer, fault, range)
  const headers: Record<string, string | readonly string[]> = { ...answer.headers }
  for (const [name, value] of Object.entries(fault.headers ?? {})) {
    const spelling = Object.keys(headers).find((key) => key.toLowerCase() === name.toLowerCase())
    if (spelling !== undefined) delete headers[spelling]
    if (value !== null) headers[name] = value
  }
  return { ...answer, headers }
}

const ERROR_CODES: Readonly<Record<number, string>> = {
  400: 'BAD_REQUEST',
  403: 'DENIED',
  404: 'NOT_FOUND',
  405: 'UNSUPPORTED',
  429: 'TOOMANYREQUESTS',
  503: 'UNAVAILABLE',
}

function replacement(status: number, challenge: Answer): Answer {
  if (status === 401) return challenge
  if (status >= 400) return errorAnswer(status, ERROR_CODES[status] ?? 'UNKNOWN')
  return { status, headers: {}, body: Buffer.alloc(0) }
}

function faultyBody(right: Buffer, fault: Fault): Buffer {
  let body = fault.body === undefined ? right : Buffer.from(fault.body)
  if (fault.mergeJson) body = merged(body, fault.mergeJson)
  if (fault.flipByteAt !== undefined && fault.flipByteAt < body.length) {
    body = Buffer.from(body)
    body.writeUInt8(body.readUInt8(fault.flipByteAt) ^ 0xff, fault.flipByteAt)
  }
  if (fault.truncateTo !== undefined) body = body.subarray(0, fault.truncateTo)
  if (fault.appendBytes === undefined) return body
  return Buffer.concat([body, Buffer.alloc(fault.appendBytes, ' ')])
}

function merged(body: Buffer, changes: Readonly<Record<string, unknown>>): Buffer {
  const right: Readonly<Record<string, unknown>> = JSON.parse(body.toString())
  const json = { ...right, ...changes }
  const kept = Object.entries(json).filter(([, value]) => value !== null)
  return Buffer.from(JSON.stringify(Object.fromEntries(kept)))
}

const ENCODERS = {
  gzip: (body: Buffer) => gzipSync(body, { level: 1 }),
  deflate: (body: Buffer) => deflateSync(body),
  br: (body: Buffer) => brotliCompressSync(body),
  'unheard-of': (body: Buffer) => body,
} as const

/** What is compressed on the way has no ranges. */
function encoded(answer: Answer, encoding: keyof typeof ENCODERS): Answer {
  const headers: Record<string, string | readonly string[]> = { ...answer.headers }
  delete headers['Accept-Ranges']
  headers['Content-Encoding'] = encoding
  return { ...answer, headers, body: ENCODERS[encoding](answer.body) }
}

function ranged(answer: Answer, fault: Fault, range: string | undefined): Answer {
  if (fault.range === 'ignored') return answer
  if (fault.range === 'refused') {
    return rangeAnswer(answer, range && `bytes=${answer.body.length}-`)
  }
  return rangeAnswer(answer, range, fault.range === 'shifted' ? 1 : 0)
}
