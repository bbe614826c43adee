// Downloads of small blobs go at the pace of the disk, where it is slower than the upstream: clients have a blob when
// it is verified, and what is verified and not yet written is in memory. A new download begins when the disk has caught
// up. That is for bursts: of a disk that does not catch up soon, or hangs, nobody waits any more until it has. If it
// falls far behind then, blobs are served and not kept: a cache may fail to cache, it may not fail to serve.

import type { Logger } from 'pino'
import type { Clock } from '../clock.ts'
import { SMALL_BLOB_MAX_BYTES, type BlobStore } from '../storage/blob-store.ts'
import type { Metrics } from '../telemetry/metrics.ts'
import { leaveOnAbort } from '../upstream/call-budget.ts'

/** Not yet written: some dozen small blobs. With fewer the disk would rest while their successors arrive. */
const BEHIND_BYTES = 1024 * 1024
/** Far more than an image has; a disk that works writes them in seconds. */
const FAR_BEHIND_BYTES = 16 * 1024 * 1024
/** From the moment that the disk is behind, for all downloads together. */
const PATIENCE_MS = 1_000

export interface DiskPaceDeps {
  readonly clock: Clock
  readonly logger: Logger
  readonly metrics: Metrics
  readonly blobs: Pick<BlobStore, 'caughtUp' | 'patientBytes'>
}

export class DiskPace {
  readonly #deps: DiskPaceDeps
  /** While the disk is behind: resolves when it has caught up, or patience is at its end. */
  #wait: Promise<void> | undefined
  #isPatient = true
  /** Of what is not kept; once until the disk has caught up. */
  #isTold = false

  constructor(deps: DiskPaceDeps) {
    this.#deps = deps
  }

  /**
   * Waits with a download that is about to begin.
   *
   * @param sizeBytes undefined: nobody knows
   * @returns undefined: it begins at once. Else never rejects; resolves early when `signal` is aborted
   */
  keep(sizeBytes: number | undefined, signal: AbortSignal): Promise<void> | undefined {
    const isBehind = this.#wait !== undefined || this.#deps.blobs.patientBytes > BEHIND_BYTES
    if (!isBehind || !isSmall(sizeBytes ?? 0) || signal.aborted) return undefined
    this.#wait ??= this.#untilCaughtUp()
    if (!this.#isPatient) return undefined
    return leaveOnAbort(this.#wait, signal).catch(() => undefined)
  }

  /** Whether there is room in memory for one more blob of this size until the disk takes it. */
  takes(sizeBytes: number | undefined): boolean {
    const { blobs, logger, metrics } = this.#deps
    // What is larger, or may be, is written to a file as it comes.
    if (sizeBytes === undefined || !isSmall(sizeBytes)) return true
    const waitingBytes = blobs.patientBytes
    if (waitingBytes <= FAR_BEHIND_BYTES) return true
    metrics.notKept.inc({ type: 'blob' })
    this.#wait ??= this.#untilCaughtUp()
    if (!this.#isTold) {
      this.#isTold = true
      const mib = Math.floor(waitingBytes / 1024 ** 2)
      const what = `${mib} MiB of small blobs wait for the disk, which is slow or hangs: look at it`
      logger.warn({ waitingBytes }, `served but not kept: ${what}`)
    }
    return false
  }

  #untilCaughtUp(): Promise<void> {
    const { blobs, clock } = this.#deps
    return new Promise((resolve) => {
      const cancel = clock.setTimer(PATIENCE_MS, () => {
        this.#isPatient = false
        resolve()
      })
      const noteCaughtUp = (): void => {
        cancel()
        this.#wait = undefined
        this.#isPatient = true
        this.#isTold = false
        resolve()
      }
      void blobs.caughtUp().then(noteCaughtUp)
    })
  }
}

function isSmall(sizeBytes: number): boolean {
  return sizeBytes <= SMALL_BLOB_MAX_BYTES
}
