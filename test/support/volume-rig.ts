// Everything that keeps house over a real volume, wired as the service does it, without network and on a clock that
// stands still. Content is kept as downloads keep it: room first, then bytes and links, then the notes.

import { mkdir } from 'node:fs/promises'
import { pino } from 'pino'
import { onTestFinished } from 'vitest'
import type { DiskBudget } from '../../src/cache/disk-budget.ts'
import type { Inventory } from '../../src/cache/inventory.ts'
import type { Retention, RetentionRule } from '../../src/cache/retention.ts'
import type { Evictor } from '../../src/cache/upkeep/evictor.ts'
import type { Janitor } from '../../src/cache/upkeep/janitor.ts'
import type { Pins } from '../../src/cache/upkeep/pins.ts'
import { Purge, type Purging } from '../../src/cache/upkeep/purge.ts'
import type { PurgeItem, PurgeSummary } from '../../src/cache/upkeep/purge-run.ts'
import type { PurgeRequest } from '../../src/cache/upkeep/purge-selection.ts'
import type { Remover } from '../../src/cache/upkeep/remover.ts'
import { StoredNames } from '../../src/cache/upkeep/stored-names.ts'
import type { Digest } from '../../src/oci/digest.ts'
import { readManifest } from '../../src/oci/manifest.ts'
import { subjectOfTag, type RepositoryName, type Tag } from '../../src/oci/reference.ts'
import { createHousekeeping } from '../../src/service-storage.ts'
import { BlobStore } from '../../src/storage/blob-store.ts'
import { Digester } from '../../src/storage/digester.ts'
import type { DiskSpace } from '../../src/storage/disk-space.ts'
import { FileWriter } from '../../src/storage/file-writer.ts'
import { ContentIndex } from '../../src/storage/index/content-index.ts'
import { StoragePaths } from '../../src/storage/paths.ts'
import { RepositoryIndex, type Link, type LinkKind } from '../../src/storage/repository-index.ts'
import { SpoolDirectory } from '../../src/storage/spool/spool-directory.ts'
import type { StorageThread } from '../../src/storage/storage-thread.ts'
import { Metrics } from '../../src/telemetry/metrics.ts'
import { FakeClock } from './fake-clock.ts'
import type { TestBlob, TestImage, TestManifest } from './images.ts'
import { makeStorageThread } from './storage-thread.ts'
import { makeTempDirectory } from './temp-directory.ts'

/** A disk so large that only limits matter that a test sets. */
const HUGE_DISK: DiskSpace = { totalBytes: 2 ** 50, freeBytes: 2 ** 50 }

export const REPOSITORY = 'library/a' as RepositoryName
export const OTHER_REPOSITORY = 'library/b' as RepositoryName

export interface VolumeRigOptions {
  readonly rules?: readonly RetentionRule[]
  /** Default 0: nothing expires. */
  readonly ttlMs?: number
  readonly maxSizeBytes?: number
  readonly disk?: () => DiskSpace
  readonly janitor?: { readonly partialMaxAgeMs?: number }
  /** Called after a link was removed. */
  readonly onUnlinked?: (link: Link, rig: VolumeRig) => void
  /** False: nobody has looked through the volume. */
  readonly isScanned?: boolean
  /** Puts into the volume what is found there. */
  readonly fill?: (volume: { paths: StoragePaths; blobs: BlobStore }) => Promise<void>
}

/** Opens a new volume, which is looked through once if nothing else is said. It is closed with the test. */
export async function openVolume(options: VolumeRigOptions = {}): Promise<VolumeRig> {
  const paths = new StoragePaths(await makeTempDirectory())
  const thread = makeStorageThread()
  await mkdir(paths.temporary, { recursive: true })
  const store = storageOf(thread, paths)
  await options.fill?.({ paths, blobs: store.blobs })
  const rig = new VolumeRig(options, paths, thread)
  onTestFinished(() => rig.close())
  await rig.open()
  if (options.isScanned ?? true) await rig.janitor.scanVolume()
  return rig
}

