// What is checked of every answer: first what holds whatever the fault, then what this cell expects. Each check
// adds a sentence to the deviations; none throws.

import type { RawResponse } from '../support/http-client.ts'
import type { Asked, Seen } from './asking.ts'
import { BLOB_BYTES, meaningOf } from './fault-row.ts'
import { errorCodeOf, expectedOf, type Expected, type Part } from './expectation.ts'
import type { Cell } from './matrix.ts'
import type { Right, Scene } from './scene.ts'

const STATUSES: ReadonlySet<number | undefined> = new Set([200, 206, 404, 503])
const RETRY_AFTER_MAX_S = 3_600

interface ErrorBody {
  readonly errors: readonly {
    readonly code: string
    readonly message: string
    readonly detail?: unknown
  }[]
}

export function answerDeviations(cell: Cell, scene: Scene, { seen }: Asked): string[] {
  const all = seen.flatMap((one) => [
    ...promiseDeviations(one, scene),
    ...expectationDeviations(one, cell, scene),
  ])
  return [...new Set(all)]
}

/** An answer after the fault. @param part that was asked for; undefined: the whole */
export function recoveryDeviations(
  response: RawResponse,
  { part, right, scene }: { part?: Part | undefined; right: Right; scene: Scene },
): string[] {
  const one: Seen = { response, part, method: 'GET' }
  const found = promiseDeviations(one, scene)
  if (response.status !== (part ? 206 : 200)) found.push(`is ${statusOf(one)}`)
  else if (response.ending !== 'complete') found.push(`ends by ${response.ending}`)
  else if (!isRight(one, right)) found.push('has other content')
  const what = part ? 'the next request for a range' : 'the next request'
  return found.map((deviation) => `${what} ${deviation}`)
}

/** For people: what a client saw. */
export function summaryOf({ response, part, method }: Seen): string {
  const { body, ending, status } = response
  if (status === undefined) return `no answer (${ending})`
  const parts = [String(status)]
  if (status < 300) {
    parts.push(response.header('x-cache') ?? 'no X-Cache')
    if (ending !== 'complete') parts.push(`${ending.toUpperCase()} early`)
  } else if (status >= 400) {
    parts.push(parsedError(body)?.errors[0]?.code ?? (method === 'HEAD' ? '' : 'no error code'))
    const retryAfter = response.header('retry-after')
    if (retryAfter !== undefined) parts.push(`after ${retryAfter} s`)
  }
  if (part && status === 200) parts.push('whole')
  return parts.filter((text) => text !== '').join(' ')
}

function statusOf(one: Seen): string {
  return `answered with ${summaryOf(one)}`
}

/** Never a reset, never chunked, no length that lies, no error without a code. */
function promiseDeviations(one: Seen, { name }: Scene): string[] {
  const { method, response } = one
  const { body, ending, status } = response
  const found: string[] = []
  const check = (holds: boolean, deviation: string): void => {
    if (!holds) found.push(deviation)
  }
  check(STATUSES.has(status), `is ${statusOf(one)}`)
  check(ending === 'complete' || ending === 'fin', `ends by ${ending}`)
  check(response.trailing.length === 0, 'has something after its body')
  if (status === undefined) return found
  check(response.header('transfer-encoding') === undefined, 'is chunked')
  check(response.header('content-encoding') === undefined, 'is compressed')
  check(/^\d+$/.test(response.header('content-length') ?? ''), 'has no Content-Length')
  check(
    response.header('docker-distribution-api-version') === 'registry/2.0',
    'does not name the API version',
  )
  const link = response.header('link')
  check(link === undefined || link.startsWith(`</v2/${name}/`), `links to ${link}`)
  if (status < 400) {
    check(response.header('cache-status') !== undefined, 'has no Cache-Status')
    check(
      status !== 200 || response.header('content-range') === undefined,
      '200 with Content-Range',
    )
    return found
  }
  check(ending === 'complete', 'is an error that is cut off')
  check(response.header('content-type') === 'application/json', 'is an error without JSON')
  const error = method === 'HEAD' ? undefined : parsedError(body)?.errors[0]
  check(method === 'HEAD' || typeof error?.code === 'string', 'is an error without a code')
  check(!/\n\s+at /.test(body.toString()), 'shows a stack trace')
  const retryAfterS = Number(response.header('retry-after') ?? Number.NaN)
  check(
    status !== 503 || (retryAfterS > 0 && retryAfterS <= RETRY_AFTER_MAX_S),
    `says Retry-After: ${retryAfterS}`,
  )
  return found
}

function expectationDeviations(one: Seen, cell: Cell, scene: Scene): string[] {
  const expected = expectedOf(cell, one.part)
  switch (expected.outcome) {
    case 'content':
      return contentDeviations(one, expected, scene)
    case 'absent':
    case 'unavailable':
      return errorDeviations(one, expected, { cell, scene })
    case 'short':
      return shortDeviations(one, cell, scene)
    case 'as-sent':
      return one.response.ending === 'complete' && one.response.status === 206
        ? []
        : [`expected the part as it was sent, is ${statusOf(one)}`]
  }
}

