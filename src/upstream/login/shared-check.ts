// Whether a login that was refused is good for anything: asked once for all who want to know at the time.

import type { Clock } from '../../clock.ts'

/** What was found out is believed for so long, if at all: refusals may come by the hundred. */
const CHECK_MS = 1_000

interface Check {
  readonly key: string
  readonly isGood: Promise<boolean>
  answeredAtMs: number
  /** Which of those it is that found a login to be good; Infinity: none, or none yet. */
  goodNumber: number
}

export class SharedCheck {
  readonly #clock: Clock
  #goodTimes = 0
  #last: Check | undefined

  constructor(clock: Clock) {
    this.#clock = clock
  }

  /** How often a login was found to be good, so far. */
  get goodTimes(): number {
    return this.#goodTimes
  }

  /**
   * @param key of the login
   * @param goodBefore `goodTimes` when the login went that was refused: it may have been changed since it was good
   * @throws what `ask` throws
   */
  isGood(key: string, goodBefore: number, ask: () => Promise<boolean>): Promise<boolean> {
    const last = this.#last
    const isRecent = last?.key === key && this.#clock.monotonic() - last.answeredAtMs < CHECK_MS
    if (isRecent && goodBefore < last.goodNumber) return last.isGood
    const isGood = ask()
      .then((found) => {
        if (found) check.goodNumber = ++this.#goodTimes
        return found
      })
      .finally(() => (check.answeredAtMs = this.#clock.monotonic()))
    const check: Check = { key, isGood, answeredAtMs: Infinity, goodNumber: Infinity }
    this.#last = check
    return isGood
  }
}
