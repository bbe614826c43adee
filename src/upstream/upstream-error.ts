// What can go wrong with an upstream, as one closed list that callers decide by. A message is one sentence
// that names the upstream's host and its own reason; it never carries a credential, a token or a query
// string (a signed URL's secret lives there), so it may be logged and shown to clients.

export type UpstreamErrorKind =
  /** The upstream says that it does not have this (404). */
  | 'not-found'
  /** The upstream refuses (403, or 401 although a fresh token was sent). */
  | 'denied'
  /** Too many requests (429), at the registry or at its token endpoint. */
  | 'rate-limited'
  /** Our credentials were refused, or may not be sent where the upstream wants them. */
  | 'login-failed'
  /** No connection, or one that broke. */
  | 'unreachable'
  | 'timeout'
  /** The upstream says that it is out of order (5xx). */
  | 'unavailable'
  /** The upstream is a cache that this request has come through before (508). */
  | 'loop'
  /** An answer that makes no sense: never cached, never passed on. */
  | 'bad-response'

export interface UpstreamErrorOptions {
  /** HTTP status, if there was an answer. */
  readonly status?: number | undefined
  /** How long the upstream (or our own lock on refused credentials) wants to be left alone. */
  readonly retryAfterMs?: number | undefined
  readonly cause?: unknown
}

export class UpstreamError extends Error {
  override readonly name = 'UpstreamError'
  readonly kind: UpstreamErrorKind
  readonly status: number | undefined
  readonly retryAfterMs: number | undefined

  constructor(
    kind: UpstreamErrorKind,
    message: string,
    { status, retryAfterMs, cause }: UpstreamErrorOptions = {},
  ) {
    super(message, cause === undefined ? undefined : { cause })
    this.kind = kind
    this.status = status
    this.retryAfterMs = retryAfterMs
  }
}

/** Of a manifest whose bytes are not those of its digest. @param sentBy the endpoint */
export function manifestMismatch(sentBy: string, name: string, digest: string): UpstreamError {
  const message = `${sentBy} sent a manifest for ${name}@${digest} that does not match`
  return new UpstreamError('bad-response', message)
}

const TIMEOUT_CODES: ReadonlySet<string> = new Set([
  'ETIMEDOUT',
  'UND_ERR_BODY_TIMEOUT',
  'UND_ERR_CONNECT_TIMEOUT',
  'UND_ERR_HEADERS_TIMEOUT',
])

/** Not HTTP, headers beyond the limit, content that cannot be decoded: trying again changes nothing. */
const NONSENSE_CODE = /^(HPE_|Z_|ERR_BROTLI|ERR__ERROR_FORMAT|UND_ERR_(HEADERS_OVERFLOW|RES_))/

/**
 * What a failed connection or a failed body means. Also for errors that a blob's body emits.
 *
 * @param host shown in the message
 */
export function connectionError(error: unknown, host: string): UpstreamError {
  if (error instanceof UpstreamError) return error
  const { code, reason } = describe(error)
  if (TIMEOUT_CODES.has(code)) {
    return new UpstreamError('timeout', `${host} took too long: ${reason}`, { cause: error })
  }
  if (NONSENSE_CODE.test(code)) {
    const message = `${host} sent an answer that cannot be read: ${reason}`
    return new UpstreamError('bad-response', message, { cause: error })
  }
  return new UpstreamError('unreachable', `${host} cannot be reached: ${reason}`, { cause: error })
}

/** Node reports a failure of every address of a host as one AggregateError without a message. */
function describe(error: unknown): { code: string; reason: string } {
  if (!(error instanceof Error)) return { code: '', reason: String(error) }
  const code = 'code' in error && typeof error.code === 'string' ? error.code : ''
  const first: unknown = error instanceof AggregateError ? error.errors[0] : undefined
  const message = error.message || (first instanceof Error ? first.message : code)
  return { code, reason: message || error.name }
}
