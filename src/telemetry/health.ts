// Whether this process can do its work: what /readyz and /debug/health tell. Checks run by themselves, at
// their own interval, and a probe is told their last result: it costs nothing and cannot hang.

import type { CancelTimer, Clock } from '../clock.ts'

export interface HealthCheck {
  readonly name: string
  readonly intervalMs: number
  /** Failures in a row until it counts. */
  readonly threshold: number
  /** True: worth telling, but no reason to send clients elsewhere. */
  readonly isAdvisory?: boolean
  /** Rejects when something is wrong, with what; must give up by itself. */
  run(): Promise<void>
}

interface CheckState {
  readonly check: HealthCheck
  failuresInARow: number
  reason: string
}

export class Health {
  readonly #clock: Clock
  readonly #states: CheckState[] = []
  readonly #timers = new Map<CheckState, CancelTimer>()
  readonly #notes: (() => readonly string[])[] = []
  #isDraining = false

  constructor(deps: { clock: Clock }) {
    this.#clock = deps.clock
  }

  /** Runs the check now, and from now on. @returns when it has run once */
  async add(check: HealthCheck): Promise<void> {
    const state: CheckState = { check, failuresInARow: 0, reason: '' }
    this.#states.push(state)
    await this.#run(state)
  }

  /** Worth telling an operator, and never a reason to call this process unhealthy. */
  addNotes(notes: () => readonly string[]): void {
    this.#notes.push(notes)
  }

  /** One line each; empty when there is nothing to tell. */
  notes(): readonly string[] {
    return this.#notes.flatMap((notes) => notes())
  }

  /** The checks that pass, by name. */
  passing(): readonly string[] {
    const failing = this.failures()
    return this.#states.map(({ check }) => check.name).filter((name) => !(name in failing))
  }

  /** From now on load balancers should send nothing more. */
  drain(): void {
    this.#isDraining = true
  }

  stop(): void {
    for (const cancel of this.#timers.values()) cancel()
    this.#timers.clear()
    this.#states.length = 0
  }

  /** Failing checks by name, with their reasons; empty when healthy. */
  failures(): Readonly<Record<string, string>> {
    return this.#failing(this.#states)
  }

  /** As `failures`, without what clients need not care about. */
  reasonsNotToServe(): Readonly<Record<string, string>> {
    return this.#failing(this.#states.filter(({ check }) => check.isAdvisory !== true))
  }

  #failing(states: readonly CheckState[]): Readonly<Record<string, string>> {
    const failing = states.filter((state) => state.failuresInARow >= state.check.threshold)
    const failures = Object.fromEntries(failing.map(({ check, reason }) => [check.name, reason]))
    return this.#isDraining ? { ...failures, drain: 'the server is stopping' } : failures
  }

  async #run(state: CheckState): Promise<void> {
    try {
      await state.check.run()
      state.failuresInARow = 0
    } catch (error) {
      state.failuresInARow++
      state.reason = error instanceof Error ? error.message : String(error)
    }
    // Stopped meanwhile.
    if (!this.#states.includes(state)) return
    const again = (): void => void this.#run(state)
    this.#timers.set(state, this.#clock.setTimer(state.check.intervalMs, again))
  }
}
