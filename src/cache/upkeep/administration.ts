// What operators may ask of a cache that runs: what is it, what takes the space, remove this, read everything again.

import { hostname } from 'node:os'
import type { Logger } from 'pino'
import type { Clock } from '../../clock.ts'
import type { Digest } from '../../oci/digest.ts'
import type { BlobStore } from '../../storage/blob-store.ts'
import type { ContentIndex } from '../../storage/index/content-index.ts'
import type { RepositoryIndex } from '../../storage/repository-index.ts'
import type { Metrics } from '../../telemetry/metrics.ts'
import type { DiskBudget } from '../disk-budget.ts'
import type { Inventory } from '../inventory.ts'
import type { Retention } from '../retention.ts'
import { Purge } from './purge.ts'
import type { Remover } from './remover.ts'
import { Scrubber, type ScrubStatus, type ScrubberOptions } from './scrubber.ts'
import { StoredNames, type DefaultUpstream } from './stored-names.ts'
import { usageReport, type UsageReport } from './usage-report.ts'

export interface Status {
  /** `layover/1.2.3`. */
  readonly server: string
  readonly pid: number
  /** In a container, its id. */
  readonly host: string
  readonly startedAt: string
  readonly rootDirectory: string
  /** False: the volume is still being looked through. */
  readonly isIndexComplete: boolean
  readonly blobs: number
  readonly usedBytes: number
  readonly reservedBytes: number
  /** Undefined: not measured yet. */
  readonly limitBytes: number | undefined
  readonly scrub: ScrubStatus
}

export interface AdministrationDeps {
  readonly clock: Clock
  readonly logger: Logger
  readonly metrics: Metrics
  readonly blobs: BlobStore
  readonly repositories: RepositoryIndex
  readonly index: ContentIndex
  readonly inventory: Inventory
  readonly budget: DiskBudget
  readonly retention: Retention
  readonly remover: Remover
  readonly upstream: DefaultUpstream
  /** Called after a blob turned out damaged or gone. */
  readonly onRemoved: (digest: Digest) => void
}

export interface AdministrationOptions {
  readonly server: string
  readonly rootDirectory: string
  /** Undefined: blobs are read again only when an operator asks for it. */
  readonly scrub: ScrubberOptions | undefined
}

/** A tenth of what a slow disk gives. */
const SCRUB_DEFAULT: ScrubberOptions = { intervalMs: undefined, bytesPerSecond: 20e6 }

export class Administration {
  readonly purge: Purge
  readonly scrubber: Scrubber
  readonly #deps: AdministrationDeps
  readonly #options: AdministrationOptions
  readonly #names: StoredNames
  readonly #startedAtMs: number
  readonly #stop = new AbortController()
  /** Shared by all who ask meanwhile: it reads the whole index. */
  #usage: Promise<UsageReport> | undefined

  constructor(deps: AdministrationDeps, options: AdministrationOptions) {
    this.#deps = deps
    this.#options = options
    this.#names = new StoredNames(deps.upstream)
    this.#startedAtMs = deps.clock.now()
    this.purge = new Purge({ ...deps, names: this.#names })
    this.scrubber = new Scrubber(deps, options.scrub ?? SCRUB_DEFAULT)
  }

  /**
   * @throws {NotReadyError}
   * @throws {StorageError}
   */
  usage(): Promise<UsageReport> {
    const deps = { ...this.#deps, names: this.#names }
    this.#usage ??= usageReport(deps, this.#stop.signal).finally(() => {
      this.#usage = undefined
    })
    return this.#usage
  }

  get status(): Status {
    const { budget, index, inventory } = this.#deps
    const { rootDirectory, server } = this.#options
    const { limitBytes, reservedBytes, usedBytes } = budget
    return {
      server,
      pid: process.pid,
      host: hostname(),
      startedAt: new Date(this.#startedAtMs).toISOString(),
      rootDirectory,
      isIndexComplete: inventory.isComplete,
      blobs: index.totals.blobs,
      usedBytes,
      reservedBytes,
      limitBytes: Number.isFinite(limitBytes) ? limitBytes : undefined,
      scrub: this.scrubber.status,
    }
  }

  start(): void {
    this.scrubber.start()
  }

  /** Nothing reads the index when this resolves. */
  async stop(): Promise<void> {
    this.#stop.abort()
    await Promise.all([this.purge.stop(), this.scrubber.stop(), this.#usage?.catch(ignore)])
  }
}

function ignore(): void {
  // Whoever asked is told.
}
