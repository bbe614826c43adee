// The whole service in process, in front of a fake upstream, for one test. When the test is over it is stopped,
// and must have left nothing: no connection to the upstream, no file in the spool.

import { connect } from 'node:net'
import { readdir } from 'node:fs/promises'
import { join } from 'node:path'
import { onTestFinished } from 'vitest'
import { systemClock, type Clock } from '../../src/clock.ts'
import { senderOf } from '../../src/cache/upstream.ts'
import { loadConfiguration } from '../../src/config/load.ts'
import type { Digest } from '../../src/oci/digest.ts'
import { startService, type Service, type ServiceDeps } from '../../src/service.ts'
import { createLogger } from '../../src/telemetry/logger.ts'
import { startFakeUpstream, type FakeUpstream, type FakeUpstreamOptions } from './fake-upstream.ts'
import { openRaw, rawGet, type RawExchange, type RawRequestOptions } from './http-client.ts'
import type { RawResponse } from './http-client.ts'
import type { TestImage } from './images.ts'
import { makeTempDirectory } from './temp-directory.ts'
import { waitFor, within } from './wait-for.ts'
import { STORAGE_WORKER_URL } from './storage-thread.ts'

/** Longer timers bound a call; shorter ones are pauses between attempts, for which no test should wait. */
const PAUSE_MAX_MS = 4_500
const HASTE = 50

/** The system's clock, with pauses between attempts cut short. */
export const impatientClock: Clock = {
  ...systemClock,
  setTimer: (delayMs, run, options) =>
    systemClock.setTimer(delayMs > PAUSE_MAX_MS ? delayMs : delayMs / HASTE, run, options),
}

/** How long a check of the disk that is under way at the stop may take. */
const SPOOL_DEADLINE_MS = 5_000

type Json = Readonly<Record<string, unknown>>

export interface LayoverOptions {
  /** What is in front of it; its own if not given. */
  readonly upstream?: FakeUpstream | FakeUpstreamOptions
  /** Sections of the configuration file, merged into those that tests need. */
  readonly configuration?: Readonly<Record<string, Json>>
  /** Of the process, for credential helpers; default empty. */
  readonly environment?: Readonly<Record<string, string>> | undefined
  /** Default: `impatientClock`. */
  readonly clock?: Clock
  /** What addresses stand for. */
  readonly scopeOf?: ServiceDeps['scopeOf']
  readonly rootDirectory?: string
  /** The test leaves a download unfinished on purpose. */
  readonly mayLeaveParts?: boolean
}

export interface AccessLine extends Json {
  readonly status: number
  readonly cache?: string
}

/** Starts the service; it is stopped after the test. */
export async function startLayover(
  options: LayoverOptions = {},
): Promise<{ layover: Layover; upstream: FakeUpstream }> {
  const given = options.upstream
  const upstream = given && 'requests' in given ? given : await startFakeUpstream(given)
  const rootDirectory = options.rootDirectory ?? (await makeTempDirectory())
  const layover = new Layover(upstream, { ...options, rootDirectory })
  onTestFinished(async () => {
    await layover.end()
    await upstream.close()
  })
  await layover.start()
  return { layover, upstream }
}

export class Layover {
  readonly rootDirectory: string
  /** The application's log. */
  readonly log: Json[] = []
  readonly accessLines: AccessLine[] = []
  readonly #upstream: FakeUpstream
  readonly #options: LayoverOptions
  readonly #exchanges: RawExchange[] = []
  #service: Service | undefined

  constructor(upstream: FakeUpstream, options: LayoverOptions & { rootDirectory: string }) {
    this.#upstream = upstream
    this.#options = options
    this.rootDirectory = options.rootDirectory
  }

