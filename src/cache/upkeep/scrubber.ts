// Reads stored blobs again and hashes them: disks flip bits, and what nobody pulls nobody would notice. Goes through
// all of them in the order of digests, at a rate that leaves the disk to clients; a restart goes on where it was.
// What does not match its name is set aside, and fetched again when somebody asks for it.

import type { Logger } from 'pino'
import { delay, type CancelTimer, type Clock } from '../../clock.ts'
import { hexOf, type Digest } from '../../oci/digest.ts'
import type { BlobInfo } from '../../storage/blob-file.ts'
import type { BlobStore } from '../../storage/blob-store.ts'
import type { ContentIndex } from '../../storage/index/content-index.ts'
import type { Metrics } from '../../telemetry/metrics.ts'
import type { Inventory } from '../inventory.ts'

/** Read in one go; then it pauses for as long as the rate demands. */
const STEP_BYTES = 4 * 1024 ** 2
/** What opening a file costs a disk, as if so much was read: a million small files are work too. */
const FILE_COST_BYTES = 64 * 1024
/** How often it is looked whether a pass is due. */
const CHECK_INTERVAL_MS = 60_000
/** Blobs between two notes of how far it is: what a crash makes it read again. */
const NOTE_BLOBS = 200
/** In a row: then it is not the files but the disk, and reading on would not help it. */
const UNREADABLE_MAX = 10

export interface ScrubberDeps {
  readonly clock: Clock
  readonly logger: Logger
  readonly metrics: Metrics
  readonly blobs: BlobStore
  readonly index: ContentIndex
  readonly inventory: Inventory
  /** Called when a blob turned out not to be there. */
  readonly onRemoved: (digest: Digest) => void
}

export interface ScrubberOptions {
  /** From the begin of a pass to that of the next one; undefined: only when asked to. */
  readonly intervalMs: number | undefined
  readonly bytesPerSecond: number
}

export interface ScrubStatus {
  readonly isRunning: boolean
  /** Undefined: never. */
  readonly startedAtMs: number | undefined
  readonly bytesPerSecond: number
  /** Of this pass, or the last one, since the start of the process. */
  readonly blobs: number
  readonly bytes: number
  readonly damaged: number
  readonly unreadable: number
}

const NOTHING = { blobs: 0, bytes: 0, damaged: 0, unreadable: 0, vanished: 0 }

export class Scrubber {
  readonly #deps: ScrubberDeps
  readonly #options: ScrubberOptions
  readonly #stop = new AbortController()
  #cancelTimer: CancelTimer | undefined
  #pass: Promise<void> | undefined
  #found = { ...NOTHING }
  /** Why the last pass ended early. */
  #failure: string | undefined
  /** Read since the last pause. */
  #unpaidBytes = 0

  constructor(deps: ScrubberDeps, options: ScrubberOptions) {
    this.#deps = deps
    this.#options = options
  }

  start(): void {
    this.#schedule()
  }

