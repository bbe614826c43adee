// Undici's low-resolution timers, which no clock of ours drives, and the door that undici leaves open for tests.
// They end connections that are not made, headers that do not come and bodies that stand still.

import { createRequire } from 'node:module'

interface FastTimers {
  /** What they take the time to be, in ms. */
  now(): number
  tick(ms: number): void
}
const timers = createRequire(import.meta.url)('undici/lib/util/timers.js') as FastTimers

/** Lets `ms`, and a second before, pass for undici at once: what is then due fires. */
export function passFastTime(ms: number): void {
  // The first tick starts the timers that are new, the second ends them.
  timers.tick(1_000)
  timers.tick(ms)
}

export function fastNowMs(): number {
  return timers.now()
}
