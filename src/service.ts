// The composition root: configuration → objects → start and stop, in the order in which they are told here.
// The only file that knows every part; no part knows it.

import { readFile } from 'node:fs/promises'
import type { RequestListener } from 'node:http'
import { getRequestListener } from '@hono/node-server'
import type { DestinationStream, Logger } from 'pino'
import { BlobCache } from './cache/blob-cache.ts'
import { ContentMemory } from './cache/content-memory.ts'
import { Janitor } from './cache/janitor.ts'
import { ListingCache } from './cache/listing-cache.ts'
import { ManifestCache } from './cache/manifest-cache.ts'
import { Membership } from './cache/membership.ts'
import { Repositories } from './cache/repositories.ts'
import { Retention } from './cache/retention.ts'
import { StorageGuard } from './cache/storage-guard.ts'
import { TagTable } from './cache/tag-table.ts'
import { UpstreamHealth } from './cache/upstream-health.ts'
import type { Clock } from './clock.ts'
import { formatDuration } from './config/duration.ts'
import type { Configuration, RedisConfiguration } from './config/schema.ts'
import { debugApp, publicApp } from './http/app.ts'
import { Listener } from './http/listener.ts'
import { RegistryRoutes } from './http/registry-routes.ts'
import { RequestHandler } from './http/request-handler.ts'
import { BlobStore } from './storage/blob-store.ts'
import {
  InMemoryDescriptorCache,
  noDescriptorCache,
  type DescriptorCache,
} from './storage/descriptor-cache.ts'
import { Digester } from './storage/digester.ts'
import { FileWriter } from './storage/file-writer.ts'
import { StoragePaths } from './storage/paths.ts'
import { RedisDescriptorCache } from './storage/redis-descriptor-cache.ts'
import { RepositoryIndex } from './storage/repository-index.ts'
import { SpoolDirectory } from './storage/spool-directory.ts'
import { StorageThread } from './storage/storage-thread.ts'
import { storageCheck } from './storage/storage-check.ts'
import { UsageIndex } from './storage/usage-index.ts'
import { AccessLog } from './telemetry/access-log.ts'
import { fileCheck, httpCheck, tcpCheck } from './telemetry/health-checks.ts'
import { Health } from './telemetry/health.ts'
import { Metrics } from './telemetry/metrics.ts'
import { UpstreamClient } from './upstream/upstream-client.ts'

/** Registry's default; the key only turns the check on. */
const STORAGE_CHECK_DEFAULT = { intervalMs: 10_000, threshold: 3 }

export interface ServiceDeps {
  readonly clock: Clock
  readonly logger: Logger
  readonly accessDestination: DestinationStream
  /** The compiled worker: see storage/storage-thread.ts. */
  readonly storageWorkerUrl: URL
  /** For the upstream's logs: `layover/1.2.3`. */
  readonly userAgent: string
}

export interface Service {
  /** Where clients reach it. */
  readonly url: string
  readonly debugUrl: string | undefined
  /** Stops taking requests, lets those under way finish, and writes everything down. Idempotent. */
  stop(): Promise<void>
}

