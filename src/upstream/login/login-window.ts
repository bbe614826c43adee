// How many requests may carry one login at a time. What is under way when a password changes is refused, and
// registries lock accounts after a few refusals. So: few at first, more with each that is accepted (it is right then,
// and a hundred repositories should not wait in line), few again when nothing has been heard for a moment, more again
// where answers are long in coming, and none while it is found out whether a refusal was about the login.

import type { CancelTimer, Clock } from '../../clock.ts'
import { leaveOnAbort } from '../call-budget.ts'

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
  /**
   * With each such time without a login that is accepted twice as many may go, and who entered so long ago counts no
   * more: what hangs must not block the others.
   */
  readonly patienceMs: number
}

/** One who has entered. */
export interface Ticket {
  readonly enteredAtMs: number
  /** How often the window had been held by then. */
  readonly times: number
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
  readonly #waiting = new Set<(ticket: Ticket) => void>()
  /** Who takes up room, the first one first. */
  readonly #counted = new Set<Ticket>()
  /** Also those who have been there for so long that they are not counted. */
  #underWay = 0
  /** While logins are accepted. */
  #size = SIZE_MIN
  #acceptedAtMs = Number.NEGATIVE_INFINITY
  /** Since then there are some under way, and nothing has been heard. */
  #unheardSinceMs = Number.NEGATIVE_INFINITY
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
   * @throws the reason of `signal`: then there is nothing to leave
   */
  async enter(signal: AbortSignal): Promise<Ticket> {
    if (this.#hasRoom()) return this.#count()
    let admit: (ticket: Ticket) => void = nothing
    let ticket: Ticket | undefined
    const turn = new Promise<Ticket>((resolve) => {
      admit = (given) => resolve((ticket = given))
    })
    this.#waiting.add(admit)
    this.#admit()
    try {
      return await leaveOnAbort(turn, signal)
    } catch (error) {
      // It may have been let in at the moment it left.
      if (ticket) this.leave(ticket)
      else if (this.#waiting.delete(admit)) this.#admit()
      throw error
    }
  }

  /** Whether one who has entered may still go. If not, and it leaves, it may enter anew. */
  isOpenTo({ times }: Ticket): boolean {
    return this.#holds === 0 || (times === this.#times && !this.#isShut())
  }

  /** The login was accepted: it is for one who has entered to say. Means nothing while a later refusal is looked into. */
  widen(): void {
    if (this.#holds > 0) return
    const { growth, sizeMax } = this.#options
    const before = this.#isWide() ? this.#size : SIZE_MIN
    this.#size = Math.min(before + growth, sizeMax)
    this.#acceptedAtMs = this.#clock.monotonic()
    this.#unheardSinceMs = this.#acceptedAtMs + PAUSE_MS
    this.#admit()
  }

  leave(ticket: Ticket): void {
    this.#underWay--
    this.#counted.delete(ticket)
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
      this.#unheardSinceMs = this.#heldUntilMs
    }
    this.#acceptedAtMs = Number.NEGATIVE_INFINITY
    let isOver = false
    return () => {
      if (isOver) return
      isOver = true
      this.#holds--
      this.#unheardSinceMs = Math.max(this.#unheardSinceMs, this.#clock.monotonic())
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

  #letIn(admit: (ticket: Ticket) => void): void {
    this.#waiting.delete(admit)
    admit(this.#count())
  }

  #count(): Ticket {
    const nowMs = this.#clock.monotonic()
    if (this.#underWay++ === 0) this.#unheardSinceMs = Math.max(this.#unheardSinceMs, nowMs)
    const ticket = { enteredAtMs: nowMs, times: this.#times }
    this.#counted.add(ticket)
    return ticket
  }

  #lookAgainLater(): void {
    const dueMs = this.#isShut() ? this.#heldUntilMs : this.#roomierAtMs()
    if (dueMs === Infinity) return
    const leftMs = dueMs - this.#clock.monotonic()
    this.#cancelTimer = this.#clock.setTimer(leftMs, () => this.#admit())
  }

  /** When there may be room although nobody has left. */
  #roomierAtMs(): number {
    const { patienceMs } = this.#options
    const [first] = this.#counted
    const firstOverdueAtMs = (first?.enteredAtMs ?? Infinity) + patienceMs
    if (this.#holds > 0) return firstOverdueAtMs
    const wider = this.#unheardSinceMs + (this.#timesOfPatience() + 1) * patienceMs
    return Math.min(firstOverdueAtMs, wider)
  }

  #isShut(): boolean {
    return this.#holds > 0 && this.#clock.monotonic() < this.#heldUntilMs
  }

  #isWide(): boolean {
    return this.#clock.monotonic() - this.#acceptedAtMs < PAUSE_MS
  }

  /** None while a refusal is looked into: what is under way then may well be refused. */
  #timesOfPatience(): number {
    if (this.#holds > 0) return 0
    const unheardMs = this.#clock.monotonic() - this.#unheardSinceMs
    return Math.max(0, Math.floor(unheardMs / this.#options.patienceMs))
  }

  #hasRoom(): boolean {
    if (this.#isShut()) return false
    if (this.#underWay === 0) return true
    this.#forgetOverdue()
    const size = this.#isWide() ? this.#size : SIZE_MIN * 2 ** this.#timesOfPatience()
    return this.#counted.size < size
  }

  #forgetOverdue(): void {
    const nowMs = this.#clock.monotonic()
    for (const ticket of this.#counted) {
      if (nowMs - ticket.enteredAtMs < this.#options.patienceMs) return
      this.#counted.delete(ticket)
    }
  }
}

function nothing(): void {}
