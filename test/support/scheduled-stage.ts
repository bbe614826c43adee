// A blob cache whose surroundings move only when a scheduler lets them: the upstream's answers and bytes, timers,
// and the moment at which a blob gets its name. The disk and the hashing thread are real.

import { mkdir } from 'node:fs/promises'
import { Readable } from 'node:stream'
import { pino } from 'pino'
import type { Scheduler } from 'fast-check'
import { BlobCache } from '../../src/cache/blob-cache.ts'
import { ContentMemory } from '../../src/cache/content-memory.ts'
import { DiskBudget } from '../../src/cache/disk-budget.ts'
import { Inventory } from '../../src/cache/inventory.ts'
import { Membership } from '../../src/cache/membership.ts'
import type { Repository } from '../../src/cache/repositories.ts'
import { Retention } from '../../src/cache/retention.ts'
import { StorageGuard } from '../../src/cache/storage-guard.ts'
import { Upstream, type UpstreamOptions } from '../../src/cache/upstream.ts'
import { UpstreamHealth } from '../../src/cache/upstream-health.ts'
import type { CancelTimer, Clock } from '../../src/clock.ts'
import type { Digest } from '../../src/oci/digest.ts'
import { parseRepositoryName } from '../../src/oci/reference.ts'
import { BlobStore } from '../../src/storage/blob-store.ts'
import { InMemoryDescriptorCache } from '../../src/storage/descriptor-cache.ts'
import { Digester } from '../../src/storage/digester.ts'
import { FileWriter } from '../../src/storage/file-writer.ts'
import { StorageError } from '../../src/storage/filesystem.ts'
import type { ContentIndex } from '../../src/storage/index/content-index.ts'
import { StoragePaths } from '../../src/storage/paths.ts'
import { RepositoryIndex } from '../../src/storage/repository-index.ts'
import { SpoolDirectory } from '../../src/storage/spool/spool-directory.ts'
import type { StorageThread } from '../../src/storage/storage-thread.ts'
import { Metrics } from '../../src/telemetry/metrics.ts'
import type { OpenRegistry, UpstreamBlob } from '../../src/upstream/remote-registry.ts'
import { UpstreamError } from '../../src/upstream/upstream-error.ts'
import { nextTurn } from './wait-for.ts'

/** Turns of the event loop in which whatever needs only the disk or the thread gets on a little. */
const TURNS_BETWEEN_STEPS = 3

/** With nothing to do for so long, there is nothing to come: what is left is on its way from disk to a download. */
const QUIET_STEPS = 10

const UPSTREAM_OPTIONS: UpstreamOptions = {
  namespace: undefined,
  isDockerHub: false,
  isMain: true,
  ttlMs: 0,
  tagTtlMs: 0,
  tagRules: [],
  allow: [],
  deny: [],
}

export interface UpstreamPlan {
  readonly bytes: Buffer
  readonly digest: Digest
  readonly isSizeAnnounced: boolean
  /** Into how many chunks a whole body is cut. */
  readonly chunks: number
  /** Bodies that break off, one after the other, after so many chunks. */
  readonly breaksAfter: readonly number[]
  /** How many requests for the blob are refused (503) at first. */
  readonly refusals: number
  /** How many bodies have a wrong byte at first. */
  readonly wrongBodies: number
}

/** Every timer is a task of its own: time passes when the scheduler says so. */
class ScheduledClock implements Clock {
  readonly #pause: (label: string) => Promise<void>
  #nowMs = 1_000_000
  /** Set, and neither run nor cancelled. */
  pendingTimers = 0

  constructor(pause: (label: string) => Promise<void>) {
    this.#pause = pause
  }

  now(): number {
    return this.#nowMs
  }

  monotonic(): number {
    return this.#nowMs
  }

  setTimer(delayMs: number, run: () => void): CancelTimer {
    const dueMs = this.#nowMs + delayMs
    let isPending = true
    this.pendingTimers++
    const settle = (): boolean => {
      const wasPending = isPending
      if (isPending) this.pendingTimers--
      isPending = false
      return wasPending
    }
    const fire = async (): Promise<void> => {
      await this.#pause(`timer ${delayMs} ms`)
      if (!settle()) return
      this.#nowMs = Math.max(this.#nowMs, dueMs)
      run()
    }
    void fire()
    return () => void settle()
  }
}

