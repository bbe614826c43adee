// The loop around retention: writes down uses, removes what is due, sweeps downloads that nobody resumed, and
// rebuilds the index after a crash. Works in small steps beside the serving; a step that fails is logged and
// tried again at the next round.

import type { Logger } from 'pino'
import type { CancelTimer, Clock } from '../clock.ts'
import type { Digest } from '../oci/digest.ts'
import type { BlobStore } from '../storage/blob-store.ts'
import type { StoragePaths } from '../storage/paths.ts'
import type { Link, RepositoryIndex } from '../storage/repository-index.ts'
import { readSchedulerState, writeSchedulerState } from '../storage/scheduler-state.ts'
import type { SpoolDirectory } from '../storage/spool-directory.ts'
import type { UsageEntry, UsageIndex } from '../storage/usage-index.ts'
import type { Metrics } from '../telemetry/metrics.ts'
import type { Retention } from './retention.ts'

/** Uses noted since the last write are what a crash forgets. */
const WRITE_INTERVAL_MS = 5_000
const SWEEP_INTERVAL_MAX_MS = 3_600_000
const SWEEP_INTERVAL_MIN_MS = 1_000
/** Sweeps per ttl: content lives at most this fraction longer than its ttl. */
const SWEEPS_PER_TTL = 20
const SCAN_BATCH_ENTRIES = 500

export interface JanitorDeps {
  readonly clock: Clock
  readonly logger: Logger
  readonly metrics: Metrics
  readonly retention: Retention
  readonly paths: StoragePaths
  readonly blobs: BlobStore
  readonly repositories: RepositoryIndex
  readonly spools: SpoolDirectory
  readonly usage: UsageIndex
  /** Called after a link was removed, so that nothing in memory claims it. */
  readonly onUnlinked: (link: Link) => void
  /** Called after a blob's bytes were removed. */
  readonly onRemoved: (digest: Digest) => void
}

export interface JanitorOptions {
  /** Unfinished downloads that nobody resumed for this long are removed; 0 keeps them. */
  readonly partialMaxAgeMs: number
  readonly partialPurgeIntervalMs: number
}

export class Janitor {
  readonly #deps: JanitorDeps
  readonly #options: JanitorOptions
  #cancelTimer: CancelTimer | undefined
  #nextSweepMs = 0
  #nextPurgeMs = 0
  #running: Promise<void> | undefined
  /** Until a scan has seen the whole tree, no bytes are removed: a link might not be in the index. */
  #hasSeenAll = false
  #stopped = false
  /** Why each step failed the last time. */
  readonly #failing = new Map<string, string>()

  constructor(deps: JanitorDeps, options: JanitorOptions) {
    this.#deps = deps
    this.#options = options
  }

  async start(): Promise<void> {
    this.#hasSeenAll = this.#deps.usage.isComplete
    // Set again by an orderly stop: after a crash the index may lack what was stored last.
    await this.#step('could not prepare the index', () => this.#deps.usage.markComplete(false))
    this.#nextSweepMs = this.#deps.clock.monotonic() + this.#sweepIntervalMs
    this.#nextPurgeMs = this.#deps.clock.monotonic()
    this.#schedule(this.#hasSeenAll ? WRITE_INTERVAL_MS : 0)
  }