/** @throws when the directory or the address cannot be had, with what to do about it */
export async function startService(
  configuration: Configuration,
  deps: ServiceDeps,
): Promise<Service> {
  const { clock, logger } = deps
  const { http, log, proxy, storage: storageOptions } = configuration
  const metrics = new Metrics()
  const health = new Health({ clock })

  // Bytes at rest. The spool makes the directories, the index opens in milliseconds or is rebuilt later.
  const paths = new StoragePaths(storageOptions.rootDirectory)
  const thread = new StorageThread({ workerUrl: deps.storageWorkerUrl })
  const writer = new FileWriter({ thread, paths })
  const digester = new Digester({ thread })
  const blobStore = new BlobStore({ paths, writer, digester })
  const index = new RepositoryIndex({ paths, writer })
  const storage = new StorageGuard({ logger, metrics })
  const spools = new SpoolDirectory({
    paths,
    digester,
    clock,
    onStorageFailure: (error) => storage.report(error),
  })
  await spools.start()
  const usage = await UsageIndex.open({ paths, writer, logger })
  const descriptors = await createDescriptorCache(configuration, { clock, logger })
  await health.add({
    ...STORAGE_CHECK_DEFAULT,
    ...configuration.health.storageDriver,
    ...storageCheck({ paths, writer }),
  })

  // The remote registry. Nothing is asked before the first client asks: it may be down.
  const upstream = new UpstreamClient(
    {
      clock,
      logger,
      onRequest: ({ durationMs, kind, method, status }) => {
        const labels = { upstream: upstream.name, kind }
        metrics.upstreamRequests.inc({ ...labels, method, code: status ?? 'error' })
        metrics.upstreamDuration.observe(labels, durationMs / 1000)
      },
    },
    {
      name: new URL(proxy.remoteUrl).host,
      remoteUrl: proxy.remoteUrl,
      username: proxy.username,
      password: proxy.password,
      allowedRealms: proxy.allowedRealms,
      environmentProxy: proxy.environmentProxy,
      userAgent: deps.userAgent,
    },
  )

  // The core: rights, freshness, downloads, retention.
  const memory = new ContentMemory()
  const retention = new Retention(
    { clock, logger },
    { ttlMs: proxy.ttlMs, ttlText: formatDuration(proxy.ttlMs) },
  )
  const membership = new Membership({ index, retention, storage })
  const tags = new TagTable({ clock, index, storage }, { ttlMs: proxy.tagTtlMs })
  const manifests = new ManifestCache({
    clock,
    logger,
    metrics,
    blobs: blobStore,
    memory,
    membership,
    retention,
    storage,
    tags,
    health: new UpstreamHealth({ clock }),
  })
  const blobs = new BlobCache({
    clock,
    logger,
    metrics,
    blobs: blobStore,
    descriptors,
    memory,
    membership,
    retention,
    spools,
    storage,
  })
  const listings = new ListingCache({ clock, index, storage }, { ttlMs: proxy.tagTtlMs })
  const janitor = new Janitor(
    {
      clock,
      logger,
      metrics,
      retention,
      paths,
      blobs: blobStore,
      repositories: index,
      spools,
      usage,
      onUnlinked: (link) => {
        membership.forget(link)
        if (link.kind === 'manifest') tags.forget(link.repository, link.digest)
      },
      onRemoved: (digest) => blobs.forget(digest),
    },
    {
      partialMaxAgeMs: storageOptions.partialPurgeEnabled ? storageOptions.partialMaxAgeMs : 0,
      partialPurgeIntervalMs: storageOptions.partialPurgeIntervalMs,
    },
  )

  // The edge.
  const registry = new RegistryRoutes(
    { clock, repositories: new Repositories({ upstream }), manifests, blobs, listings },
    {
      prefix: http.prefix,
      catalogEntriesMax: configuration.catalog.entriesMax,
      tagsMax: configuration.tags.tagsMax,
    },
  )
  const accessLog = log.accessLogEnabled
    ? new AccessLog({ destination: deps.accessDestination }, log)
    : undefined
  const handler = new RequestHandler(
    {
      clock,
      logger,
      metrics,
      accessLog,
      registry,
      app: listenerOf(publicApp({ health, metrics })),
    },
    { headers: http.headers, rateLimitStatus: proxy.rateLimitStatus },
  )
  const listener = new Listener(
    { clock, handler: (request, response) => handler.handle(request, response) },
    { address: http.listen },
  )
  const debug = http.debug && debugApp({ health, metrics }, http.debug)
  const debugListener =
    http.debug &&
    debug &&
    new Listener({ clock, handler: listenerOf(debug) }, { address: http.debug.listen })

  // Start: checks, then the doors, then the housekeeping, which must not delay them.
  const checks = [
    ...configuration.health.files.map(fileCheck),
    ...configuration.health.http.map(httpCheck),
    ...configuration.health.tcp.map(tcpCheck),
  ]
  void Promise.all(checks.map((check) => health.add(check)))
  await debugListener?.start()
  await listener.start()
  await janitor.start()
  upstream.warmUp()

  // Stop: the same in reverse. Downloads that are cut here go on at the next start.
  const stop = async (): Promise<void> => {
    health.drain()
    await listener.stop(http.drainTimeoutMs)
    await blobs.stop()
    await janitor.stop()
    health.stop()
    await debugListener?.stop(0)
    await Promise.all([upstream.close(), thread.close(), descriptors.close()])
    await usage.close()
  }
  let stopped: Promise<void> | undefined
  return {
    url: `${listener.url}${http.prefix}`,
    debugUrl: debugListener?.url,
    stop: () => (stopped ??= stop()),
  }
}

function listenerOf(app: ReturnType<typeof publicApp>): RequestListener {
  // Replacing the global Request and Response would change them for every library in the process.
  const answer = getRequestListener(app.fetch, { overrideGlobalObjects: false })
  // It answers its own errors.
  return (request, response) => void answer(request, response)
}

async function createDescriptorCache(
  { redis, storage }: Configuration,
  deps: { clock: Clock; logger: Logger },
): Promise<DescriptorCache> {
  const { descriptorCache } = storage
  if (descriptorCache.kind === 'inmemory') return new InMemoryDescriptorCache(descriptorCache)
  if (descriptorCache.kind === 'none' || !redis) return noDescriptorCache
  return new RedisDescriptorCache(deps, { ...redis, tls: await readTlsFiles(redis.tls) })
}

async function readTlsFiles(
  tls: RedisConfiguration['tls'],
): Promise<
  { certificate: string | undefined; key: string | undefined; rootCas: string[] } | undefined
> {
  if (!tls) return undefined
  const { certificatePath, keyPath, rootCaPaths } = tls
  return {
    certificate: await readText(certificatePath),
    key: await readText(keyPath),
    rootCas: await Promise.all(rootCaPaths.map((path) => readFile(path, 'utf8'))),
  }
}

async function readText(path: string | undefined): Promise<string | undefined> {
  return path === undefined ? undefined : readFile(path, 'utf8')
}
