// Remembers for a moment that an upstream did not answer, so that clients who can be served an old answer get
// it at once, instead of each waiting for the same timeout. What is not cached is always asked for.

import type { Clock } from '../clock.ts'
import { UpstreamError } from '../upstream/upstream-error.ts'
import { isAbsence } from './failure.ts'

const SUSPECT_MS = 10_000
/** As long as a call to an upstream takes at most, and a little more. */
const PROBE_MS = 30_000
/** However long an upstream wants to be left alone, it is tried again after this time. */
const SUSPECT_MAX_MS = 60_000

export class UpstreamHealth {
  readonly #clock: Clock
  #suspectUntilMs = Number.NEGATIVE_INFINITY
  #lastError: UpstreamError | undefined

  constructor(deps: { clock: Clock }) {
    this.#clock = deps.clock
  }

  /**
   * Whether the upstream may be asked. While it has failed, one caller is let through now and then to find out;
   * the others need not wait for what it finds.
   *
   * @returns why it had better not be asked; undefined when the caller may, and then has to, ask
   */
  admit(): UpstreamError | undefined {
    const nowMs = this.#clock.monotonic()
    if (nowMs < this.#suspectUntilMs) return this.#lastError
    if (this.#lastError) this.#suspectUntilMs = nowMs + PROBE_MS
    return undefined
  }

  /** Calls the upstream and remembers how that went. */
  async observe<Value>(call: Promise<Value>): Promise<Value> {
    try {
      const value = await call
      this.#noteAnswer()
      return value
    } catch (error) {
      if (isAbsence(error)) this.#noteAnswer()
      else if (error instanceof UpstreamError && isOutage(error)) {
        this.#lastError = error
        const waitMs = Math.min(Math.max(error.retryAfterMs ?? 0, SUSPECT_MS), SUSPECT_MAX_MS)
        this.#suspectUntilMs = this.#clock.monotonic() + waitMs
      }
      throw error
    }
  }

  #noteAnswer(): void {
    this.#suspectUntilMs = Number.NEGATIVE_INFINITY
    this.#lastError = undefined
  }
}

function isOutage({ kind }: UpstreamError): boolean {
  return kind !== 'not-found' && kind !== 'denied' && kind !== 'bad-response' && kind !== 'loop'
}