type Wiring = Awaited<ReturnType<typeof wire>>

export class VolumeRig {
  readonly clock = new FakeClock()
  readonly metrics = new Metrics()
  readonly paths: StoragePaths
  /** What was logged. */
  readonly log: Record<string, unknown>[] = []
  readonly #options: VolumeRigOptions
  readonly #thread: StorageThread
  #parts: Wiring | undefined

  constructor(options: VolumeRigOptions, paths: StoragePaths, thread: StorageThread) {
    this.#options = options
    this.paths = paths
    this.#thread = thread
  }

  get #made(): Wiring {
    if (!this.#parts) throw new Error('the volume is not open')
    return this.#parts
  }

  get blobs(): BlobStore {
    return this.#made.blobs
  }

  get repositories(): RepositoryIndex {
    return this.#made.repositories
  }

  get spools(): SpoolDirectory {
    return this.#made.spools
  }

  get index(): ContentIndex {
    return this.#made.index
  }

  get retention(): Retention {
    return this.#made.retention
  }

  get inventory(): Inventory {
    return this.#made.inventory
  }

  get pins(): Pins {
    return this.#made.pins
  }

  get remover(): Remover {
    return this.#made.remover
  }

  get evictor(): Evictor {
    return this.#made.evictor
  }

  get budget(): DiskBudget {
    return this.#made.budget
  }

  get janitor(): Janitor {
    return this.#made.janitor
  }

  get messages(): string[] {
    return this.log.map(({ msg }) => String(msg))
  }

  /** As a process that starts. */
  async open(): Promise<void> {
    this.#parts = await wire(this, this.#thread, this.#options)
    const { blobs, budget, index, inventory } = this.#made
    inventory.setComplete(index.wasComplete)
    if (index.hasSeenAll || (await blobs.isEmpty())) inventory.setCounted()
    await budget.measure()
  }

  /** As a process that was told to stop. */
  async close(): Promise<void> {
    if (!this.#parts) return
    await this.janitor.stop()
    await this.crash()
  }

  /** As a process that was killed: what it had in memory is gone. */
  async crash(): Promise<void> {
    const { index } = this.#made
    this.#parts = undefined
    await index.close()
  }

  /** Keeps a blob as a download does. @returns false when there was no room for it */
  async keepBlob(blob: TestBlob, repository = REPOSITORY): Promise<boolean> {
    return this.#keep(blob, { repository, digest: blob.digest, kind: 'blob' })
  }

  async keepManifest(
    manifest: TestManifest,
    { repository = REPOSITORY, tag }: { repository?: RepositoryName; tag?: string } = {},
  ): Promise<boolean> {
    const { bytes, digest } = manifest
    const isKept = await this.#keep(manifest, { repository, digest, kind: 'manifest' })
    this.inventory.addNames(digest, readManifest(bytes))
    if (!isKept || tag === undefined) return isKept
    const subject = subjectOfTag(tag as Tag)
    if (subject) this.inventory.addCompanion(subject, digest)
    return this.setTag(tag as Tag, digest, repository)
  }

  /** @returns false when there was no room for it */
  async setTag(tag: Tag, digest: Digest, repository = REPOSITORY): Promise<boolean> {
    const { blobs, budget, inventory, repositories } = this.#made
    const write = async (): Promise<boolean> => {
      // What room was made for may have gone for it.
      if (!(await blobs.stat(digest))) return false
      await repositories.setTag(repository, tag, digest)
      inventory.addTag(repository, tag, digest)
      return true
    }
    return (await budget.keep(inventory.tagBytes, write)) === true
  }

  /** The manifest, then all that it names, as clients pull it. */
  async keepImage(
    { config, layers, manifest }: TestImage,
    options: { repository?: RepositoryName; tag?: string } = {},
  ): Promise<boolean> {
    let isKept = await this.keepManifest(manifest, options)
    for (const blob of [config, ...layers]) {
      isKept = (await this.keepBlob(blob, options.repository)) && isKept
    }
    return isKept
  }

  /** @throws {PurgeRequestError} */
  purging(request: PurgeRequest, options: { isDryRun: boolean }): Purging {
    return this.#made.purge.start(request, options)
  }

  /** The same to its end. */
  async purge(
    request: PurgeRequest,
    { isDryRun = false } = {},
  ): Promise<{ items: PurgeItem[]; summary: PurgeSummary | undefined }> {
    const purging = this.purging(request, { isDryRun })
    const items: PurgeItem[] = []
    for (;;) {
      const step = await purging.next()
      if (step.done) return { items, summary: step.value }
      items.push(step.value)
    }
  }

  use(blob: Pick<TestBlob, 'digest'>, kind: LinkKind, repository = REPOSITORY): void {
    this.inventory.touch({ digest: blob.digest, kind, repository })
  }

  /** What clients get of it. */
  async isStored(...blobs: readonly Pick<TestBlob, 'digest'>[]): Promise<boolean> {
    const found = await Promise.all(blobs.map(({ digest }) => this.blobs.stat(digest)))
    return found.every((info) => info !== undefined)
  }

  async #keep({ bytes, digest }: TestBlob, link: Link): Promise<boolean> {
    const { blobs, budget, inventory, repositories } = this.#made
    const isManifest = link.kind === 'manifest'
    const room = await budget.reserve(inventory.costOf(bytes.length, link.repository))
    if (!room) return false
    try {
      await blobs.put(digest, bytes, [repositories.linkFile(link)])
      inventory.addStored(digest, bytes.length, { isManifest })
      inventory.addLink(link)
      return true
    } finally {
      room.release()
    }
  }
}

