// The room on disk of one download: asked for before its first byte, and more of it as it goes when nobody knows how
// large it is. What there is no room for is served all the same, and not kept.

import type { Logger } from 'pino'
import type { Digest } from '../oci/digest.ts'
import { StorageError } from '../storage/filesystem.ts'
import type { Spool } from '../storage/spool/spool.ts'
import type { Metrics } from '../telemetry/metrics.ts'
import type { DiskBudget, Reservation } from './disk-budget.ts'

/** Asked for when nobody knows the size, and again each time that is used up. */
const UNKNOWN_STEP_BYTES = 4 * 1024 * 1024

export interface FillRoomOptions {
  readonly digest: Digest
  /** For the log. */
  readonly repository: string
  /** What its files take beside their bytes. */
  readonly filesBytes: number
}

export class FillRoom {
  readonly #deps: {
    readonly budget: DiskBudget
    readonly logger: Logger
    readonly metrics: Metrics
  }
  readonly #options: FillRoomOptions
  #room: Reservation | undefined

  constructor(
    deps: { readonly budget: DiskBudget; readonly logger: Logger; readonly metrics: Metrics },
    options: FillRoomOptions,
  ) {
    this.#deps = deps
    this.#options = options
  }

  /** Whether there is some. */
  get isReserved(): boolean {
    return this.#room !== undefined
  }

  /**
   * @param takenBytes of the size, on disk already
   * @returns whether there is room; else nothing is to be kept
   * @throws the signal's reason
   */
  async reserve(
    sizeBytes: number | undefined,
    takenBytes: number,
    signal: AbortSignal,
  ): Promise<boolean> {
    const wantedBytes = sizeBytes === undefined ? UNKNOWN_STEP_BYTES : sizeBytes - takenBytes
    const bytes = wantedBytes + this.#options.filesBytes
    this.#room = await this.#deps.budget.reserve(bytes, { signal })
    if (!this.#room) this.#noteNotKept(sizeBytes)
    return this.#room !== undefined
  }

  /** Adds what is on disk already, and was counted elsewhere so far. */
  take(bytes: number): void {
    this.#room?.take(bytes)
  }

  /** Whether it has to grow before so many bytes more are kept. */
  isTooSmall(spool: Spool, arrivedBytes: number): boolean {
    const room = this.#room
    if (!room || !spool.isKept) return false
    room.writtenBytes = spool.receivedBytes
    return spool.receivedBytes + arrivedBytes + this.#options.filesBytes > room.bytes
  }

  /** Asks for more; if there is none, what comes is not kept. @throws the signal's reason */
  async grow(spool: Spool, signal: AbortSignal): Promise<void> {
    if (await this.#room?.grow(UNKNOWN_STEP_BYTES, { signal })) return
    this.#noteNotKept(spool.sizeBytes)
    const reason = new Error('there is no room for it')
    spool.stopKeeping(new StorageError('keep', this.#options.digest, reason))
  }

  /** Idempotent. */
  release(): void {
    this.#room?.release()
  }

  /** Which one it is; why, the budget tells. */
  #noteNotKept(sizeBytes: number | undefined): void {
    const { logger, metrics } = this.#deps
    const { digest, repository } = this.#options
    metrics.notKept.inc({ type: 'blob' })
    const about = { digest, repository, sizeBytes }
    logger.info(about, 'no room for a blob; it is served but not kept')
  }
}
