import { existsSync } from 'node:fs'
import { pino } from 'pino'
import { describe, expect, it, onTestFinished } from 'vitest'
import { Janitor } from '../../../src/cache/janitor.ts'
import { Retention } from '../../../src/cache/retention.ts'
import type { RepositoryName } from '../../../src/oci/reference.ts'
import { Digester } from '../../../src/storage/digester.ts'
import { FileWriter } from '../../../src/storage/file-writer.ts'
import { BlobStore } from '../../../src/storage/blob-store.ts'
import { StoragePaths } from '../../../src/storage/paths.ts'
import { RepositoryIndex, type Link } from '../../../src/storage/repository-index.ts'
import { SpoolDirectory } from '../../../src/storage/spool-directory.ts'
import { UsageIndex } from '../../../src/storage/usage-index.ts'
import { Metrics } from '../../../src/telemetry/metrics.ts'
import { FakeClock } from '../../support/fake-clock.ts'
import { blobOf } from '../../support/images.ts'
import { makeStorageThread } from '../../support/storage-thread.ts'
import { makeTempDirectory } from '../../support/temp-directory.ts'

const TTL_MS = 1_000
const A = 'library/a' as RepositoryName
const B = 'library/b' as RepositoryName

/** A janitor over a real volume. @param onUnlinked what happens while it removes something */
async function setUp(onUnlinked: (link: Link, retention: Retention) => void = () => undefined) {
  const clock = new FakeClock()
  const logger = pino({ enabled: false })
  const paths = new StoragePaths(await makeTempDirectory())
  const thread = makeStorageThread()
  const digester = new Digester({ thread })
  const writer = new FileWriter({ thread, paths })
  const blobs = new BlobStore({ paths, writer, digester })
  const repositories = new RepositoryIndex({ paths, writer })
  const spools = new SpoolDirectory({ paths, digester, clock, onStorageFailure: () => undefined })
  await spools.start()
  const usage = await UsageIndex.open({ paths, writer, logger })
  onTestFinished(() => usage.close())
  const retention = new Retention({ clock, logger }, { ttlMs: TTL_MS, ttlText: '1s' })
  const janitor = new Janitor(
    {
      clock,
      logger,
      metrics: new Metrics(),
      retention,
      paths,
      blobs,
      repositories,
      spools,
      usage,
      onUnlinked: (link) => onUnlinked(link, retention),
      onRemoved: () => undefined,
    },
    { partialMaxAgeMs: 0, partialPurgeIntervalMs: 0 },
  )
  await janitor.scan()
  return { blobs, clock, janitor, paths, repositories, retention, usage }
}

type SetUp = Awaited<ReturnType<typeof setUp>>

const blob = blobOf(1000, 'kept or not')

/** Stores the blob for repository A, lets its ttl pass, and sweeps. */
async function expire({ blobs, clock, janitor, repositories, retention }: SetUp): Promise<void> {
  const link: Link = { repository: A, digest: blob.digest, kind: 'blob' }
  await blobs.put(blob.digest, blob.bytes)
  await repositories.link(link)
  retention.add(link)
  await janitor.writeUses()
  await clock.advance(TTL_MS)
  await janitor.sweep()
}

describe('the janitor', () => {
  it('removes what nobody has used for the ttl', async () => {
    const all = await setUp()
    await expire(all)
    expect(existsSync(all.paths.blobData(blob.digest))).toBe(false)
  })

  it('leaves the bytes that another repository begins to use while the last link goes', async () => {
    const other: Link = { repository: B, digest: blob.digest, kind: 'blob' }
    const all = await setUp((unlinked, noting) => {
      if (unlinked.repository === A) noting.add(other)
    })
    await expire(all)
    expect(existsSync(all.paths.blobData(blob.digest))).toBe(true)
    expect(all.usage.ofDigest(blob.digest).map(({ repository }) => repository)).toEqual([B])
  })

  it('keeps what it could not write down for the next time', async () => {
    const { janitor, retention, usage } = await setUp()
    retention.add({ repository: A, digest: blob.digest, kind: 'blob' })
    const put = usage.put.bind(usage)
    usage.put = () => Promise.reject(new Error('the disk is full'))
    await expect(janitor.writeUses()).rejects.toThrow('the disk is full')
    usage.put = put
    await janitor.writeUses()
    expect(usage.ofDigest(blob.digest)).toHaveLength(1)
  })
})
