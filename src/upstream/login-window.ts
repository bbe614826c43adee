// How many questions may carry one login at a time. What is under way when a password changes is refused, and
// registries lock accounts after a few refusals. So: few at first, more with each that is accepted (it is right then,
// and a hundred repositories should not wait in line), few again when nothing has been heard for a moment.

import type { Clock } from '../clock.ts'
import { leaveOnAbort } from './call-budget.ts'

/** After a pause. */
const SIZE_MIN = 4
/**
 * As many may be refused if the password changes amid many questions; accounts are commonly locked after ten. Docker Hub
 * answers in 0.1 s: a hundred questions at once are answered in 1.3 s.
 */
const SIZE_MAX = 8
/** What was accepted so long ago says nothing of the login any more. */
const PAUSE_MS = 1_000

export class LoginWindow {
  readonly #clock: Clock
  /** Who waits, in their order. */
  readonly #waiting = new Set<() => void>()
  #size = SIZE_MIN
  #running = 0
  #acceptedAtMs = Number.NEGATIVE_INFINITY

  constructor(clock: Clock) {
    this.#clock = clock
  }

  /**
   * Waits for room; `leave` must follow.
   *
   * @throws the reason of `signal`: then there is nothing to leave
   */
  async enter(signal: AbortSignal): Promise<void> {
    if (this.#hasRoom()) {
      this.#running++
      return
    }
    let admit = nothing
    const turn = new Promise<void>((resolve) => (admit = resolve))
    this.#waiting.add(admit)
    try {
      await leaveOnAbort(turn, signal)
    } catch (error) {
      // Let in at the moment it left.
      if (!this.#waiting.delete(admit)) this.leave()
      throw error
    }
  }

  /** The login was accepted: it is for one who has entered to say. */
  widen(): void {
    this.#size = Math.min(this.#size + 1, SIZE_MAX)
    this.#acceptedAtMs = this.#clock.monotonic()
  }

  leave(): void {
    this.#running--
    for (const admit of this.#waiting) {
      if (!this.#hasRoom()) return
      this.#waiting.delete(admit)
      this.#running++
      admit()
    }
  }

  #hasRoom(): boolean {
    if (this.#clock.monotonic() - this.#acceptedAtMs >= PAUSE_MS) this.#size = SIZE_MIN
    return this.#running < this.#size
  }
}

function nothing(): void {}
