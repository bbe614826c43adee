// Answers that are refusals or failures, turned into errors: which kind, and the upstream's own reason in
// words that are safe to show.

import { STATUS_CODES } from 'node:http'
import type { Clock } from '../clock.ts'
import { retryAfterMsOf } from './answer-headers.ts'
import { isObject, readReason } from './response-body.ts'
import type { TransportResponse } from './transport.ts'
import { UpstreamError, type UpstreamErrorKind } from './upstream-error.ts'

const REASON_LENGTH_MAX = 300

/**
 * Reads the reason, and so lets go of the body.
 *
 * @param name the upstream's, for the message
 */
export async function failedAnswer(
  response: TransportResponse,
  name: string,
  clock: Clock,
): Promise<UpstreamError> {
  const { status, headers } = response
  const reason = reasonIn(await readReason(response.body, clock), headers['content-type'])
  const who = response.url.host === name ? name : `${response.url.host} (asked for ${name})`
  const said = [status, STATUS_CODES[status]].filter(Boolean).join(' ')
  const message = `${who} answered ${said}${reason ? `: ${reason}` : ''}`
  const retryAfterMs = retryAfterMsOf(headers, clock)
  return new UpstreamError(kindOf(response), message, { status, retryAfterMs })
}

function kindOf({ status, leftOrigin }: TransportResponse): UpstreamErrorKind {
  if (status === 404) return 'not-found'
  // A CDN that refuses a signed URL says nothing about who may pull: that is not "denied".
  if (status === 401 || status === 403) return leftOrigin ? 'bad-response' : 'denied'
  if (status === 408) return 'timeout'
  if (status === 429) return 'rate-limited'
  if (status === 508) return 'loop'
  return status >= 500 ? 'unavailable' : 'bad-response'
}

/** The first message of an error list, or a short text; nothing of a web page. */
function reasonIn(bytes: Buffer, contentType: string | undefined): string {
  const text = bytes.toString('utf8')
  const message = messageIn(text)
  if (message !== undefined) return presentable(message)
  const isText = contentType === undefined || /^text\/plain\b/i.test(contentType)
  return isText && !/^\s*[<{[]/.test(text) ? presentable(text) : ''
}

function messageIn(text: string): string | undefined {
  let json: unknown
  try {
    json = JSON.parse(text)
  } catch {
    return undefined
  }
  if (!isObject(json)) return undefined
  const first: unknown = Array.isArray(json['errors']) ? json['errors'][0] : undefined
  const { message, code } = isObject(first) ? first : {}
  // `details` is what Docker Hub's older parts say, `error_description` what OAuth endpoints do.
  const all = [
    message,
    code,
    json['message'],
    json['details'],
    json['error_description'],
    json['error'],
  ]
  return all.find((text) => typeof text === 'string')
}

/** One line, without what may be secret: queries of URLs, and anything that looks like a credential. */
export function presentable(text: string): string {
  const line = text
    .replaceAll(/[\p{Cc}\s]+/gu, ' ')
    .replaceAll(/\?[^\s"'<>]*=[^\s"'<>]*/g, '?…')
    .replaceAll(/\b(Bearer|Basic)\s+[\w.~+/=-]{8,}/gi, '$1 …')
    .trim()
  return line.length > REASON_LENGTH_MAX ? `${line.slice(0, REASON_LENGTH_MAX - 1)}…` : line
}
