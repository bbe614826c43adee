// How long one client waits for work that it may share with others. The questions to the upstream end by themselves
// at the deadline of whoever began them, which may be a later client than the one that waits; and a download that
// cannot be announced before its end is not a question at all.

import type { Clock } from '../clock.ts'
import { RegistryError } from '../oci/registry-error.ts'

/** So that an answer from what is known can take the place of a question that ends in vain. */
const GRACE_MS = 2_000
const RETRY_AFTER_MS = 5_000

/**
 * Waits for `work`, which goes on in any case.
 *
 * @param deadlineMs on the monotonic clock; Infinity: none
 * @param onLate gets a result that came when nobody was waiting any more
 * @throws {RegistryError} UNAVAILABLE, a moment after the deadline; and what `work` throws
 */
export function untilDeadline<Result>(
  clock: Clock,
  deadlineMs: number,
  work: Promise<Result>,
  onLate: (result: Result) => void = () => {},
): Promise<Result> {
  if (deadlineMs === Infinity) return work
  return new Promise((resolve, reject) => {
    let isLate = false
    const cancel = clock.setTimer(deadlineMs + GRACE_MS - clock.monotonic(), () => {
      isLate = true
      const reason =
        'it takes longer than a client can wait; it goes on, and may be asked for again'
      const detail = { reason }
      reject(new RegistryError('UNAVAILABLE', { detail, retryAfterMs: RETRY_AFTER_MS }))
    })
    const follow = async (): Promise<void> => {
      try {
        const result = await work
        cancel()
        if (isLate) onLate(result)
        else resolve(result)
      } catch (error) {
        cancel()
        reject(error instanceof Error ? error : new Error(String(error)))
      }
    }
    void follow()
  })
}
