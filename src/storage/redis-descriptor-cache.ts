// `storage.cache.blobdescriptor: redis`: sizes shared by several caches, under the keys that registry uses
// (`blobs::<digest>`). Redis being slow, full, wrong or gone makes this cache forgetful, and nothing else:
// each question has a short deadline, and nobody waits for an answer to a note.

import { Redis, type RedisOptions } from 'ioredis'
import type { Logger } from 'pino'
import { delay, type Clock } from '../clock.ts'
import type { Digest } from '../oci/digest.ts'
import type { BlobDescriptor, DescriptorCache } from './descriptor-cache.ts'

/** Asking the disk instead takes about a millisecond; waiting longer for a hint is not worth it. */
const ANSWER_MAX_MS = 100
/** Silence after which a connection is given up: questions to a hanging Redis must not pile up. */
const SILENCE_MAX_MS = 1_000
const RECONNECT_MAX_MS = 5_000
/** A reason may name a key; an outage has few real ones. */
const REASONS_MAX = 10
/** As registry and we write it. JavaScript would take ` 5`, `1e3` and `0x10` for numbers, too. */
const SIZE = /^\d+$/

export interface RedisOptionsPlain {
  readonly addresses: readonly { readonly host: string; readonly port: number }[]
  readonly username?: string | undefined
  readonly password?: string | undefined
  /** With a master name the addresses are those of sentinels. */
  readonly masterName?: string | undefined
  readonly sentinelUsername?: string | undefined
  readonly sentinelPassword?: string | undefined
  readonly database: number
  readonly dialTimeoutMs?: number | undefined
  /** How long a question may take; by default less than the disk is worth waiting for. */
  readonly readTimeoutMs?: number | undefined
  /** Silence after which a connection is given up. */
  readonly writeTimeoutMs?: number | undefined
  /** Of one question; each has to fit into `readTimeoutMs` all the same. */
  readonly maxRetries?: number | undefined
  readonly clientName?: string | undefined
  /** PEM text. Without `rootCas` the authorities are Node's, with those of NODE_EXTRA_CA_CERTS. */
  readonly tls?:
    | {
        readonly certificate?: string | undefined
        readonly key?: string | undefined
        readonly rootCas: readonly string[]
      }
    | undefined
}

export class RedisDescriptorCache implements DescriptorCache {
  readonly #redis: Redis
  readonly #clock: Clock
  readonly #logger: Logger
  readonly #answerMaxMs: number
  /** So that each reason of an outage is one line in the log and not one for each request. */
  readonly #reported = new Set<string>()

  constructor(deps: { clock: Clock; logger: Logger }, options: RedisOptionsPlain) {
    this.#clock = deps.clock
    this.#logger = deps.logger
    this.#answerMaxMs = options.readTimeoutMs ?? ANSWER_MAX_MS
    this.#redis = new Redis(connectionOptions(options))
    this.#redis.on('error', (error: Error) => this.#report(error))
    this.#redis.on('ready', () => {
      if (this.#reported.size > 0) {
        this.#logger.info('redis is back; blob descriptors are cached there again')
      }
      this.#reported.clear()
    })
  }

  async get(digest: Digest): Promise<BlobDescriptor | undefined> {
    if (this.#redis.status !== 'ready') return undefined
    const abort = new AbortController()
    try {
      const size = await Promise.race([
        this.#redis.hget(keyOf(digest), 'size'),
        delay(this.#clock, this.#answerMaxMs, { signal: abort.signal }),
      ])
      const sizeBytes = typeof size === 'string' && SIZE.test(size) ? Number(size) : Number.NaN
      return Number.isSafeInteger(sizeBytes) ? { sizeBytes } : undefined
    } catch (error) {
      this.#report(error)
      return undefined
    } finally {
      abort.abort(new Error('answered'))
    }
  }

  set(digest: Digest, { sizeBytes }: BlobDescriptor): void {
    const fields = { digest, size: String(sizeBytes), mediatype: 'application/octet-stream' }
    this.#tell(() => this.#redis.hset(keyOf(digest), fields))
  }

  delete(digest: Digest): void {
    this.#tell(() => this.#redis.del(keyOf(digest)))
  }

  async close(): Promise<void> {
    this.#redis.disconnect()
  }

  #tell(command: () => Promise<unknown>): void {
    if (this.#redis.status !== 'ready') return
    command().catch((error: unknown) => this.#report(error))
  }

  #report(error: unknown): void {
    const reason = error instanceof Error ? error.message : String(error)
    if (this.#reported.has(reason) || this.#reported.size >= REASONS_MAX) return
    this.#reported.add(reason)
    const what = isRefusal(reason)
      ? 'redis refused the password: check redis.password'
      : 'redis does not answer'
    this.#logger.warn({ err: error }, `${what}; blob descriptors are read from disk`)
  }
}

/** Of a password that is wrong, or missing. */
function isRefusal(reason: string): boolean {
  return /^(WRONGPASS|NOAUTH)\b|^ERR invalid password/.test(reason)
}

function keyOf(digest: Digest): string {
  return `blobs::${digest}`
}

type ConnectionOptions = Omit<RedisOptions, 'replyMapping'>

function connectionOptions(options: RedisOptionsPlain): ConnectionOptions {
  const [first] = options.addresses
  const connection: ConnectionOptions = {
    db: options.database,
    // Requests go to the disk while there is no connection; nothing is queued for later.
    enableOfflineQueue: false,
    maxRetriesPerRequest: options.maxRetries ?? 0,
    socketTimeout: options.writeTimeoutMs ?? SILENCE_MAX_MS,
    retryStrategy: (attempt) => Math.min(attempt * 200, RECONNECT_MAX_MS),
    ...(options.username === undefined ? {} : { username: options.username }),
    ...(options.password === undefined ? {} : { password: options.password }),
    ...(options.clientName === undefined ? {} : { connectionName: options.clientName }),
    ...(options.dialTimeoutMs === undefined ? {} : { connectTimeout: options.dialTimeoutMs }),
  }
  const tls = options.tls && {
    // An empty list would trust nobody; without one, the authorities are those that Node trusts.
    ...(options.tls.rootCas.length === 0 ? {} : { ca: [...options.tls.rootCas] }),
    ...(options.tls.certificate === undefined ? {} : { cert: options.tls.certificate }),
    ...(options.tls.key === undefined ? {} : { key: options.tls.key }),
  }
  if (options.masterName !== undefined) {
    return {
      ...connection,
      name: options.masterName,
      sentinels: [...options.addresses],
      ...(options.sentinelUsername === undefined
        ? {}
        : { sentinelUsername: options.sentinelUsername }),
      ...(options.sentinelPassword === undefined
        ? {}
        : { sentinelPassword: options.sentinelPassword }),
      ...(tls ? { tls, sentinelTLS: tls, enableTLSForSentinelMode: true } : {}),
    }
  }
  return { ...connection, ...first, ...(tls ? { tls } : {}) }
}
