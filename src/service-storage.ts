// The part of the composition root that makes what is at rest: the disk, what is known of it, and how it is kept in
// bounds.

import type { Logger } from 'pino'
import { DiskBudget } from './cache/disk-budget.ts'
import { Inventory } from './cache/inventory.ts'
import { Retention } from './cache/retention.ts'
import { StorageGuard } from './cache/storage-guard.ts'
import { accountForDamage } from './cache/upkeep/damaged-content.ts'
import { Evictor } from './cache/upkeep/evictor.ts'
import { Janitor } from './cache/upkeep/janitor.ts'
import { Pins } from './cache/upkeep/pins.ts'
import { Remover } from './cache/upkeep/remover.ts'
import { VolumeScan } from './cache/upkeep/volume-scan.ts'
import type { Upstreams } from './cache/upstreams.ts'
import type { Clock } from './clock.ts'
import { formatDuration } from './config/duration.ts'
import type { Configuration, StorageConfiguration } from './config/schema.ts'
import type { Digest } from './oci/digest.ts'
import { BlobStore } from './storage/blob-store.ts'
import {
  InMemoryDescriptorCache,
  noDescriptorCache,
  type DescriptorCache,
} from './storage/descriptor-cache.ts'
import { Digester } from './storage/digester.ts'
import { OwnBytes, diskSpace, fileCosts, type DiskSpace } from './storage/disk-space.ts'
import { FileWriter } from './storage/file-writer.ts'
import { ContentIndex } from './storage/index/content-index.ts'
import type { StoragePaths } from './storage/paths.ts'
import { Quarantine } from './storage/quarantine.ts'
import { readTlsFiles } from './storage/redis-tls.ts'
import { RepositoryIndex, type Link } from './storage/repository-index.ts'
import { SpoolDirectory } from './storage/spool/spool-directory.ts'
import { StorageThread } from './storage/storage-thread.ts'
import { VolumeWatch } from './storage/volume-watch.ts'
import type { Metrics } from './telemetry/metrics.ts'

interface Deps {
  readonly clock: Clock
  readonly logger: Logger
  readonly metrics: Metrics
}

export type Storage = Awaited<ReturnType<typeof openStorage>>

/**
 * Bytes at rest. The spool makes the directories, the index opens in milliseconds or is rebuilt later.
 *
 * @param deps.paths of the root directory
 * @param deps.workerUrl the compiled worker: see storage/storage-thread.ts
 * @throws when the directory cannot be had, with what to do about it
 */
export async function openStorage(
  configuration: Configuration,
  deps: Deps & { readonly paths: StoragePaths; readonly workerUrl: URL },
) {
  const { clock, logger, metrics, paths, workerUrl } = deps
  const thread = new StorageThread({ workerUrl })
  const writer = new FileWriter({ thread, paths })
  const digester = new Digester({ thread })
  const blobs = new BlobStore({ paths, writer, digester })
  const repositories = new RepositoryIndex({ paths, writer })
  const guard = new StorageGuard({ logger, metrics })
  const spools = new SpoolDirectory({
    paths,
    digester,
    clock,
    onStorageFailure: (error) => guard.report(error),
  })
  await spools.start()
  const index = await ContentIndex.open({ paths, writer, logger })
  const descriptors = await createDescriptorCache(configuration, { clock, logger })
  const watch = new VolumeWatch({ paths })
  await guard.attempt(() => watch.look())
  return {
    paths,
    writer,
    blobs,
    repositories,
    guard,
    spools,
    index,
    descriptors,
    watch,
    async close(): Promise<void> {
      await Promise.all([thread.close(), descriptors.close(), watch.close()])
      await index.close()
    },
  }
}

/** How long each upstream's content is kept. */
export type UpstreamTtls = Pick<Upstreams, 'ttlMsOf' | 'ttlsMs'> & {
  readonly main: Pick<Upstreams['main'], 'ttlMs'>
}

/**
 * What is kept, for how long, and how much of it.
 *
 * @param deps.measureDisk how large the disk is, and how much of it is free
 * @param deps.onUnlinked called after a link was removed, so that nothing in memory claims it
 * @param deps.onRemoved called after a blob's bytes were removed
 */
export async function createHousekeeping(
  options: Omit<StorageConfiguration, 'rootDirectory' | 'descriptorCache' | 'scrub'>,
  storage: Pick<Storage, 'blobs' | 'index' | 'paths' | 'repositories' | 'spools'>,
  deps: Deps & {
    readonly upstreams: UpstreamTtls
    readonly measureDisk?: (paths: StoragePaths) => Promise<DiskSpace>
    readonly onUnlinked: (link: Link) => void
    readonly onRemoved: (digest: Digest) => void
  },
) {
  const { clock, logger, measureDisk = diskSpace, metrics, onRemoved, onUnlinked, upstreams } = deps
  const { blobs, index, paths, repositories, spools } = storage
  const retention = new Retention(
    { clock },
    {
      ttlMs: upstreams.main.ttlMs,
      ttlMsOf: (storedName) => upstreams.ttlMsOf(storedName),
      ttlsMs: upstreams.ttlsMs,
      rules: options.retention,
      formatTtl: formatDuration,
    },
  )
  const inventory = new Inventory({ clock, logger, index, retention }, await fileCosts(paths))
  const pins = new Pins({ index, repositories, retention })
  const remover = new Remover({ blobs, repositories, index, inventory, onUnlinked, onRemoved })
  const common = { clock, logger, metrics, paths, blobs, repositories, spools }
  const kept = { index, inventory, retention, pins, remover }
  const evictor = new Evictor({ ...common, ...kept })
  const own = new OwnBytes({ paths, indexBytes: () => index.fileBytes })
  const budget = new DiskBudget(
    {
      clock,
      logger,
      usedBytes: () => inventory.usedBytes,
      isCounted: () => inventory.isCounted,
      whenCounted: () => inventory.whenCounted(),
      otherBytes: () => own.bytes + spools.partBytesTotal,
      measure: async () => {
        await own.measure()
        return measureDisk(paths)
      },
      makeRoom: (neededBytes) => evictor.makeRoom(neededBytes),
    },
    options,
  )
  accountForDamage({ ...common, inventory, own, onRemoved })
  const scan = new VolumeScan({ ...common, ...kept })
  const quarantine = new Quarantine({ paths, clock })
  const janitor = new Janitor(
    { ...common, ...kept, budget, quarantine, scan },
    {
      ttlMinMs: retention.ttlMinMs,
      partialMaxAgeMs: options.partialPurgeEnabled ? options.partialMaxAgeMs : 0,
      partialPurgeIntervalMs: options.partialPurgeIntervalMs,
    },
  )
  return { retention, inventory, pins, remover, evictor, budget, janitor }
}

async function createDescriptorCache(
  { redis, storage }: Configuration,
  deps: { clock: Clock; logger: Logger },
): Promise<DescriptorCache> {
  const { descriptorCache } = storage
  if (descriptorCache.kind === 'inmemory') return new InMemoryDescriptorCache(descriptorCache)
  if (descriptorCache.kind === 'none' || !redis) return noDescriptorCache
  // Not at the top: the client for Redis takes 5 MB of memory, also where there is none.
  const { RedisDescriptorCache } = await import('./storage/redis-descriptor-cache.ts')
  return new RedisDescriptorCache(deps, { ...redis, tls: await readTlsFiles(redis.tls) })
}
