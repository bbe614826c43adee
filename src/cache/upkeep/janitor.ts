// The loop that keeps house: writes down uses, removes what is due, keeps the disk within its bounds, sweeps what
// nobody resumed, and has the volume looked through after a crash. Works in small steps beside the serving; a step
// that fails is logged and tried again at the next round.

import type { Logger } from 'pino'
import type { CancelTimer, Clock } from '../../clock.ts'
import type { Digest } from '../../oci/digest.ts'
import type { BlobStore } from '../../storage/blob-store.ts'
import type { ContentIndex, LinkEntry } from '../../storage/index/content-index.ts'
import type { IndexChange } from '../../storage/index/index-changes.ts'
import { writeSchedulerState } from '../../storage/index/scheduler-state.ts'
import type { StoragePaths } from '../../storage/paths.ts'
import type { Quarantine } from '../../storage/quarantine.ts'
import type { SpoolDirectory } from '../../storage/spool/spool-directory.ts'
import type { Metrics } from '../../telemetry/metrics.ts'
import type { DiskBudget } from '../disk-budget.ts'
import type { Inventory } from '../inventory.ts'
import type { Retention } from '../retention.ts'
import type { Pins } from './pins.ts'
import type { Remover } from './remover.ts'
import type { VolumeScan } from './volume-scan.ts'

/** Uses noted since the last write are what a crash forgets. */
const WRITE_INTERVAL_MS = 5_000
/** What is new on disk is written down sooner: a crash must not make it uncounted. */
const URGENT_WRITE_MS = 100
/** Of what names what: an index, its images, their layers. */
const LEVELS_MAX = 4
const SWEEP_INTERVAL_MAX_MS = 3_600_000
const SWEEP_INTERVAL_MIN_MS = 1_000
/** Sweeps per ttl: content lives at most this fraction longer than its ttl. */
const SWEEPS_PER_TTL = 20
/** Bytes without a link that a crash has left: time enough for the client that was cut off to ask again. */
const ORPHAN_AGE_MS = 60_000
/** A last use that lies later was noted by a clock that was wrong. */
const FUTURE_MAX_MS = 60_000
/** Put right in one sweep. */
const FUTURE_MAX_ENTRIES = 1_000
/** In scheduler-state.json, with a name of some length; the old file stands beside the new one for a moment. */
const STATE_BYTES_PER_LINK = 320
/** Of all that the cache may take. */
const QUARANTINE_PART = 0.05
/** Written together. */
const BATCH_CHANGES = 100

export interface JanitorDeps {
  readonly clock: Clock
  readonly logger: Logger
  readonly metrics: Metrics
  readonly retention: Retention
  readonly paths: StoragePaths
  readonly blobs: BlobStore
  readonly spools: SpoolDirectory
  readonly quarantine: Quarantine
  readonly index: ContentIndex
  readonly inventory: Inventory
  readonly pins: Pins
  readonly remover: Remover
  readonly budget: DiskBudget
  readonly scan: VolumeScan
}

export interface JanitorOptions {
  /** The shortest that any content has; 0: nothing ever expires. */
  readonly ttlMinMs: number
  /** Unfinished downloads and uploads that nobody resumed for this long are removed; 0 keeps them. */
  readonly partialMaxAgeMs: number
  readonly partialPurgeIntervalMs: number
}

export class Janitor {
  readonly #deps: JanitorDeps
  readonly #options: JanitorOptions
  #cancelTimer: CancelTimer | undefined
  #cancelUrgent: CancelTimer | undefined
  #nextSweepMs = 0
  #nextPurgeMs = 0
  #running: Promise<void> | undefined
  #stopped = false
  /** Left by a crash. */
  #orphans: readonly Digest[] = []
  #orphansDueMs = 0
  /** Why each step failed the last time. */
  readonly #failing = new Map<string, string>()

  constructor(deps: JanitorDeps, options: JanitorOptions) {
    this.#deps = deps
    this.#options = options
    deps.inventory.onUrgent = () => this.#writeSoon()
  }