  get url(): string {
    if (!this.#service) throw new Error('the service does not run')
    return this.#service.url
  }

  get debugUrl(): string {
    return this.#service?.debugUrl ?? ''
  }

  /** Of the listener that is bound to an upstream. */
  boundUrl(upstream: string): string {
    return this.#service?.boundUrls.find((bound) => bound.upstream === upstream)?.url ?? ''
  }

  /** @param configuration instead of the sections that were given first */
  async start(configuration = this.#options.configuration): Promise<void> {
    const text = JSON.stringify(this.#configuration(configuration))
    const loaded = loadConfiguration({ text, path: 'test.yml' }, {})
    const { log } = loaded.configuration
    const destination = { write: (line: string) => this.log.push(JSON.parse(line) as Json) }
    const logger = createLogger({ clock: this.#options.clock ?? impatientClock, destination }, log)
    this.#service = await startService(loaded.configuration, {
      clock: this.#options.clock ?? impatientClock,
      logger,
      accessDestination: {
        write: (line) => this.accessLines.push(JSON.parse(line) as AccessLine),
      },
      storageWorkerUrl: STORAGE_WORKER_URL,
      environment: this.#options.environment ?? {},
      scopeOf: this.#options.scopeOf,
      userAgent: 'layover/test',
    })
  }

  async stop(): Promise<void> {
    const service = this.#service
    this.#service = undefined
    if (service) await within('the service to stop', service.stop())
  }

  async restart(configuration = this.#options.configuration): Promise<void> {
    await this.stop()
    await this.start(configuration)
  }

  /** Sends a GET and reads the whole answer. @param path after the host, for example `/v2/` */
  get(path: string, options: RawRequestOptions = {}): Promise<RawResponse> {
    return within(`GET ${path}`, rawGet(this.url + path, options))
  }

  head(path: string, options: RawRequestOptions = {}): Promise<RawResponse> {
    return this.get(path, { ...options, method: 'HEAD' })
  }

  /** Sends a request and returns with its headers; nothing of the body is read. */
  async open(path: string, options: RawRequestOptions = {}): Promise<RawExchange> {
    const exchange = await within(`headers of ${path}`, openRaw(this.url + path, options))
    this.#exchanges.push(exchange)
    return exchange
  }

  /** Sends bytes as they are, and returns what comes back until the connection ends. */
  async send(text: string): Promise<string> {
    const { hostname, port } = new URL(this.url)
    const socket = connect({ host: hostname, port: Number(port) })
    let received = ''
    socket.setEncoding('latin1').on('data', (part: string) => (received += part))
    const ended = new Promise<void>((resolve) => socket.once('close', () => resolve()))
    socket.on('error', () => {})
    socket.end(text, 'latin1')
    await within('the connection to end', ended)
    return received
  }

  /** The access line of the request that ended last; they are written when the answer is over. */
  async lastAccessLine(count = 1): Promise<AccessLine> {
    return waitFor(`${count} access lines`, () =>
      this.accessLines.length >= count ? this.accessLines.at(-1) : undefined,
    )
  }

  messages(): string[] {
    return this.log.map((line) => String(line['msg']))
  }

  async metric(line: string): Promise<number> {
    const { body } = await rawGet(`${this.debugUrl}/metrics`)
    const found = body
      .toString()
      .split('\n')
      .find((each) => each.startsWith(`${line} `))
    return Number(found?.slice(line.length + 1) ?? Number.NaN)
  }

  /** Files below a directory of the root, as paths relative to it. */
  async files(directory = ''): Promise<string[]> {
    const found: string[] = []
    const pending = ['']
    for (let path = pending.pop(); path !== undefined; path = pending.pop()) {
      const there = join(this.rootDirectory, directory, path)
      // The service may remove what was there a moment ago.
      for (const entry of await readdir(there, { withFileTypes: true }).catch(() => [])) {
        const list = entry.isDirectory() ? pending : found
        list.push(join(path, entry.name))
      }
    }
    return found.sort()
  }

  /** Pulls an image as clients do, and waits until all of it is stored. @returns the bytes of its layers */
  async pull(name: string, reference: string, { config, layers }: TestImage): Promise<Buffer[]> {
    await this.get(`/v2/${name}/manifests/${reference}`)
    const bodies: Buffer[] = []
    for (const { digest } of [config, ...layers]) {
      bodies.push((await this.get(`/v2/${name}/blobs/${digest}`)).body)
      await this.stored(digest)
    }
    return bodies.slice(1)
  }

  /** Waits until a blob is where it belongs. */
  async stored(digest: string): Promise<void> {
    const file = blobFile(digest)
    await waitFor(`${digest} to be stored`, async () => (await this.files()).includes(file))
    // Stored, linked, and no longer joined by who asks.
    await waitFor('the download to be over', async () => {
      return (await this.metric('layover_fills_running')) === 0
    })
  }

  /** Stops, and checks that nothing is left behind. */
  async end(): Promise<void> {
    for (const exchange of this.#exchanges) exchange.leave()
    await this.stop()
    await waitFor('the connections to the upstream to end', () => {
      return this.#upstream.activeConnections === 0
    })
    if (this.#options.mayLeaveParts) return
    // Such a check takes its file away after the stop.
    await waitFor('the spool to be empty', async () => (await this.#spooled()).length === 0, {
      deadlineMs: SPOOL_DEADLINE_MS,
    })
  }

  async #spooled(): Promise<string[]> {
    return [...(await this.files('layover/spool')), ...(await this.files('layover/temporary'))]
  }

  #configuration(given: Readonly<Record<string, Json>> = {}): Json {
    const base: Record<string, Json> = {
      log: { formatter: 'json', level: 'debug' },
      storage: {
        filesystem: { rootdirectory: this.rootDirectory },
        cache: { blobdescriptor: 'inmemory' },
      },
      http: {
        addr: '127.0.0.1:0',
        draintimeout: '5s',
        debug: { addr: '127.0.0.1:0', prometheus: { enabled: true } },
      },
      proxy: { remoteurl: this.#upstream.url },
    }
    const merged: Record<string, unknown> = { version: 0.1, ...base }
    for (const [name, section] of Object.entries(given)) {
      merged[name] = { ...base[name], ...section }
    }
    return merged
  }
}

/** Where a blob is, relative to the root. */
export function blobFile(digest: string): string {
  const [algorithm = '', hex = ''] = digest.split(':')
  return `docker/registry/v2/blobs/${algorithm}/${hex.slice(0, 2)}/${hex}/data`
}

/** Of what the main upstream has sent, relative to the root. */
export function partFile(digest: Digest, { url }: Pick<FakeUpstream, 'url'>): string {
  const sender = senderOf({ name: new URL(url).host, storedPrefix: '' })
  return `layover/spool/${digest.replace(':', '-')}-${sender}.part`
}
