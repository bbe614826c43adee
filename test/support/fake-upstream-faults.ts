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
  /** Default 307. */
  readonly status?: number
}

const WRONG_DIGEST = digestOf(Buffer.from('something else'))

const HTML = '<!DOCTYPE html><html><body><h1>Sign in to the hotel Wi-Fi</h1></body></html>'

const HTML_HEADERS = { 'Content-Type': 'text/html; charset=utf-8', 'Docker-Content-Digest': null }

/** The usual faults. To be narrowed with a match: `no-head` is meant for `{ method: 'HEAD' }`. */
export const NAMED_FAULTS = {
  hang: { hangBeforeHeaders: true },
  'cut-before-headers': { cutAtByte: 'before-headers' },
  'cut-at-start': { cutAtByte: 0 },
  'cut-in-first-chunk': { cutAtByte: 100 },
  'cut-at-64k': { cutAtByte: 65_536 },
  'cut-at-last-byte': { cutAtByte: 'last' },
  'reset-before-headers': { cutAtByte: 'before-headers', cutBy: 'rst' },
  'reset-at-64k': { cutAtByte: 65_536, cutBy: 'rst' },
  'not-http': { notHttp: true },
  'short-body': { truncateTo: 10 },
  'long-body': { appendBytes: 1 },
  'wrong-first-byte': { flipByteAt: 0 },
  'digest-header-missing': { headers: { 'Docker-Content-Digest': null } },
  'digest-header-wrong': { headers: { 'Docker-Content-Digest': WRONG_DIGEST } },
  chunked: { framing: 'chunked' },
  'no-content-length': { framing: 'close' },
  gzip: { contentEncoding: 'gzip' },
  'html-200': { body: HTML, headers: HTML_HEADERS },
  'html-404': { status: 404, body: HTML, headers: HTML_HEADERS },
  unauthorized: { status: 401 },
  denied: { status: 403 },
  'not-found': { status: 404 },
  'no-head': { status: 405 },
  'rate-limited': { status: 429 },
  'rate-limited-60s': { status: 429, headers: { 'Retry-After': '60' } },
  'rate-limited-until-date': {
    status: 429,
    headers: { 'Retry-After': 'Fri, 01 Jan 2027 00:00:00 GMT' },
  },
  'rate-limited-absurdly': { status: 429, headers: { 'Retry-After': '99999999999999999999' } },
  'rate-limited-as-text': {
    status: 429,
    body: 'Too Many Requests\n',
    headers: { 'Content-Type': 'text/plain' },
  },
  'internal-error': { status: 500 },
  'bad-gateway': { status: 502, body: HTML, headers: HTML_HEADERS },
  unavailable: { status: 503 },
  'gateway-timeout': { status: 504 },
  'redirect-relative': { redirect: { relative: true } },
  'redirect-cross-host': { redirect: { crossHost: true } },
  'redirect-loop': { redirect: { loop: true } },
  'redirect-without-location': { status: 307 },
  'range-ignored': { range: 'ignored' },
  'range-refused': { range: 'refused' },
  'range-shifted': { range: 'shifted' },
  garbage: { body: '\u0000{"token": not json' },
  'huge-body': { appendBytes: 10_000_000 },
  'no-expiry': { mergeJson: { expires_in: null } },
  'link-to-other-host': {
    headers: { Link: '<https://example.invalid/v2/x/tags/list>; rel="next"' },
  },
  'link-upwards': { headers: { Link: '</v2/../../secret?n=1&last=a>; rel="next"' } },
  'link-malformed': { headers: { Link: '<<<>;;;rel=next' } },
} as const satisfies Record<string, Fault>

export type FaultName = keyof typeof NAMED_FAULTS

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