  async start(): Promise<void> {
    const { blobs, budget, clock, index, inventory } = this.#deps
    inventory.setComplete(index.wasComplete)
    await this.#step('could not look at the volume', async () => {
      // After a crash the index lacks what came last: until that is found, nobody knows how much there is.
      if (await blobs.isEmpty()) inventory.setCounted()
    })
    await this.#step('could not measure the disk', () => budget.measure())
    this.#nextSweepMs = clock.monotonic() + this.#sweepIntervalMs
    this.#nextPurgeMs = clock.monotonic()
    this.#schedule(inventory.isComplete ? WRITE_INTERVAL_MS : 0)
  }

  /** Ends the round that is under way, and writes everything down. */
  async stop(): Promise<void> {
    const { index, inventory, scan } = this.#deps
    this.#stopped = true
    scan.stop()
    this.#cancelTimer?.()
    this.#cancelUrgent?.()
    await this.#running
    const writeDown = (): Promise<boolean> =>
      this.#step('could not write down last uses', () => inventory.flush())
    await writeDown()
    await this.#step('could not write scheduler-state.json', () => this.#writeSchedulerState())
    // Also what had to go for it.
    const isWritten = await writeDown()
    // What was not removed yet has to be found again.
    if (!isWritten || !inventory.isComplete || this.#orphans.length > 0) return
    index.markComplete()
  }

  /** Removes everything that is due. */
  async sweep(): Promise<void> {
    const { clock, index, inventory, retention } = this.#deps
    await inventory.flush()
    // Until the whole tree has been seen, a link might not be in the index.
    if (!inventory.isComplete || index.isOfAnotherVolume) return
    if (retention.hasPins) await this.#renewPinned()
    for (let level = 0; level < LEVELS_MAX; level++) {
      if (!(await this.#sweepLinks())) break
      // Then the index knows that nothing names them any more.
      await inventory.flush()
    }
    if (this.#stopped) return
    const nowMs = clock.now()
    const rewinds: IndexChange[] = []
    for await (const { digest, lastUsedMs } of index.blobs()) {
      if (this.#stopped) return
      // Else it would stay until the clock has caught up.
      const isWrong = lastUsedMs > nowMs + FUTURE_MAX_MS && rewinds.length < FUTURE_MAX_ENTRIES
      if (isWrong) rewinds.push({ change: 'rewind', digest, atMs: nowMs })
      if (retention.isDueUnlinked(lastUsedMs) && index.linksOf(digest).length === 0) {
        await this.#step('could not expire', async () => void (await this.#remove(digest)))
      }
    }
    await index.write(rewinds)
    await inventory.flush()
  }

  /** @returns whether links that are due were kept for something that has gone since */
  async #sweepLinks(): Promise<boolean> {
    const remover = this.#deps.remover.batch()
    const links = { kept: 0, gone: 0 }
    for await (const entry of this.#deps.index.links()) {
      if (this.#stopped) return false
      if (!this.#isDue(entry)) continue
      await this.#step('could not expire', async () => {
        links[(await this.#expire(entry, remover)) ? 'gone' : 'kept']++
      })
    }
    return links.kept > 0 && links.gone > 0
  }

  /** Removes what the last scan has found without a link, if nobody has linked it since. */
  async sweepOrphans(): Promise<void> {
    const { index } = this.#deps
    const orphans = this.#orphans
    this.#orphans = []
    for (const [position, digest] of orphans.entries()) {
      if (this.#stopped) {
        this.#orphans = orphans.slice(position)
        return
      }
      if (index.linksOf(digest).length > 0) continue
      const remove = async (): Promise<void> => void (await this.#remove(digest))
      await this.#step('could not remove a blob without a link', remove)
    }
  }

  /** Looks through the volume, once. */
  async scanVolume(): Promise<void> {
    const { budget, clock, index, inventory, scan } = this.#deps
    if (!(await scan.run(this.#options.partialMaxAgeMs))) return
    inventory.setComplete(true)
    this.#orphans = scan.orphans
    this.#orphansDueMs = clock.monotonic() + ORPHAN_AGE_MS
    // Complete only when it is closed in order; but all was seen once.
    await index.markSeen()
    await budget.measure()
  }

  get #sweepIntervalMs(): number {
    const { ttlMinMs } = this.#options
    if (ttlMinMs === 0) return SWEEP_INTERVAL_MAX_MS
    const wantedMs = Math.max(ttlMinMs / SWEEPS_PER_TTL, SWEEP_INTERVAL_MIN_MS)
    return Math.min(wantedMs, SWEEP_INTERVAL_MAX_MS)
  }

  #schedule(delayMs: number): void {
    if (this.#stopped) return
    this.#cancelTimer = this.#deps.clock.setTimer(delayMs, () => {
      this.#running = this.#round().finally(() => {
        this.#running = undefined
        this.#schedule(Math.min(WRITE_INTERVAL_MS, this.#sweepIntervalMs))
      })
    })
  }

  #writeSoon(): void {
    if (this.#stopped) return
    this.#cancelUrgent ??= this.#deps.clock.setTimer(URGENT_WRITE_MS, () => {
      this.#cancelUrgent = undefined
      void this.#step('could not write down last uses', () => this.#deps.inventory.flush())
    })
  }

  async #round(): Promise<void> {
    const { budget, clock, inventory, quarantine } = this.#deps
    if (!inventory.isComplete) {
      await this.#step('could not look through the volume', () => this.scanVolume())
    }
    await this.#step('could not write down last uses', () => inventory.flush())
    // It takes of the room for what is good.
    await this.#step('could not purge the quarantine', () =>
      quarantine.purge(budget.limitBytes * QUARANTINE_PART),
    )
    await this.#step('could not measure the disk', () => budget.measure())
    await this.#step('could not make room', () => budget.trim())
    const nowMs = clock.monotonic()
    if (nowMs >= this.#nextSweepMs) {
      this.#nextSweepMs = nowMs + this.#sweepIntervalMs
      await this.#step('could not sweep', () => this.sweep())
    }
    if (this.#orphans.length > 0 && nowMs >= this.#orphansDueMs) await this.sweepOrphans()
    if (nowMs >= this.#nextPurgeMs) {
      this.#nextPurgeMs = nowMs + this.#options.partialPurgeIntervalMs
      await this.#step('could not remove unfinished downloads', () => this.#purgeLeftovers())
    }
    this.#showUsage()
  }

  /** For registry:2, should the volume go back to it. */
  async #writeSchedulerState(): Promise<void> {
    const { budget, index, inventory, logger, paths, retention } = this.#deps
    if (!inventory.isComplete || index.isOfAnotherVolume) return
    const isKept = await budget.keep(index.totals.links * STATE_BYTES_PER_LINK, async () => {
      await writeSchedulerState(paths, index.links(), (name) => retention.ttlMsOf(name))
      return true
    })
    if (!isKept) logger.warn('no room for scheduler-state.json; it stays as it was')
  }

  async #purgeLeftovers(): Promise<void> {
    const { logger, spools } = this.#deps
    if (this.#options.partialMaxAgeMs <= 0) return
    const count = await spools.purge(this.#options.partialMaxAgeMs)
    if (count > 0) logger.info({ count }, 'removed unfinished downloads')
  }

  #showUsage(): void {
    const { budget, index, metrics } = this.#deps
    metrics.storageUsed.set(budget.usedBytes)
    metrics.storageReserved.set(budget.reservedBytes)
    metrics.storageLimit.set(Number.isFinite(budget.limitBytes) ? budget.limitBytes : 0)
    metrics.storedBlobs.set(index.totals.blobs)
  }

  /** @returns false when it failed; a full disk stays full for many rounds, and is told of once */
  async #step(failure: string, action: () => Promise<void>): Promise<boolean> {
    try {
      await action()
      this.#failing.delete(failure)
      return true
    } catch (error) {
      const reason = error instanceof Error ? error.message : String(error)
      if (this.#failing.get(failure) !== reason) this.#deps.logger.error({ err: error }, failure)
      this.#failing.set(failure, reason)
      return false
    }
  }

  /** Never of a repository that is pinned. */
  #isDue({ lastUsedMs, repository }: LinkEntry): boolean {
    const { retention } = this.#deps
    return retention.isDue(repository, lastUsedMs) && !retention.isPinned(repository)
  }

  /** What a pinned tag points to counts as used, and all that goes along with it. */
  async #renewPinned(): Promise<void> {
    const { clock, index, pins } = this.#deps
    const pinned = pins.now()
    const atMs = clock.now()
    let uses: IndexChange[] = []
    for await (const { digest, kind, repository } of index.links()) {
      if (this.#stopped) return
      if (kind !== 'manifest' || !(await pinned.isTagPinned(repository, digest))) continue
      uses.push({ change: 'use', link: { digest, kind, repository }, atMs })
      if (uses.length < BATCH_CHANGES) continue
      await index.write(uses)
      uses = []
    }
    await index.write(uses)
  }

  /**
   * The bytes stay as long as another repository links them, and the last link as long as a stored image names them: its
   * own repository may never have been asked for them, since the client had them already.
   *
   * @returns whether the link has gone
   */
  async #expire({ digest, kind, repository }: LinkEntry, remover: Remover): Promise<boolean> {
    const { index, inventory, metrics } = this.#deps
    // Somebody may have used it since the sweep began: look again, at what is true now.
    const now = index.link(digest, repository)
    if (!now || inventory.hasNoteOf(digest) || !this.#isDue(now)) return false
    const others = index.linksOf(digest).filter((link) => link.repository !== repository)
    const isNamed = (index.blob(digest)?.namedBy ?? 0) > 0
    if (isNamed && others.length === 0) return false
    // With its links, or not at all: who asks for it meanwhile must find both.
    const goesWhole = !isNamed && others.every((link) => this.#isDue(link))
    if (!goesWhole) await remover.unlink({ digest, kind, repository })
    else if (!(await this.#remove(digest, remover))) return false
    metrics.expired.inc({ type: kind })
    return true
  }

  /** @returns false when it is in use: then it stays, with its links */
  async #remove(digest: Digest, remover = this.#deps.remover): Promise<boolean> {
    const { logger, metrics } = this.#deps
    if ((await remover.remove(digest)) === undefined) return false
    metrics.removedBlobs.inc()
    logger.info(`Deleting blob: ${digest}`)
    return true
  }
}