  /** Ends the round that is under way, and writes everything down. */
  async stop(): Promise<void> {
    this.#stopped = true
    this.#cancelTimer?.()
    await this.#running
    await this.#step('could not write down last uses', () => this.writeUses())
    await this.#step('could not write scheduler-state.json', () => this.#writeSchedulerState())
    await this.#step('could not finish the index', () =>
      this.#deps.usage.markComplete(this.#hasSeenAll),
    )
  }

  /** Writes down the uses noted since the last time. */
  async writeUses(): Promise<void> {
    const entries = this.#deps.retention.takePending()
    if (entries.length === 0) return
    try {
      await this.#deps.usage.put(entries)
    } catch (error) {
      this.#deps.retention.restore(entries)
      throw error
    }
  }

  /** Removes everything that is due. */
  async sweep(): Promise<void> {
    await this.writeUses()
    if (!this.#hasSeenAll) return
    for await (const entry of this.#deps.usage.entries()) {
      if (this.#stopped) return
      if (this.#deps.retention.isDue(entry) && !this.#deps.retention.hasPending(entry)) {
        await this.#step('could not expire', () => this.#expire(entry))
      }
    }
  }

  /** Puts into the index what is on disk and not in it yet. */
  async scan(): Promise<void> {
    const { blobs, logger, paths, repositories, retention, usage } = this.#deps
    let batch: UsageEntry[] = []
    let links = 0
    const expiryTimes = await readSchedulerState(paths)
    const add = async (entry: UsageEntry): Promise<void> => {
      if (batch.push(entry) < SCAN_BATCH_ENTRIES) return
      await usage.put(batch)
      batch = []
    }
    for await (const link of repositories.links()) {
      if (this.#stopped) return
      links++
      const { digest, repository } = link
      if (usage.get(digest, repository)) continue
      const expiresAtMs = expiryTimes.get(`${repository}@${digest}`)
      await add({ ...link, lastUsedMs: retention.assumedLastUseMs(digest, expiresAtMs) })
    }
    await usage.put(batch)
    batch = []
    let stored = 0
    let unlinked = 0
    for await (const digest of blobs.list()) {
      if (this.#stopped) return
      stored++
      if (usage.ofDigest(digest).length > 0) continue
      unlinked++
      const lastUsedMs = retention.assumedLastUseMs(digest)
      await add({ digest, repository: undefined, kind: 'blob', lastUsedMs })
    }
    await usage.put(batch)
    this.#hasSeenAll = true
    logger.info(
      { links, stored, unlinked },
      `found ${stored} blobs and ${links} links in the volume`,
    )
  }

  get #sweepIntervalMs(): number {
    const { ttlMs } = this.#deps.retention
    if (ttlMs === 0) return SWEEP_INTERVAL_MAX_MS
    const wantedMs = Math.max(ttlMs / SWEEPS_PER_TTL, SWEEP_INTERVAL_MIN_MS)
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

  async #round(): Promise<void> {
    if (!this.#hasSeenAll) await this.#step('could not scan the volume', () => this.scan())
    await this.#step('could not write down last uses', () => this.writeUses())
    const nowMs = this.#deps.clock.monotonic()
    if (nowMs >= this.#nextSweepMs) {
      this.#nextSweepMs = nowMs + this.#sweepIntervalMs
      await this.#step('could not sweep', () => this.sweep())
    }
    if (nowMs >= this.#nextPurgeMs && this.#options.partialMaxAgeMs > 0) {
      this.#nextPurgeMs = nowMs + this.#options.partialPurgeIntervalMs
      await this.#step('could not remove unfinished downloads', () => this.#purgeSpools())
    }
  }

  /** For registry:2, should the volume go back to it. */
  async #writeSchedulerState(): Promise<void> {
    const { paths, retention, usage } = this.#deps
    if (this.#hasSeenAll) await writeSchedulerState(paths, usage.entries(), retention.ttlMs)
  }

  async #purgeSpools(): Promise<void> {
    const count = await this.#deps.spools.purge(this.#options.partialMaxAgeMs)
    if (count > 0) this.#deps.logger.info({ count }, 'removed unfinished downloads')
  }

  async #step(failure: string, action: () => Promise<void>): Promise<void> {
    try {
      await action()
      this.#failing.delete(failure)
    } catch (error) {
      // A full disk stays full for many rounds; it is told of once.
      const reason = error instanceof Error ? error.message : String(error)
      if (this.#failing.get(failure) === reason) return
      this.#failing.set(failure, reason)
      this.#deps.logger.error({ err: error }, failure)
    }
  }

  /** The entry goes last: a crash in between is repeated, not forgotten. */
  async #expire(entry: UsageEntry): Promise<void> {
    const { blobs, logger, metrics, onRemoved, retention, usage } = this.#deps
    const { digest, repository } = entry
    if (repository) await this.#unlinkAll({ ...entry, repository })
    // Somebody may have linked or used it while the links were removed: look again, at what is true now.
    await this.writeUses()
    const entries = usage.ofDigest(digest)
    const isUsedAgain = entries.some(
      (other) => other.repository === repository && !retention.isDue(other),
    )
    if (isUsedAgain) return
    const isWanted = entries.some((other) => other.repository !== repository)
    if (!isWanted && !retention.hasPendingOf(digest)) {
      logger.info(`Deleting blob: ${digest}`)
      if (await blobs.remove(digest)) metrics.removedBlobs.inc()
      onRemoved(digest)
    }
    await usage.remove(digest, repository)
  }

  /** A manifest may have been asked for as a blob too: one entry stands for both links. */
  async #unlinkAll(link: Link): Promise<void> {
    const other: Link = { ...link, kind: link.kind === 'blob' ? 'manifest' : 'blob' }
    if (await this.#deps.repositories.has(other)) await this.#unlink(other)
    await this.#unlink(link)
  }

  async #unlink(link: Link): Promise<void> {
    const { metrics, onUnlinked, repositories } = this.#deps
    const { digest, kind, repository } = link
    if (kind === 'manifest') {
      for (const tag of await repositories.listTags(repository)) {
        if ((await repositories.readTag(repository, tag)) === digest) {
          await repositories.removeTag(repository, tag)
        }
      }
    }
    await repositories.unlink({ digest, kind, repository })
    onUnlinked({ digest, kind, repository })
    metrics.expired.inc({ type: kind })
  }
}
