// What the rest of the program is told: plain data, complete, with defaults filled in. The YAML spelling
// and its history stay behind it.

import type { HostAndPort, ListenAddress } from './scalars.ts'

export type { HostAndPort, ListenAddress } from './scalars.ts'

export interface Configuration {
  readonly log: LogConfiguration
  readonly storage: StorageConfiguration
  /** Undefined when no address is configured. */
  readonly redis: RedisConfiguration | undefined
  readonly http: HttpConfiguration
  readonly health: HealthConfiguration
  /** The most names in one page of `/v2/_catalog`. */
  readonly catalog: { readonly entriesMax: number }
  /** The most tags in one page of `tags/list`. */
  readonly tags: { readonly tagsMax: number }
  readonly proxy: ProxyConfiguration
}

export interface LogConfiguration {
  readonly level: 'error' | 'warn' | 'info' | 'debug'
  readonly formatter: 'text' | 'json'
  /** Added to every line. */
  readonly fields: Readonly<Record<string, string | number | boolean>>
  readonly accessLogEnabled: boolean
}

export interface StorageConfiguration {
  /** As it was written: may be relative to the working directory. */
  readonly rootDirectory: string
  readonly descriptorCache: DescriptorCacheConfiguration
  /** Half-written content that nobody works on is removed at this age. */
  readonly partialMaxAgeMs: number
  readonly partialPurgeEnabled: boolean
  readonly partialPurgeIntervalMs: number
}

export type DescriptorCacheConfiguration =
  | { readonly kind: 'none' }
  | { readonly kind: 'inmemory'; readonly entriesMax: number }
  | { readonly kind: 'redis' }

export interface RedisConfiguration {
  /** Servers, or sentinels when there is a `masterName`. At least one. */
  readonly addresses: readonly HostAndPort[]
  readonly username: string | undefined
  readonly password: string | undefined
  readonly sentinelUsername: string | undefined
  readonly sentinelPassword: string | undefined
  readonly masterName: string | undefined
  readonly database: number
  /** Undefined, as the next three: what the client library does by itself. */
  readonly dialTimeoutMs: number | undefined
  readonly readTimeoutMs: number | undefined
  readonly writeTimeoutMs: number | undefined
  readonly maxRetries: number | undefined
  readonly clientName: string | undefined
  /** Undefined: no TLS. No `rootCaPaths`: the system's. */
  readonly tls:
    | {
        readonly certificatePath: string | undefined
        readonly keyPath: string | undefined
        readonly rootCaPaths: readonly string[]
      }
    | undefined
}

export interface HttpConfiguration {
  readonly listen: ListenAddress
  /** Empty, or `/x` without a trailing slash. */
  readonly prefix: string
  /** The URL that clients know this server by. */
  readonly host: string | undefined
  /** Added to every answer under /v2. */
  readonly headers: Readonly<Record<string, readonly string[]>>
  /** How long a stop waits for answers that are being sent. */
  readonly drainTimeoutMs: number
  /** Undefined: no second listener. */
  readonly debug:
    { readonly listen: ListenAddress; readonly prometheusPath: string | undefined } | undefined
}

export interface HealthConfiguration {
  readonly storageDriver: Check | undefined
  /** Unhealthy while the file exists. */
  readonly files: readonly ({ readonly path: string } & Check)[]
  readonly http: readonly HttpCheck[]
  readonly tcp: readonly TcpCheck[]
}

export interface Check {
  readonly intervalMs: number
  /** Failures in a row until it counts, at least 1. */
  readonly threshold: number
}

export interface HttpCheck extends Check {
  readonly url: string
  readonly headers: Readonly<Record<string, readonly string[]>>
  readonly expectedStatus: number
  /** Undefined: no limit of its own. */
  readonly timeoutMs: number | undefined
}

export interface TcpCheck extends Check, HostAndPort {
  /** Undefined: no limit of its own. */
  readonly timeoutMs: number | undefined
}

export interface ProxyConfiguration {
  /** http or https, without credentials, query, fragment or trailing slash. May have a path. */
  readonly remoteUrl: string
  /** Both or neither. */
  readonly username: string | undefined
  readonly password: string | undefined
  /** Unused for this long, content is removed; 0: never. */
  readonly ttlMs: number
  /** A tag is answered for this long without asking upstream; 0: ask each time. */
  readonly tagTtlMs: number
  /** What clients get when the upstream says 429 and nothing is cached. */
  readonly rateLimitStatus: 429 | 503
  /** Where, besides the remote's own host, tokens may be asked for: `host`, `host:port`, `https://host/path`. */
  readonly allowedRealms: readonly string[]
  readonly environmentProxy: EnvironmentProxy
}

/** The proxy servers that the environment names, uninterpreted. */
export interface EnvironmentProxy {
  readonly httpProxy: string | undefined
  readonly httpsProxy: string | undefined
  readonly noProxy: string | undefined
}

/** Docker Hub's registry. */
export const DOCKER_HUB_URL = 'https://registry-1.docker.io'

/** What `blobdescriptorsize: 0` means, which is unlimited in distribution: every cache has a bound here. */
export const DESCRIPTOR_CACHE_ENTRIES_MAX = 1_000_000
