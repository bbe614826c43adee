// Any thrown value → an answer that a registry client understands. Our own bugs are 503 and never say more:
// no client treats 500 well, and a stack trace is nobody's business.

import { RegistryError } from '../oci/registry-error.ts'
import type { HeaderList } from './exchange.ts'

export interface ErrorResponse {
  readonly status: number
  readonly headers: HeaderList
  readonly body: { readonly errors: readonly { code: string; message: string; detail?: unknown }[] }
  /** False: a bug of ours, to be logged as one. */
  readonly isExpected: boolean
}

export interface ErrorResponseOptions {
  /**
   * `proxy.ratelimitstatus`. An upstream's 429 is told as 503 unless this is 429: it would stall Podman for minutes,
   * and make containerd ask five times at once.
   */
  readonly rateLimitStatus: 429 | 503
}

export function errorResponse(
  error: unknown,
  { rateLimitStatus }: ErrorResponseOptions = { rateLimitStatus: 503 },
): ErrorResponse {
  const known = error instanceof RegistryError ? error : new RegistryError('UNAVAILABLE')
  const isHidden = known.code === 'TOOMANYREQUESTS' && rateLimitStatus === 503
  const { code, message, status } = isHidden ? new RegistryError('UNAVAILABLE') : known
  const { detail, retryAfterMs } = known
  const headers: HeaderList = []
  if (retryAfterMs !== undefined)
    headers.push('Retry-After', String(Math.ceil(retryAfterMs / 1000)))
  if (status === 405) headers.push('Allow', 'GET, HEAD')
  const entry = detail === undefined ? { code, message } : { code, message, detail }
  return { status, headers, body: { errors: [entry] }, isExpected: known === error }
}
