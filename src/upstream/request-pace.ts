// How fast requests may follow one another, for upstreams that count them. Whoever is too early waits its turn;
// who would wait too long is told so at once.

import { delay, type Clock } from '../clock.ts'
import { UpstreamError } from './upstream-error.ts'

/** Leaves a call time for its own request within its budget. */
const WAIT_MAX_MS = 10_000
const SECOND_MS = 1_000

export class RequestPace {
  readonly #clock: Clock
  readonly #name: string
  readonly #intervalMs: number
  /** When the next request would be due if all were evenly spread. Monotonic. */
  #nextMs = Number.NEGATIVE_INFINITY

  /** @param options.perSecond also how many may go at once after a pause of a second */
  constructor(clock: Clock, options: { name: string; perSecond: number }) {
    this.#clock = clock
    this.#name = options.name
    this.#intervalMs = SECOND_MS / options.perSecond
  }

  /**
   * Waits until one more request may go.
   *
   * @throws {UpstreamError} rate-limited, if that would take too long; and the reason of `signal`
   */
  async take(signal: AbortSignal): Promise<void> {
    const nowMs = this.#clock.monotonic()
    const dueMs = Math.max(this.#nextMs, nowMs - SECOND_MS + this.#intervalMs)
    const waitMs = dueMs - nowMs
    if (waitMs > WAIT_MAX_MS) {
      const message = `too many requests for ${this.#name} wait already: its requestspersecond is the limit`
      throw new UpstreamError('rate-limited', message, { retryAfterMs: waitMs })
    }
    this.#nextMs = dueMs + this.#intervalMs
    if (waitMs > 0) await delay(this.#clock, waitMs, { signal })
  }
}
