// Bodies: decoded, counted, and always let go of. A body that is neither read to its end nor destroyed keeps
// its connection, so every function here leaves none behind.

import type { IncomingHttpHeaders } from 'node:http'
import { pipeline, type Readable, type Transform } from 'node:stream'
import { createBrotliDecompress, createGunzip, createInflate } from 'node:zlib'
import type { Clock } from '../clock.ts'
import { connectionError, UpstreamError } from './upstream-error.ts'

/** An answer whose body is still to be read. */
export interface Answer {
  readonly headers: IncomingHttpHeaders
  readonly body: Readable
  readonly url: URL
}

/** Reasons are one line of JSON; what is longer is a web page. */
const REASON_SIZE_MAX_BYTES = 64 * 1024

/** A reason is nice to have: nobody waits long for it. */
const REASON_LIMIT_MS = 5_000

/** Encodings that registries and the CDNs in front of them apply although `identity` was asked for. */
const DECODERS: ReadonlyMap<string, () => Transform> = new Map([
  ['br', createBrotliDecompress],
  ['deflate', createInflate],
  ['gzip', createGunzip],
  ['x-gzip', createGunzip],
])

function ignore(): void {}

/** Whether the body is sent in another form than the content it stands for. */
export function isEncoded(headers: IncomingHttpHeaders): boolean {
  return !/^\s*(identity)?\s*$/i.test(headers['content-encoding'] ?? '')
}

/**
 * The content itself. The stream that is returned stands for the body: destroying it destroys both.
 *
 * @throws {UpstreamError} bad-response for an unknown encoding; the body is destroyed then
 */
export function decoded({ headers, body, url }: Answer): Readable {
  if (!isEncoded(headers)) return body
  const decoder = DECODERS.get(headers['content-encoding']?.trim().toLowerCase() ?? '')
  if (!decoder) {
    drop(body)
    throw new UpstreamError('bad-response', `${url.host} used a content encoding that is not known`)
  }
  // It may fail before anybody reads it, or after they have left; who reads is told all the same.
  return pipeline(body, decoder().on('error', ignore), ignore)
}

/**
 * The whole content of an answer that is known to be small.
 *
 * @param limitBytes counted after decoding
 * @throws {UpstreamError} bad-response as soon as there is more than `limitBytes`, the rest is not read;
 *   unreachable or timeout if the body breaks off
 * @throws the signal's reason, once that is aborted (the signal must be the one of the request)
 */
export async function readContent(
  answer: Answer,
  limitBytes: number,
  signal: AbortSignal,
): Promise<Buffer> {
  const { host } = answer.url
  const chunks: Buffer[] = []
  let sizeBytes = 0
  try {
    for await (const chunk of decoded(answer) as AsyncIterable<Buffer>) {
      sizeBytes += chunk.length
      if (sizeBytes > limitBytes) {
        throw new UpstreamError('bad-response', `${host} sent more than ${limitBytes} bytes`)
      }
      chunks.push(chunk)
    }
  } catch (error) {
    if (signal.aborted) throw signal.reason
    throw connectionError(error, host)
  }
  return Buffer.concat(chunks, sizeBytes)
}

export type JsonObject = Readonly<Record<string, unknown>>

export function isObject(value: unknown): value is JsonObject {
  return typeof value === 'object' && value !== null && !Array.isArray(value)
}

/** @throws {UpstreamError} bad-response if `content` is not a JSON object */
export function parseObject(content: Buffer, host: string): JsonObject {
  let json: unknown
  try {
    json = JSON.parse(content.toString('utf8'))
  } catch {
    // Not as the cause: V8 quotes the text, which may be a token.
  }
  if (isObject(json)) return json
  throw new UpstreamError('bad-response', `${host} sent something that is not a JSON object`)
}

/** The start of a body nobody needs: enough to say why, and to have the connection back if that is all. */
export async function readReason(body: Readable, clock: Clock): Promise<Buffer> {
  const cancel = clock.setTimer(REASON_LIMIT_MS, () => drop(body))
  const chunks: Buffer[] = []
  let sizeBytes = 0
  try {
    for await (const chunk of body as AsyncIterable<Buffer>) {
      chunks.push(chunk)
      sizeBytes += chunk.length
      if (sizeBytes >= REASON_SIZE_MAX_BYTES) break
    }
  } catch {
    // A reason that breaks off is still one.
  } finally {
    cancel()
  }
  return Buffer.concat(chunks, sizeBytes).subarray(0, REASON_SIZE_MAX_BYTES)
}

/** Lets go of a small body: reads it away, in the background, so that its connection can be used again. */
export function discard(body: Readable, clock: Clock): void {
  void readReason(body, clock)
}

/** Lets go of a body that may be large: its connection ends. */
export function drop(body: Readable): void {
  body.on('error', ignore).destroy()
}