/** The part of an upstream client that blobs need. Only the repository `absent` does not have the blob. */
export class ScheduledUpstream {
  readonly name = 'hub'
  readonly #plan: UpstreamPlan
  readonly #pause: (label: string) => Promise<void>
  readonly #breaksAfter: number[]
  #refusals: number
  #wrongBodies: number
  /** Requests for the blob. */
  asked = 0
  /** Bodies that were begun. */
  bodies = 0
  openBodies = 0
  openBodiesMax = 0

  constructor(plan: UpstreamPlan, pause: (label: string) => Promise<void>) {
    this.#plan = plan
    this.#pause = pause
    this.#breaksAfter = [...plan.breaksAfter]
    this.#refusals = plan.refusals
    this.#wrongBodies = plan.wrongBodies
  }

  async headBlob(name: string): Promise<{ sizeBytes: number | undefined }> {
    await this.#pause(`HEAD ${name}`)
    if (name === 'absent') throw new UpstreamError('not-found', 'not there')
    return { sizeBytes: this.#plan.bytes.length }
  }

  async getBlob(
    name: string,
    _digest: Digest,
    { offset = 0, signal }: { offset?: number; signal?: AbortSignal },
  ): Promise<UpstreamBlob> {
    this.asked++
    await this.#pause(`GET ${name} from ${offset}`)
    signal?.throwIfAborted()
    if (name === 'absent') throw new UpstreamError('not-found', 'not there')
    if (this.#refusals-- > 0) throw new UpstreamError('unavailable', 'out of order')
    const { bytes, isSizeAnnounced } = this.#plan
    const sizeBytes = isSizeAnnounced || offset > 0 ? bytes.length : undefined
    return { startOffset: offset, sizeBytes, body: this.#body(offset, signal), sentBy: this.name }
  }

  #body(offset: number, signal: AbortSignal | undefined): Readable {
    const { bytes, chunks } = this.#plan
    const content = this.#wrongBodies-- > 0 ? withWrongByte(bytes) : bytes
    const chunkBytes = Math.ceil(bytes.length / chunks)
    const breakAfter = this.#breaksAfter.shift() ?? Infinity
    let position = offset
    let sent = 0
    this.bodies++
    this.openBodies++
    this.openBodiesMax = Math.max(this.openBodiesMax, this.openBodies)
    const sendChunk = async (): Promise<void> => {
      await this.#pause(`chunk at ${position}`)
      if (body.destroyed) return
      if (signal?.aborted) body.destroy(signal.reason as Error)
      else if (sent++ >= breakAfter) body.destroy(new Error('reset by peer'))
      else {
        const chunk = content.subarray(position, position + chunkBytes)
        position += chunk.length
        body.push(chunk.length > 0 ? Buffer.from(chunk) : null)
      }
    }
    const body = new Readable({
      read: () => void sendChunk(),
      destroy: (error, done) => {
        this.openBodies--
        done(error)
      },
    })
    return body
  }
}

function withWrongByte(bytes: Buffer): Buffer {
  const wrong = Buffer.from(bytes)
  wrong[0] = (wrong[0] ?? 0) ^ 1
  return wrong
}

export interface StageDeps {
  readonly scheduler: Scheduler
  readonly thread: StorageThread
  readonly index: ContentIndex
  readonly root: string
}

export class ScheduledStage {
  readonly upstream: ScheduledUpstream
  readonly clock: ScheduledClock
  readonly paths: StoragePaths
  readonly cache: BlobCache
  readonly store: BlobStore
  readonly spools: SpoolDirectory
  readonly metrics = new Metrics()
  readonly #scheduler: Scheduler
  readonly #membership: Membership
  readonly #inventory: Inventory
  readonly #index: RepositoryIndex
  readonly #digest: Digest

  /** @param options.refusesCommits whether the disk refuses to give blobs their names */
  constructor(deps: StageDeps, plan: UpstreamPlan, options: { refusesCommits: boolean }) {
    const { root, scheduler, thread } = deps
    const { metrics } = this
    this.#scheduler = scheduler
    this.#digest = plan.digest
    const clock = new ScheduledClock((label) => this.pause(label))
    const paths = new StoragePaths(root)
    const writer = new FileWriter({ thread, paths })
    const digester = new Digester({ thread })
    const logger = pino({ level: 'silent' })
    const storage = new StorageGuard({ logger, metrics })
    const retention = new Retention({ clock }, { ttlMs: 0, rules: [], formatTtl: String })
    const costs = { blockBytes: 4096, directoryBytes: 4096 }
    this.#inventory = new Inventory({ clock, logger, index: deps.index, retention }, costs)
    this.#inventory.setComplete(true)
    const blobs = new BlobStore({ paths, writer, digester })
    this.#index = new RepositoryIndex({ paths, writer })
    const budget = new DiskBudget(
      {
        clock,
        logger,
        usedBytes: () => 0,
        isCounted: () => true,
        whenCounted: () => Promise.resolve(),
        otherBytes: () => 0,
        measure: () => Promise.reject(new Error('nothing is measured')),
        makeRoom: () => Promise.resolve(0),
      },
      { maxSize: undefined, minFree: undefined },
    )
    const kept = { blobs, budget, storage, inventory: this.#inventory }
    this.#membership = new Membership({
      ...kept,
      index: this.#index,
      upstreams: { nameAt: (_upstream, name) => name },
    })
    this.upstream = new ScheduledUpstream(plan, (label) => this.pause(label))
    this.clock = clock
    this.paths = paths
    this.store = blobs
    this.spools = new SpoolDirectory({ paths, digester, clock, onStorageFailure: () => {} })
    this.#scheduleCommits(options.refusesCommits)
    this.cache = new BlobCache({
      clock,
      logger,
      metrics,
      blobs,
      descriptors: new InMemoryDescriptorCache({ entriesMax: 100 }),
      memory: new ContentMemory(),
      membership: this.#membership,
      inventory: this.#inventory,
      budget,
      spools: this.spools,
      storage,
    })
  }

  async prepare(): Promise<void> {
    await mkdir(this.paths.root, { recursive: true })
    await this.spools.start()
  }

  /** Waits for its turn. */
  pause(label: string): Promise<void> {
    return this.#scheduler.schedule(Promise.resolve(), label)
  }

  repository(text: string): Repository {
    const name = parseRepositoryName(text)
    if (!name) throw new Error(`not a repository name: ${text}`)
    const registry = this.upstream as unknown as OpenRegistry
    const health = new UpstreamHealth({ clock: this.clock })
    const upstream = new Upstream({ registry, health }, UPSTREAM_OPTIONS)
    return { name, storedName: name, registry, upstream, namespace: undefined }
  }

  /** Removes the blob and its links, as the janitor does. */
  async evict(): Promise<void> {
    for (const name of ['a', 'b']) {
      const { storedName: repository } = this.repository(name)
      const link = { repository, digest: this.#digest, kind: 'blob' } as const
      await this.#index.unlink(link)
      this.#membership.forget(link)
      await this.pause(`unlinked in ${name}`)
    }
    this.cache.forget(this.#digest)
    await this.store.remove(this.#digest)
    this.#inventory.addRemoved(this.#digest)
  }

  async fillsRunning(): Promise<number> {
    return (await this.metrics.fillsRunning.get()).values[0]?.value ?? 0
  }

  /**
   * Lets one task after the other have its turn, until `work` is over and no download runs any more.
   *
   * @returns how many timers were still set then
   */
  async play(work: Promise<unknown>): Promise<number> {
    const state = { isOver: false }
    const settle = (): void => void (state.isOver = true)
    work.then(settle, settle)
    while (!state.isOver || (await this.fillsRunning()) > 0) await this.step()
    const timersLeft = this.clock.pendingTimers
    // Timers that were given up are tasks all the same; and what a client did not wait for goes on without it.
    for (let quietSteps = 0; quietSteps < QUIET_STEPS; quietSteps++) {
      const isQuiet = this.#scheduler.count() === 0 && (await this.fillsRunning()) === 0
      if (!isQuiet) quietSteps = 0
      await this.step()
    }
    await work
    return timersLeft
  }

  /** Lets one task have its turn, if there is one. */
  async step(): Promise<void> {
    for (let turn = 0; turn < TURNS_BETWEEN_STEPS; turn++) await nextTurn()
    if (this.#scheduler.count() > 0) await this.#scheduler.waitNext(1)
  }

  #scheduleCommits(refusesCommits: boolean): void {
    const { store } = this
    const commit = async (go: () => Promise<boolean>): Promise<boolean> => {
      await this.pause('commit')
      if (refusesCommits) throw new StorageError('rename', 'blob', new Error('no space'))
      return go()
    }
    const adopt = store.adopt.bind(store)
    const put = store.put.bind(store)
    store.adopt = (digest, file, links) => commit(() => adopt(digest, file, links))
    store.put = (digest, bytes, links) => commit(() => put(digest, bytes, links))
  }
}
