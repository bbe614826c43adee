// A volume with its index and what knows of it, without a server: for what works on stored content.

import { pino, type Logger } from 'pino'
import { onTestFinished } from 'vitest'
import { Inventory } from '../../src/cache/inventory.ts'
import { Retention, type RetentionRule } from '../../src/cache/retention.ts'
import type { Digest } from '../../src/oci/digest.ts'
import { BlobStore } from '../../src/storage/blob-store.ts'
import { Digester } from '../../src/storage/digester.ts'
import { FileWriter } from '../../src/storage/file-writer.ts'
import { ensureOwnDirectory } from '../../src/storage/filesystem.ts'
import { ContentIndex } from '../../src/storage/index/content-index.ts'
import { StoragePaths } from '../../src/storage/paths.ts'
import { RepositoryIndex } from '../../src/storage/repository-index.ts'
import { Metrics } from '../../src/telemetry/metrics.ts'
import { FakeClock } from './fake-clock.ts'
import { makeStorageThread } from './storage-thread.ts'
import { makeTempDirectory } from './temp-directory.ts'

export interface LogLine {
  readonly msg: string
  readonly level: number
  readonly digest?: string
}

export interface VolumeRig {
  readonly clock: FakeClock
  readonly lines: LogLine[]
  readonly logger: Logger
  readonly metrics: Metrics
  readonly paths: StoragePaths
  readonly blobs: BlobStore
  readonly repositories: RepositoryIndex
  readonly index: ContentIndex
  readonly retention: Retention
  readonly inventory: Inventory
  /** Stores a blob, without a link. */
  store(digest: Digest, bytes: Buffer): Promise<void>
}

/** Known to be complete. */
export async function makeVolumeRig(
  options: { readonly rules?: readonly RetentionRule[] } = {},
): Promise<VolumeRig> {
  const clock = new FakeClock()
  const lines: LogLine[] = []
  const logger = pino({}, { write: (line: string) => lines.push(JSON.parse(line) as LogLine) })
  const paths = new StoragePaths(await makeTempDirectory())
  await ensureOwnDirectory(paths.temporary)
  const thread = makeStorageThread()
  const writer = new FileWriter({ thread, paths })
  const blobs = new BlobStore({ paths, writer, digester: new Digester({ thread }) })
  const repositories = new RepositoryIndex({ paths, writer })
  const index = await ContentIndex.open({ paths, writer, logger })
  onTestFinished(() => index.close())
  const { rules = [] } = options
  const retention = new Retention({ clock }, { ttlMs: 0, rules, formatTtl: String })
  const costs = { blockBytes: 4096, directoryBytes: 4096 }
  const inventory = new Inventory({ clock, logger, index, retention }, costs)
  inventory.setComplete(true)
  const metrics = new Metrics()
  const store = async (digest: Digest, bytes: Buffer): Promise<void> => {
    await blobs.put(digest, bytes)
    inventory.addStored(digest, bytes.length, { isManifest: false })
  }
  return {
    clock,
    lines,
    logger,
    metrics,
    paths,
    blobs,
    repositories,
    index,
    retention,
    inventory,
    store,
  }
}
