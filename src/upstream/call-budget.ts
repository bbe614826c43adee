// What one call may spend: time and retries. Its signal is aborted by the first of: the time is up, the
// caller leaves, the client is closed; the signal's reason is what the call then fails with.

import type { CancelTimer, Clock } from '../clock.ts'
import { UpstreamError } from './upstream-error.ts'

export interface CallBudgetOptions {
  /** 0 or less: there is no time left. */
  readonly limitMs: number
  /** Who is waited for, for the message. */
  readonly host: string
  /** Whoever else may end the call. */
  readonly signals: readonly (AbortSignal | undefined)[]
}

export class CallBudget {
  readonly #clock: Clock
  readonly #endsAtMs: number
  readonly #controller = new AbortController()
  readonly #cancelTimer: CancelTimer
  readonly #leave: (() => void)[] = []
  #retries = 0

  constructor(clock: Clock, { limitMs, host, signals }: CallBudgetOptions) {
    this.#clock = clock
    this.#endsAtMs = clock.monotonic() + limitMs
    const end = (message: string): void =>
      this.#controller.abort(new UpstreamError('timeout', message))
    if (limitMs <= 0)
      end(`${host} was not asked again: what came before took all the time there was`)
    const limitS = Math.round(limitMs / 100) / 10
    this.#cancelTimer = clock.setTimer(limitMs, () =>
      end(`${host} did not answer within ${limitS} s`),
    )
    for (const signal of signals) if (signal) this.#follow(signal)
  }

  get signal(): AbortSignal {
    return this.#controller.signal
  }

  /** How many there were in this call, over all of its requests to the registry. */
  get retries(): number {
    return this.#retries
  }

  /** @returns false if there is no time to wait for another try */
  takeRetry(waitMs: number): boolean {
    if (this.#clock.monotonic() + waitMs >= this.#endsAtMs) return false
    this.#retries += 1
    return true
  }

  /** From here on only the caller and `close` can end the call: its headers are in, a body is running. */
  stopClock(): void {
    this.#cancelTimer()
  }

  /** The call is over. Lets go of the caller's signal, which may outlive many calls. */
  release(): void {
    this.#cancelTimer()
    for (const leave of this.#leave.splice(0)) leave()
  }

  // Not AbortSignal.any: on Node 20 a source that lives as long as the process keeps what follows it.
  #follow(signal: AbortSignal): void {
    const onAbort = (): void => this.#controller.abort(signal.reason)
    if (signal.aborted) {
      onAbort()
      return
    }
    signal.addEventListener('abort', onAbort, { once: true })
    this.#leave.push(() => signal.removeEventListener('abort', onAbort))
  }
}

/**
 * Waits for work that others wait for too: leaving does not end it.
 *
 * @throws the signal's reason, as soon as `signal` is aborted
 */
export async function leaveOnAbort<T>(shared: Promise<T>, signal: AbortSignal): Promise<T> {
  const outcome = await new Promise<{ value: T } | undefined>((resolve, reject) => {
    const leave = (): void => resolve(undefined)
    if (signal.aborted) leave()
    signal.addEventListener('abort', leave, { once: true })
    shared
      .then((value) => resolve({ value }), reject)
      .finally(() => signal.removeEventListener('abort', leave))
  })
  if (!outcome) throw signal.reason
  return outcome.value
}
