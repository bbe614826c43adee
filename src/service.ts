// The composition root: configuration → objects → start and stop, in the order in which they are told here.
// The only file that knows every part; no part knows it.

import { randomBytes } from 'node:crypto'
import type { RequestListener } from 'node:http'
import { getRequestListener } from '@hono/node-server'
import type { DestinationStream, Logger } from 'pino'
import { BlobCache } from './cache/blob-cache.ts'
import { ContentMemory } from './cache/content-memory.ts'
import { settleHosts } from './cache/host-ownership.ts'
import { ListingCache } from './cache/listing-cache.ts'
import { ManifestCache } from './cache/manifest-cache.ts'
import { Membership } from './cache/membership.ts'
import { Repositories } from './cache/repositories.ts'
import { TagTable } from './cache/tag-table.ts'
import { Administration } from './cache/upkeep/administration.ts'
import type { Clock } from './clock.ts'
import { parseAge } from './config/duration.ts'
import type { Configuration } from './config/schema.ts'
import { adminApp } from './http/admin-routes.ts'
import { AdminSocket } from './http/admin-socket.ts'
import { debugApp, publicApp } from './http/app.ts'
import { Listener } from './http/listener.ts'
import { openFilesMax } from './http/open-files.ts'
import { RegistryRoutes } from './http/registry-routes.ts'
import { RequestHandler } from './http/request-handler.ts'
import { createHousekeeping, openStorage } from './service-storage.ts'
import { createUpstreams } from './service-upstreams.ts'
import { ensureOwnDirectory } from './storage/filesystem.ts'
import { StoragePaths } from './storage/paths.ts'
import { storageCheck, volumeCheck } from './storage/storage-check.ts'
import { AccessLog } from './telemetry/access-log.ts'
import { Health } from './telemetry/health.ts'
import { fileCheck, httpCheck, tcpCheck } from './telemetry/health-checks.ts'
import { Metrics } from './telemetry/metrics.ts'
import type { AddressScope } from './upstream/address-scope.ts'

/** Registry's default; the key only turns the check on. */
const STORAGE_CHECK_DEFAULT = { intervalMs: 10_000, threshold: 3 }

/** More than a cluster has clients; idle ones take about 6 KB each. */
const CONNECTIONS_MAX = 16_384
/** Monitoring and people. */
const DEBUG_CONNECTIONS_MAX = 256

/** Tells caches on one way from each other. */
const VIA_ID_BYTES = 6

export interface ServiceDeps {
  readonly clock: Clock
  readonly logger: Logger
  readonly accessDestination: DestinationStream
  /** The compiled worker: see storage/storage-thread.ts. */
  readonly storageWorkerUrl: URL
  /** Of the process, for credential helpers. */
  readonly environment: Readonly<Record<string, string | undefined>>
  /** For the upstream's logs: `layover/1.2.3`. */
  readonly userAgent: string
  /** For tests, which have loopback addresses only. */
  readonly scopeOf?: ((address: string) => AddressScope) | undefined
}

export interface Service {
  /** Where clients reach it. */
  readonly url: string
  /** Where one upstream alone is reached. */
  readonly boundUrls: readonly { readonly upstream: string; readonly url: string }[]
  readonly debugUrl: string | undefined
  /** Stops taking requests, lets those under way finish, and writes everything down. Idempotent. */
  stop(): Promise<void>
}

/** Where the commands reach the process that serves from a directory. */
export function adminSocketPath(rootDirectory: string): string {
  return new StoragePaths(rootDirectory).adminSocket
}

/** @throws when the directory or the address cannot be had, with what to do about it */
export async function startService(
  configuration: Configuration,
  deps: ServiceDeps,
): Promise<Service> {
  const paths = new StoragePaths(configuration.storage.rootDirectory)
  // Before anything else touches the volume: is it ours alone?
  await ensureOwnDirectory(paths.temporary)
  const socket = new AdminSocket(deps, {
    path: paths.adminSocket,
    temporaryDirectory: paths.temporary,
    rootDirectory: paths.root,
  })
  await socket.claim()
  try {
    return await startOn(paths, socket, configuration, deps)
  } catch (error) {
    await socket.stop()
    throw error
  }
}

