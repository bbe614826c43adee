// A clock that moves only when a test says so. Timers fire in the order of their due times (those due
// together in the order they were set), each seeing its own due time, and what a timer started may run
// before the next one fires.

import type { CancelTimer, Clock } from '../../src/clock.ts'

/** 2026-01-01T00:00:00Z, in milliseconds. */
export const FAKE_EPOCH_MS = 1_767_225_600_000

interface PendingTimer {
  readonly dueMs: number
  readonly run: () => void
}

export class FakeClock implements Clock {
  #elapsedMs = 0
  #epochMs: number
  /** In the order they were set. */
  readonly #timers = new Set<PendingTimer>()

  constructor(epochMs: number = FAKE_EPOCH_MS) {
    this.#epochMs = epochMs
  }

  now(): number {
    return this.#epochMs + this.#elapsedMs
  }

  monotonic(): number {
    return this.#elapsedMs
  }

  setTimer(delayMs: number, run: () => void): CancelTimer {
    const timer = { dueMs: this.#elapsedMs + Math.max(delayMs, 0), run }
    this.#timers.add(timer)
    return () => this.#timers.delete(timer)
  }

  get pendingTimers(): number {
    return this.#timers.size
  }

  /** Milliseconds until the next timer is due; undefined when none is pending. */
  get nextTimerMs(): number | undefined {
    const next = this.#nextTimer()
    return next && next.dueMs - this.#elapsedMs
  }

  /**
   * Lets `ms` pass. Timers that become due meanwhile fire, also those that are set meanwhile.
   *
   * @throws what a timer throws; the clock then stands at that timer's due time
   */
  async advance(ms: number): Promise<void> {
    const targetMs = this.#elapsedMs + ms
    await settle()
    for (;;) {
      const timer = this.#nextTimer()
      if (!timer || timer.dueMs > targetMs) break
      this.#timers.delete(timer)
      this.#elapsedMs = Math.max(this.#elapsedMs, timer.dueMs)
      timer.run()
      await settle()
    }
    this.#elapsedMs = Math.max(this.#elapsedMs, targetMs)
  }

  /** Steps the wall clock, as NTP or an operator does: now() moves, monotonic() and timers do not. */
  jump(ms: number): void {
    this.#epochMs += ms
  }

  #nextTimer(): PendingTimer | undefined {
    let next: PendingTimer | undefined
    for (const timer of this.#timers) {
      if (!next || timer.dueMs < next.dueMs) next = timer
    }
    return next
  }
}

/** A turn of the event loop: every microtask that is queued, and what those queue, has run after it. */
function settle(): Promise<void> {
  return new Promise((resolve) => setImmediate(resolve))
}