function contentDeviations(one: Seen, expected: Expected, scene: Scene): string[] {
  const { method, part, response } = one
  const { ending, status } = response
  const right = scene.right(expected.source)
  if (status !== (part ? 206 : 200) || ending !== 'complete') {
    return [`expected the content, is ${statusOf(one)}`]
  }
  const found: string[] = []
  const lengthBytes = 'bytes' in right ? sliceOf(right.bytes, part).length : undefined
  if (lengthBytes !== undefined && response.header('content-length') !== String(lengthBytes)) {
    found.push(`Content-Length is ${response.header('content-length')}, not ${lengthBytes}`)
  }
  if (method === 'GET' && !isRight(one, right)) found.push('has other content than is right')
  const isStale = response.header('x-cache') === 'STALE'
  if (isStale !== (expected.source === 'stale'))
    found.push(`X-Cache is ${isStale ? '' : 'not '}STALE`)
  if (isStale !== /^299 - "layover: .+"$/.test(response.header('warning') ?? '')) {
    found.push(`Warning is ${response.header('warning')}`)
  }
  if (expected.source === 'cache' && response.header('x-cache') !== 'HIT') found.push('is no hit')
  return found
}

function errorDeviations(
  one: Seen,
  expected: Expected,
  { cell, scene }: { cell: Cell; scene: Scene },
): string[] {
  const { method, response } = one
  const isAbsent = expected.outcome === 'absent'
  const status = isAbsent ? 404 : 503
  if (response.status !== status) return [`expected ${status}, is ${statusOf(one)}`]
  const found: string[] = []
  const { code, detail } = parsedError(response.body)?.errors[0] ?? {}
  const isReason = includes(detail, { upstream: scene.upstreamHost }) && hasReason(detail)
  if (method === 'GET' && !isReason) found.push('gives no reason')
  const expectedCode = errorCodeOf(cell, isAbsent ? 'absent' : 'unavailable')
  if (method === 'GET' && code !== expectedCode) found.push(`code is ${code}, not ${expectedCode}`)
  const retryAfter = response.header('retry-after')
  const expectedRetry = isAbsent ? undefined : String(expected.retryAfterS)
  if (retryAfter !== expectedRetry) {
    found.push(`Retry-After is ${retryAfter}, not ${expectedRetry}`)
  }
  return found
}

function hasReason(detail: unknown): boolean {
  const { reason } = detail as { reason?: unknown }
  return typeof reason === 'string' && reason !== ''
}

/** Headers as for the whole, and then an end that the client notices. */
function shortDeviations(one: Seen, cell: Cell, scene: Scene): string[] {
  const { part, response } = one
  const { body, ending, status } = response
  if (status !== (part ? 206 : 200) || ending !== 'fin') {
    return [`expected an early FIN, is ${statusOf(one)}`]
  }
  const found: string[] = []
  if (body.length >= Number(response.header('content-length'))) found.push('is not short')
  const right = scene.right('upstream')
  const { is } = meaningOf(cell.row, 'blob')
  const mayBeWrong = is === 'wrong' || cell.row.leavesWrong === true
  if (mayBeWrong || !('bytes' in right)) return found
  const start = part?.first ?? 0
  const beginning = right.bytes.subarray(start, start + body.length)
  if (!beginning.equals(body)) found.push('does not begin as the blob')
  return found
}

function isRight({ part, response }: Seen, right: Right): boolean {
  if ('bytes' in right) return response.body.equals(sliceOf(right.bytes, part))
  return includes(parsed(response.body), right.json)
}

/** Whether all that is expected is there; arrays entirely. */
function includes(actual: unknown, expected: unknown): boolean {
  if (typeof expected !== 'object' || expected === null) return actual === expected
  if (typeof actual !== 'object' || actual === null) return false
  if (Array.isArray(expected) && (!Array.isArray(actual) || actual.length !== expected.length)) {
    return false
  }
  const fields = actual as Readonly<Record<string, unknown>>
  return Object.entries(expected).every(([key, value]) => includes(fields[key], value))
}

function sliceOf(bytes: Buffer, part: Part | undefined): Buffer {
  return part ? bytes.subarray(part.first, Math.min(part.last, BLOB_BYTES - 1) + 1) : bytes
}

function parsedError(body: Buffer): ErrorBody | undefined {
  const json = parsed(body) as Partial<ErrorBody> | undefined
  return Array.isArray(json?.errors) ? (json as ErrorBody) : undefined
}

function parsed(body: Buffer): unknown {
  try {
    return JSON.parse(body.toString())
  } catch {
    return undefined
  }
}