/** One process's objects. */
async function wire(rig: VolumeRig, thread: StorageThread, options: VolumeRigOptions) {
  const { clock, metrics, paths } = rig
  const logger = pino(
    { level: 'debug' },
    { write: (line) => rig.log.push(JSON.parse(line) as Record<string, unknown>) },
  )
  const { blobs, digester, repositories, writer } = storageOf(thread, paths)
  const spools = new SpoolDirectory({ paths, digester, clock, onStorageFailure: () => undefined })
  await spools.start()
  const index = await ContentIndex.open({ paths, writer, logger })
  const { janitor = {}, maxSizeBytes, rules = [], ttlMs = 0 } = options
  const house = await createHousekeeping(
    {
      maxSize: maxSizeBytes === undefined ? undefined : { kind: 'bytes', bytes: maxSizeBytes },
      minFree: undefined,
      retention: rules,
      partialMaxAgeMs: 0,
      partialPurgeEnabled: true,
      partialPurgeIntervalMs: 0,
      ...janitor,
    },
    { blobs, index, paths, repositories, spools },
    {
      clock,
      logger,
      metrics,
      upstreams: { main: { ttlMs }, ttlMsOf: () => ttlMs, ttlsMs: [] },
      measureDisk: () => Promise.resolve(options.disk?.() ?? HUGE_DISK),
      onUnlinked: (link) => options.onUnlinked?.(link, rig),
      onRemoved: () => undefined,
    },
  )
  const names = new StoredNames({ name: 'registry.example', isDockerHub: false })
  const purge = new Purge({ clock, logger, metrics, blobs, index, repositories, names, ...house })
  return { blobs, index, repositories, spools, ...house, purge }
}

function storageOf(thread: StorageThread, paths: StoragePaths) {
  const writer = new FileWriter({ thread, paths })
  const digester = new Digester({ thread })
  const blobs = new BlobStore({ paths, writer, digester })
  return { writer, digester, blobs, repositories: new RepositoryIndex({ paths, writer }) }
}
