// What a failing upstream means to a client. Clients go elsewhere at once on 404 only; so what the upstream
// does not have, or does not let us have, is "not there". Everything else is "not now", with the reason.

import { RegistryError, type ErrorCode } from '../oci/registry-error.ts'
import { UpstreamError } from '../upstream/upstream-error.ts'

/** Tells clients when to come back if the upstream does not say. */
const RETRY_AFTER_DEFAULT_MS = 5_000

export type AbsentCode = Extract<ErrorCode, 'BLOB_UNKNOWN' | 'MANIFEST_UNKNOWN' | 'NAME_UNKNOWN'>

/** Whether the upstream has answered, and the answer is that there is nothing for us. */
export function isAbsence(error: unknown): boolean {
  return error instanceof UpstreamError && (error.kind === 'not-found' || error.kind === 'denied')
}

/**
 * @param error what came from upstream; anything but an UpstreamError is returned as it is
 * @param absentCode what to say when the upstream has nothing for us
 */
export function clientError(error: unknown, upstream: string, absentCode: AbsentCode): unknown {
  if (!(error instanceof UpstreamError)) return error
  if (isAbsence(error)) {
    return new RegistryError(absentCode, { detail: absenceOf(upstream), cause: error })
  }
  const detail = { upstream, reason: error.message }
  if (error.kind === 'loop') return new RegistryError('LOOP_DETECTED', { detail, cause: error })
  return new RegistryError(error.kind === 'rate-limited' ? 'TOOMANYREQUESTS' : 'UNAVAILABLE', {
    detail,
    retryAfterMs: error.retryAfterMs ?? RETRY_AFTER_DEFAULT_MS,
    cause: error,
  })
}

/**
 * Always the same: what the upstream says depends on how it was asked, and so would tell whether the content is cached
 * under another repository's name. Its own words are in the log.
 */
function absenceOf(upstream: string): { readonly upstream: string; readonly reason: string } {
  return { upstream, reason: `${upstream} does not have it, or does not let this cache have it` }
}