async function startOn(
  paths: StoragePaths,
  socket: AdminSocket,
  configuration: Configuration,
  deps: ServiceDeps,
): Promise<Service> {
  const { clock, logger } = deps
  const { http, log, proxy } = configuration
  const metrics = new Metrics()
  const health = new Health({ clock })

  const storage = await openStorage(configuration, {
    clock,
    logger,
    metrics,
    paths,
    workerUrl: deps.storageWorkerUrl,
  })
  const storageChecks = { ...STORAGE_CHECK_DEFAULT, ...configuration.health.storageDriver }
  await health.add({ ...storageChecks, ...storageCheck(storage) })

  // The remote registries. Nothing is asked before the first client asks: they may be down.
  const viaName = `1.1 layover-${randomBytes(VIA_ID_BYTES).toString('hex')}`
  const upstreams = await createUpstreams(proxy, {
    clock,
    environmentProxy: proxy.environmentProxy,
    userAgent: deps.userAgent,
    viaName,
    depsOf: (upstream) => ({
      clock,
      logger,
      onRequest: ({ durationMs, kind, method, status }) => {
        metrics.upstreamRequests.inc({ upstream, kind, method, code: status ?? 'error' })
        metrics.upstreamDuration.observe({ upstream, kind }, durationMs / 1000)
      },
      environment: deps.environment,
      scopeOf: deps.scopeOf,
      onLoginChange: ({ isFailing }) => {
        metrics.loginFailing.set({ upstream }, Number(isFailing))
      },
      onRateLimit: ({ limit, remaining }) => {
        metrics.rateLimitRemaining.set({ upstream }, remaining)
        if (limit !== undefined) metrics.rateLimitLimit.set({ upstream }, limit)
      },
      onWrongManifest: () => metrics.mismatches.inc({ type: 'manifest' }),
    }),
  })
  for (const { credentials, name } of [proxy.main, ...proxy.others]) {
    if (credentials) metrics.loginFailing.set({ upstream: name }, 0)
  }
  health.addNotes(() => upstreams.problems)

  // Before anything is served or looked at: is what stands under a host's name still that upstream's?
  await settleHosts({ logger, paths, upstreams, writer: storage.writer, index: storage.index })

  const housekeeping = await createHousekeeping(configuration.storage, storage, {
    clock,
    logger,
    metrics,
    upstreams,
    onUnlinked: (link) => {
      membership.forget(link)
      if (link.kind === 'manifest') tags.forget(link.repository, link.digest)
    },
    onRemoved: (digest) => blobs.forget(digest),
  })

  // The core: rights, freshness, downloads.
  const { budget, inventory, janitor } = housekeeping
  const { descriptors, guard, repositories: index, spools } = storage
  const memory = new ContentMemory()
  const kept = { index, inventory, budget, storage: guard }
  const membership = new Membership({ ...kept, blobs: storage.blobs, upstreams })
  const tags = new TagTable({ ...kept, clock })
  const core = {
    clock,
    logger,
    metrics,
    blobs: storage.blobs,
    budget,
    inventory,
    memory,
    membership,
    storage: guard,
  }
  const manifests = new ManifestCache({ ...core, tags })
  const blobs = new BlobCache({ ...core, descriptors, spools })
  const listings = new ListingCache({ clock, index, storage: guard })

  // Nothing in memory may claim to be on a disk that is not there any more.
  const onChange = async (change: { isForeign: boolean }): Promise<void> => {
    membership.forgetLinks()
    tags.forgetStored()
    await guard.attempt(() => storage.index.noteChangedVolume(change))
  }
  const volume = volumeCheck({ logger, watch: storage.watch, onChange })
  // What it finds does not pass by itself.
  await health.add({ ...storageChecks, threshold: 1, ...volume })

  const administration = new Administration(
    {
      clock,
      logger,
      metrics,
      blobs: storage.blobs,
      repositories: index,
      index: storage.index,
      inventory,
      budget,
      retention: housekeeping.retention,
      remover: housekeeping.remover,
      upstream: upstreams.main,
      onRemoved: (digest) => blobs.forget(digest),
    },
    {
      server: deps.userAgent,
      rootDirectory: paths.root,
      scrub: configuration.storage.scrub,
    },
  )
  const admin = adminApp({ logger, administration, parseAge })

  // The edge.
  const registry = new RegistryRoutes(
    {
      clock,
      repositories: new Repositories({ upstreams, logger }),
      manifests,
      blobs,
      listings,
      upstreams,
    },
    {
      prefix: http.prefix,
      catalogEntriesMax: configuration.catalog.entriesMax,
      tagsMax: configuration.tags.tagsMax,
      viaName,
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
  const connectionsMax = connectionsMaxOf(openFilesMax(), 1 + http.listeners.length)
  const listener = new Listener(
    { clock, logger, handler: (request, response) => handler.handle(request, response) },
    { address: http.listen, connectionsMax },
  )
  const boundListeners = http.listeners.map(({ listen, upstream }) => ({
    upstream,
    listener: new Listener(
      {
        clock,
        logger,
        handler: (request, response) => handler.handle(request, response, upstream),
      },
      { address: listen, connectionsMax },
    ),
  }))
  const debug = http.debug && debugApp({ admin, health, metrics }, http.debug)
  const debugListener =
    http.debug &&
    debug &&
    new Listener(
      { clock, logger, handler: listenerOf(debug) },
      { address: http.debug.listen, connectionsMax: DEBUG_CONNECTIONS_MAX },
    )

  // Start: checks, then the doors, then the housekeeping, which must not delay them.
  const checks = [
    ...configuration.health.files.map(fileCheck),
    ...configuration.health.http.map(httpCheck),
    ...configuration.health.tcp.map(tcpCheck),
  ]
  void Promise.all(checks.map((check) => health.add(check)))
  await debugListener?.start()
  for (const bound of boundListeners) await bound.listener.start()
  await listener.start()
  await janitor.start()
  administration.start()
  socket.serve(listenerOf(admin))
  upstreams.main.registry.warmUp()

  // Stop: the same in reverse. Downloads that are cut here go on at the next start.
  const stop = async (): Promise<void> => {
    health.drain()
    const listeners = [listener, ...boundListeners.map((bound) => bound.listener)]
    await Promise.all(listeners.map((each) => each.stop(http.drainTimeoutMs)))
    socket.serve(undefined)
    await Promise.all([blobs.stop(), administration.stop()])
    await janitor.stop()
    health.stop()
    await debugListener?.stop(0)
    await Promise.all([upstreams.close(), storage.close()])
    // The next one may come.
    await socket.stop()
  }
  let stopped: Promise<void> | undefined
  return {
    url: `${listener.url}${http.prefix}`,
    boundUrls: boundListeners.map((bound) => ({
      upstream: bound.upstream,
      url: `${bound.listener.url}${http.prefix}`,
    })),
    debugUrl: debugListener?.url,
    stop: () => (stopped ??= stop()),
  }
}

/** Of each listener: an answer needs a file, or a connection to an upstream, beside the client's connection. */
function connectionsMaxOf(openFilesMax = Infinity, listeners = 1): number {
  return Math.min(CONNECTIONS_MAX, Math.floor(openFilesMax / 2 / listeners))
}

function listenerOf(app: ReturnType<typeof publicApp>): RequestListener {
  // Replacing the global Request and Response would change them for every library in the process.
  const answer = getRequestListener(app.fetch, { overrideGlobalObjects: false })
  // It answers its own errors.
  return (request, response) => void answer(request, response)
}
