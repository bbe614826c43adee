// How many requests may carry one login at a time. What is under way when a password changes is refused, and
// registries lock accounts after a few refusals. So: few at first, more with each that is accepted (it is right then,
// and a hundred repositories should not wait in line), few again when nothing has been heard for a moment, and none
// while it is found out whether a refusal was about the login.

import type { CancelTimer, Clock } from '../clock.ts'
import { leaveOnAbort } from './call-budget.ts'

/** After a pause. */
const SIZE_MIN = 4
/** What was accepted so long ago says nothing of the login any more. */
const PAUSE_MS = 1_000
/** A check that hangs must not hold up those who may well be right. */
const HOLD_MAX_MS = 1_000

export interface LoginWindowOptions {
  /** How many more may go with each that is accepted, */
  readonly growth: number
  /** up to so many. */
  readonly sizeMax: number
  /** When nobody has entered for so long, one may although there is no room: what hangs must not block the others. */
  readonly patienceMs: number
}

/**
 * Questions for tokens: as many may be refused if the password changes amid many of them; accounts are commonly locked
 * after ten. Docker Hub answers in 0.1 s: a hundred questions at once are answered in 1.3 s. All are answered alike.
 */
export const TOKEN_WINDOW: LoginWindowOptions = { growth: 1, sizeMax: 8, patienceMs: Infinity }

/**
 * Requests that carry the login itself, as all do where there are no tokens: a registry that accepts it is asked by as
 * many as want to. Some content takes long to come: a registry that has to fetch it itself sends no headers until then.
 */
export const REQUEST_WINDOW: LoginWindowOptions = {
  growth: Infinity,
  sizeMax: Infinity,
  patienceMs: 1_000,
}

export class LoginWindow {
  readonly #clock: Clock
  readonly #options: LoginWindowOptions
  /** Who waits, in their order. */
  readonly #waiting = new Set<() => void>()
  #size = SIZE_MIN
  #running = 0
  #acceptedAtMs = Number.NEGATIVE_INFINITY
  #enteredAtMs = Number.NEGATIVE_INFINITY
  #holds = 0
  /** How often it began to be held. */
  #times = 0
  #heldUntilMs = Number.NEGATIVE_INFINITY
  #cancelTimer: CancelTimer = nothing

  constructor(clock: Clock, options: LoginWindowOptions) {
    this.#clock = clock
    this.#options = options
  }

  /**
   * Waits for room; `leave` must follow.
   *
   * @returns a ticket for `isOpenTo`
   * @throws the reason of `signal`: then there is nothing to leave
   */
  async enter(signal: AbortSignal): Promise<number> {
    if (this.#hasRoom()) {
      this.#count()
      return this.#times
    }
    let admit = nothing
    const turn = new Promise<void>((resolve) => (admit = resolve))
    this.#waiting.add(admit)
    this.#admit()
    try {
      await leaveOnAbort(turn, signal)
    } catch (error) {
      // Let in at the moment it left.
      if (this.#waiting.delete(admit)) this.#admit()
      else this.leave()
      throw error
    }
    return this.#times
  }

  /** Whether one who has entered may still go. If not, and it leaves, it may enter anew. */
  isOpenTo(ticket: number): boolean {
    return this.#holds === 0 || (ticket === this.#times && !this.#isShut())
  }

  /** The login was accepted: it is for one who has entered to say. Means nothing while a later refusal is looked into. */
  widen(): void {
    if (this.#holds > 0) return
    const { growth, sizeMax } = this.#options
    this.#size = Math.min(this.#size + growth, sizeMax)
    this.#acceptedAtMs = this.#clock.monotonic()
    this.#admit()
  }

  leave(): void {
    this.#running--
    this.#admit()
  }

  /**
   * The login may have been refused: nobody enters before that is known, and after a second few do.
   *
   * @returns ends it
   */
  hold(): () => void {
    if (this.#holds++ === 0) {
      this.#times++
      this.#heldUntilMs = this.#clock.monotonic() + HOLD_MAX_MS
    }
    this.#acceptedAtMs = Number.NEGATIVE_INFINITY
    let isOver = false
    return () => {
      if (isOver) return
      isOver = true
      this.#holds--
      this.#admit()
    }
  }

  /** Lets in all who wait: the login was refused, and they are to know. */
  admitAll(): void {
    for (const admit of this.#waiting) this.#letIn(admit)
    this.#cancelTimer()
  }

  #admit(): void {
    this.#cancelTimer()
    for (const admit of this.#waiting) {
      if (!this.#hasRoom()) {
        this.#lookAgainLater()
        return
      }
      this.#letIn(admit)
    }
  }

  #letIn(admit: () => void): void {
    this.#waiting.delete(admit)
    this.#count()
    admit()
  }

  #count(): void {
    this.#running++
    this.#enteredAtMs = this.#clock.monotonic()
  }

  #lookAgainLater(): void {
    const overdueAtMs = this.#enteredAtMs + this.#options.patienceMs
    const dueMs = this.#isShut() ? Math.max(overdueAtMs, this.#heldUntilMs) : overdueAtMs
    if (dueMs === Infinity) return
    const leftMs = dueMs - this.#clock.monotonic()
    this.#cancelTimer = this.#clock.setTimer(leftMs, () => this.#admit())
  }

  #isShut(): boolean {
    return this.#holds > 0 && this.#clock.monotonic() < this.#heldUntilMs
  }

  #hasRoom(): boolean {
    if (this.#isShut()) return false
    const nowMs = this.#clock.monotonic()
    if (nowMs - this.#acceptedAtMs >= PAUSE_MS) this.#size = SIZE_MIN
    return this.#running < this.#size || nowMs - this.#enteredAtMs >= this.#options.patienceMs
  }
}

function nothing(): void {}
