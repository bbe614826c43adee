// When a download that breaks again and again is given up: its clients wait with open connections, and had better
// be told. What has arrived is kept, and whoever asks next goes on from it.

import type { Clock } from '../clock.ts'
import type { UpstreamError, UpstreamErrorKind } from '../upstream/upstream-error.ts'

/** Attempts in a row that bring not one byte. */
const FRUITLESS_MAX = 5
/** Attempts in all, so that an upstream that gives a byte at a time cannot keep us busy for ever. */
const ATTEMPTS_MAX = 100
/**
 * What must have come within that time when it breaks: 6 kB/s, on which nobody pulls an image. An upstream that
 * stands still in each body takes 25 s for an attempt, and would take an hour for all.
 */
const PROGRESS_MIN_BYTES = 1024 * 1024
const PROGRESS_MAX_MS = 3 * 60_000
const BACKOFF_FIRST_MS = 250
const BACKOFF_MAX_MS = 4_000
/** Longer than this clients had better be told. */
const RETRY_AFTER_MAX_MS = 15_000

/** What another attempt can change, once some bytes have been served. */
const WORTH_RESUMING: readonly UpstreamErrorKind[] = [
  'rate-limited',
  'unreachable',
  'timeout',
  'unavailable',
  'login-failed',
]

export class DownloadPatience {
  readonly #clock: Clock
  #attempts = 0
  #fruitless = 0
  #receivedBytes: number
  /** Since when so little has come. */
  #mark: { readonly bytes: number; readonly atMs: number }

  /** @param receivedBytes what an earlier download has left */
  constructor(clock: Clock, receivedBytes: number) {
    this.#clock = clock
    this.#receivedBytes = receivedBytes
    this.#mark = { bytes: receivedBytes, atMs: clock.monotonic() }
  }

  /** Attempts in a row that brought nothing. */
  get fruitless(): number {
    return this.#fruitless
  }

  /** An attempt broke. @returns whether another one is worth while */
  noteBreak(receivedBytes: number): boolean {
    this.#attempts++
    this.#fruitless = receivedBytes > this.#receivedBytes ? 0 : this.#fruitless + 1
    this.#receivedBytes = receivedBytes
    const atMs = this.#clock.monotonic()
    const isMoving = receivedBytes - this.#mark.bytes >= PROGRESS_MIN_BYTES
    if (isMoving) this.#mark = { bytes: receivedBytes, atMs }
    return (
      this.#fruitless < FRUITLESS_MAX &&
      this.#attempts < ATTEMPTS_MAX &&
      atMs - this.#mark.atMs < PROGRESS_MAX_MS
    )
  }
}

export function isWorthResuming({ kind }: UpstreamError): boolean {
  return WORTH_RESUMING.includes(kind)
}

/** @returns undefined when clients had better be told than wait so long */
export function pauseMs({ retryAfterMs }: UpstreamError, fruitless: number): number | undefined {
  const backoffMs = Math.min(BACKOFF_FIRST_MS * 2 ** fruitless, BACKOFF_MAX_MS)
  const waitMs = Math.max(retryAfterMs ?? 0, backoffMs)
  return waitMs > RETRY_AFTER_MAX_MS ? undefined : waitMs
}
