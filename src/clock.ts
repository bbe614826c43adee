// Time as a collaborator. Everything that reads the clock or waits takes a Clock, so that tests decide
// what time it is. This is the only file that touches the process's own clock and timers.

/** What is called to give a timer up. Calling it twice, or after the timer ran, does nothing. */
export type CancelTimer = () => void

export interface Clock {
  /** Milliseconds since the epoch. May jump, as the machine's clock does. */
  now(): number
  /** Milliseconds that never go back; only differences mean something. */
  monotonic(): number
  /**
   * Runs `run` once after `delayMs`.
   *
   * @param delayMs any length: Node's own limit of 2^31-1 ms (24.8 days) does not apply
   * @param options.keepsAlive false (the default) lets the process end while this timer is pending
   */
  setTimer(delayMs: number, run: () => void, options?: { keepsAlive?: boolean }): CancelTimer
}

/** Node fires a longer timeout at once, with a warning. */
const LONGEST_TIMEOUT_MS = 2 ** 31 - 1

export const systemClock: Clock = {
  now: () => Date.now(),
  monotonic: () => performance.now(),
  setTimer(delayMs, run, { keepsAlive = false } = {}) {
    let timeout: NodeJS.Timeout
    const arm = (leftMs: number): void => {
      const stepMs = Math.min(Math.max(leftMs, 0), LONGEST_TIMEOUT_MS)
      timeout = setTimeout(() => (leftMs > stepMs ? arm(leftMs - stepMs) : run()), stepMs)
      if (!keepsAlive) timeout.unref()
    }
    arm(delayMs)
    return () => clearTimeout(timeout)
  },
}

/**
 * Waits.
 *
 * @throws the signal's reason, as soon as `signal` is aborted
 */
export function delay(
  clock: Clock,
  delayMs: number,
  { signal }: { signal?: AbortSignal | undefined } = {},
): Promise<void> {
  return new Promise((resolve, reject) => {
    if (signal?.aborted) {
      reject(signal.reason as Error)
      return
    }
    const onAbort = (): void => {
      cancel()
      reject(signal?.reason as Error)
    }
    const cancel = clock.setTimer(
      delayMs,
      () => {
        signal?.removeEventListener('abort', onAbort)
        resolve()
      },
      { keepsAlive: true },
    )
    signal?.addEventListener('abort', onAbort, { once: true })
  })
}