  /** Begins a pass, or goes on with one that was interrupted. @returns false when one runs, or nothing is known yet */
  startNow(): boolean {
    const { inventory } = this.#deps
    if (this.#pass || !inventory.isComplete || this.#stop.signal.aborted) return false
    this.#pass = this.#runPass().finally(() => {
      this.#pass = undefined
    })
    return true
  }

  get status(): ScrubStatus {
    const { vanished: _, ...found } = this.#found
    return {
      isRunning: this.#pass !== undefined,
      startedAtMs: this.#deps.index.scrubPosition?.startedAtMs,
      bytesPerSecond: this.#options.bytesPerSecond,
      ...found,
    }
  }

  /** At once: in the middle of a blob, if need be. */
  async stop(): Promise<void> {
    this.#stop.abort(new Error('stopped'))
    this.#cancelTimer?.()
    await this.#pass
  }

  #schedule(): void {
    if (this.#options.intervalMs === undefined) return
    this.#cancelTimer = this.#deps.clock.setTimer(CHECK_INTERVAL_MS, () => {
      if (this.#isDue(this.#options.intervalMs ?? 0)) this.startNow()
      this.#schedule()
    })
  }

  #isDue(intervalMs: number): boolean {
    const position = this.#deps.index.scrubPosition
    if (!position || position.after) return true
    const sinceMs = this.#deps.clock.now() - position.startedAtMs
    // A clock that was wrong, and was set back, must not put it off for years.
    return sinceMs >= intervalMs || sinceMs < 0
  }

  async #runPass(): Promise<void> {
    const { clock, index, logger } = this.#deps
    const position = index.scrubPosition
    const after = position?.after
    const startedAtMs = position && after ? position.startedAtMs : clock.now()
    this.#found = { ...NOTHING }
    try {
      logger.info({ after }, 'reading all stored blobs again')
      const isDone = await this.#scrub(startedAtMs, after)
      this.#failure = undefined
      if (isDone) logger.info({ ...this.#found }, this.#summary())
    } catch (error) {
      if (this.#stop.signal.aborted) return
      // A disk that is full stays so for many attempts; it is told of once.
      const reason = error instanceof Error ? error.message : String(error)
      if (reason !== this.#failure)
        logger.error({ err: error }, 'gave up reading all stored blobs again')
      this.#failure = reason
    }
  }

  /** @returns false when it was stopped */
  async #scrub(startedAtMs: number, from: Digest | undefined): Promise<boolean> {
    const { index } = this.#deps
    let after = from
    let failures = 0
    let sinceNote = 0
    await index.setScrubPosition({ startedAtMs, after })
    try {
      for await (const { digest } of index.blobsAfter(from)) {
        if (this.#stop.signal.aborted) return false
        if (index.isOfAnotherVolume) throw new Error('another volume is in the place of ours')
        failures = (await this.#check(digest)) ? 0 : failures + 1
        if (failures >= UNREADABLE_MAX) {
          // Until the next pass.
          after = undefined
          throw new Error(`${failures} blobs in a row cannot be read`)
        }
        after = digest
        if (++sinceNote % NOTE_BLOBS === 0) await index.setScrubPosition({ startedAtMs, after })
      }
      after = undefined
      return true
    } finally {
      await index.setScrubPosition({ startedAtMs, after })
    }
  }

  /** @returns false when the disk could not read it */
  async #check(digest: Digest): Promise<boolean> {
    const { blobs } = this.#deps
    // A file that shrinks while it is read is looked at once more.
    for (let tries = 1; ; tries++) {
      const info = await blobs.stat(digest)
      if (!info) {
        this.#noteVanished(digest)
        return true
      }
      try {
        const hex = await this.#hash(digest, info)
        this.#found.blobs++
        if (hex !== hexOf(digest)) await this.#setAside(digest, info)
        return true
      } catch (error) {
        if (this.#stop.signal.aborted) throw error
        const now = await blobs.stat(digest)
        const isSame = now?.inode === info.inode && now.sizeBytes === info.sizeBytes
        if (!isSame && tries === 1) continue
        this.#noteUnreadable(digest, error)
        return false
      }
    }
  }

  /** @throws when it cannot be read, or the scrubber is stopped */
  async #hash(digest: Digest, { sizeBytes }: BlobInfo): Promise<string> {
    const { blobs, metrics } = this.#deps
    const run = blobs.hash(digest)
    try {
      await this.#pay(FILE_COST_BYTES)
      for (let position = 0; position < sizeBytes;) {
        const stepBytes = Math.min(STEP_BYTES, sizeBytes - position)
        position += stepBytes
        run.advance(position)
        await this.#pay(stepBytes)
      }
      const hex = await run.finish()
      metrics.scrubbedBytes.inc(sizeBytes)
      this.#found.bytes += sizeBytes
      return hex
    } finally {
      // No harm when it is over.
      run.abort()
    }
  }

  /** Pauses, now and then, for as long as the bytes may take. */
  async #pay(bytes: number): Promise<void> {
    this.#unpaidBytes += bytes
    if (this.#unpaidBytes < STEP_BYTES) return
    const pauseMs = (this.#unpaidBytes / this.#options.bytesPerSecond) * 1000
    this.#unpaidBytes = 0
    await delay(this.#deps.clock, pauseMs, { signal: this.#stop.signal })
  }

  async #setAside(digest: Digest, info: BlobInfo): Promise<void> {
    // Not what was fetched anew, or removed, while the old one was read.
    if (await this.#deps.blobs.quarantine(digest, info)) this.#found.damaged++
  }

  #noteUnreadable(digest: Digest, error: unknown): void {
    const { logger, metrics } = this.#deps
    this.#found.unreadable++
    metrics.storageErrors.inc()
    logger.error({ err: error, digest }, 'a stored blob cannot be read: check the disk')
  }

  /** Somebody removed it by hand, or it has just gone in order: then the index knows. */
  #noteVanished(digest: Digest): void {
    const { index, inventory, onRemoved } = this.#deps
    if (!index.has(digest) || inventory.hasNoteOf(digest)) return
    this.#found.vanished++
    inventory.addRemoved(digest)
    onRemoved(digest)
  }

  #summary(): string {
    const { blobs, bytes, damaged, unreadable, vanished } = this.#found
    const gib = (bytes / 1024 ** 3).toFixed(1)
    return (
      `read ${blobs} stored blobs (${gib} GiB) again: ${damaged} damaged, ` +
      `${unreadable} unreadable, ${vanished} vanished`
    )
  }
}
