// Waiting for something that other code will make true. Instead of a sleep: as short as it can be, and a
// failure says what was waited for.

import { setTimeout as sleep } from 'node:timers/promises'

/** The first polls take one turn of the event loop each: most conditions are a few turns away. */
const EAGER_POLLS = 50

const POLL_INTERVAL_MS = 5

/**
 * Waits until `condition` returns something other than false or undefined, and returns that.
 *
 * @param description ends the sentence "timed out waiting for …"
 * @throws {Error} after `deadlineMs`, with the description; and whatever `condition` throws
 */
export async function waitFor<T>(
  description: string,
  condition: () => T | false | undefined | Promise<T | false | undefined>,
  { deadlineMs = 10_000 }: { deadlineMs?: number } = {},
): Promise<T> {
  const startMs = performance.now()
  for (let poll = 0; ; poll++) {
    const value: T | false | undefined = await condition()
    if (value !== false && value !== undefined) return value
    if (performance.now() - startMs >= deadlineMs) {
      throw new Error(`timed out waiting for ${description} (${deadlineMs} ms)`)
    }
    await (poll < EAGER_POLLS ? nextTurn() : sleep(POLL_INTERVAL_MS))
  }
}

/** Lets the event loop turn once: pending I/O callbacks and microtasks run. */
export function nextTurn(): Promise<void> {
  return new Promise((resolve) => setImmediate(resolve))
}

/**
 * Bounds a promise that a test could otherwise hang on.
 *
 * @throws {Error} after `deadlineMs`, with the description
 */
export async function within<T>(
  description: string,
  promise: Promise<T>,
  { deadlineMs = 10_000 }: { deadlineMs?: number } = {},
): Promise<T> {
  const timer = new AbortController()
  try {
    const timeout = sleep(deadlineMs, undefined, { signal: timer.signal, ref: false }).then(() => {
      throw new Error(`timed out waiting for ${description} (${deadlineMs} ms)`)
    })
    return await Promise.race([promise, timeout])
  } finally {
    timer.abort()
  }
}
