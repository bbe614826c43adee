// A clock for whole services: time passes only when a test leaps, or when somebody has waited for a short
// pause (between two attempts, before a flush), which is over at once. What bounds a wait (25 s for an
// upstream, 60 s for a tag) fires in a leap alone, however slow the machine is.

import type { CancelTimer, Clock } from '../../src/clock.ts'
import { FAKE_EPOCH_MS } from './fake-clock.ts'
import { nextTurn } from './wait-for.ts'

/** Longer timers bound a call; shorter ones are pauses. */
const PAUSE_MAX_MS = 4_500
/** How much faster pauses pass: fast, but in the right order. */
const HASTE = 100

interface PendingTimer {
  readonly dueMs: number
  readonly isPause: boolean
  readonly fire: () => void
}

export class LeapingClock implements Clock {
  #elapsedMs = 0
  #pauses = 0
  readonly #timers = new Set<PendingTimer>()

  /** Pauses that somebody waits for. */
  get pauses(): number {
    return this.#pauses
  }

  now(): number {
    return FAKE_EPOCH_MS + this.#elapsedMs
  }

  monotonic(): number {
    return this.#elapsedMs
  }

  setTimer(delayMs: number, run: () => void): CancelTimer {
    const dueMs = this.#elapsedMs + Math.max(delayMs, 0)
    let pause: NodeJS.Timeout | undefined
    const end = (): void => {
      if (this.#timers.delete(timer) && pause) this.#pauses--
      clearTimeout(pause)
    }
    const timer: PendingTimer = {
      dueMs,
      isPause: delayMs <= PAUSE_MAX_MS,
      fire: () => {
        end()
        this.#elapsedMs = Math.max(this.#elapsedMs, dueMs)
        run()
      },
    }
    this.#timers.add(timer)
    if (timer.isPause) {
      this.#pauses++
      pause = setTimeout(() => this.#pass(dueMs), delayMs / HASTE)
    }
    return end
  }

  /** On a machine that was busy the real timers of several may be due, and not come in their order. */
  #pass(untilMs: number): void {
    const due = [...this.#timers].filter((timer) => timer.isPause && timer.dueMs <= untilMs)
    for (const timer of due.sort((a, b) => a.dueMs - b.dueMs)) {
      if (this.#timers.has(timer)) timer.fire()
    }
  }

  /** Lets `ms` pass at once. What becomes due fires in its order, and may do something before the next. */
  async leap(ms: number): Promise<void> {
    const targetMs = this.#elapsedMs + ms
    for (;;) {
      await nextTurn()
      const due = [...this.#timers].filter(({ dueMs }) => dueMs <= targetMs)
      const next = due.sort((a, b) => a.dueMs - b.dueMs)[0]
      if (!next) break
      next.fire()
    }
    this.#elapsedMs = Math.max(this.#elapsedMs, targetMs)
  }
}
