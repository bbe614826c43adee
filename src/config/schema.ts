// What the rest of the program is told: plain data, complete, with defaults filled in. The YAML spelling
// and its history stay behind it.

import type { DiskAmount } from './size.ts'
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
  /** What the cache may take. Undefined: as much as there is. */
  readonly maxSize: DiskAmount | undefined
  /** What it leaves to others. Undefined: nothing. */
  readonly minFree: DiskAmount | undefined
  /** The first that matches counts. */
  readonly retention: readonly RetentionRuleConfiguration[]
  /** Undefined: stored blobs are not read again by themselves. */
  readonly scrub: { readonly intervalMs: number; readonly bytesPerSecond: number } | undefined
  /** Half-written content that nobody works on is removed at this age. */
  readonly partialMaxAgeMs: number
  readonly partialPurgeEnabled: boolean
  readonly partialPurgeIntervalMs: number
}

export interface RetentionRuleConfiguration {
  /** For example `library/node:20-*`; the part after the colon is for tags. */
  readonly match: string
  readonly isPinned: boolean
  /** Undefined: not this rule's business. */
  readonly ttlMs: number | undefined
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
  /** Added to every answer under /v2 that has none of that name. */
  readonly headers: Readonly<Record<string, readonly string[]>>
  /** How long a stop waits for answers that are being sent. */
  readonly drainTimeoutMs: number
  /** Beside `listen`; what is asked there is asked of one upstream. */
  readonly listeners: readonly BoundListener[]
  /** Undefined: no second listener. */
  readonly debug:
    { readonly listen: ListenAddress; readonly prometheusPath: string | undefined } | undefined
}

export interface BoundListener {
  readonly listen: ListenAddress
  /** Its name. */
  readonly upstream: string
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
  /** For requests that name no other. */
  readonly main: UpstreamConfiguration
  readonly others: readonly UpstreamConfiguration[]
  /** What clients get when an upstream says 429 and nothing is cached. */
  readonly rateLimitStatus: 429 | 503
  readonly environmentProxy: EnvironmentProxy
}

export interface UpstreamConfiguration {
  /** Where its keys are in the configuration, for messages: `proxy`, or `proxy.upstreams.ghcr.io`. */
  readonly settingsPath: string
  /** A host, with its port if it has one; `*` for any public one, `*.host` for all below one. */
  readonly name: string
  /**
   * http or https, without credentials, query, fragment or trailing slash. May have a path. Mirrors first, the
   * origin last; none for a name with `*`.
   */
  readonly remoteUrls: readonly string[]
  readonly isDockerHub: boolean
  /** Whether what is asked of docker.io may be asked for here, if no other upstream is Docker Hub. */
  readonly servesDockerHub: boolean
  readonly credentials: CredentialsConfiguration | undefined
  /** Trusted beside the public authorities. */
  readonly caPaths: readonly string[]
  /** Both or neither. */
  readonly certificatePath: string | undefined
  readonly keyPath: string | undefined
  readonly skipsVerification: boolean
  /** For a call up to its headers; undefined, as the next three: a default. */
  readonly timeoutMs: number | undefined
  readonly connectTimeoutMs: number | undefined
  readonly connectionsMax: number | undefined
  readonly requestsPerSecond: number | undefined
  /** Instead of the environment's; `none` for a direct way. */
  readonly httpProxy: string | undefined
  /** Unused for this long, content is removed; 0: never. */
  readonly ttlMs: number
  /** A tag is answered for this long without asking upstream; 0: ask each time. */
  readonly tagTtlMs: number
  /** Instead of `tagTtlMs` for tags that match. */
  readonly tagRules: readonly TagRule[]
  /** Patterns of repositories; empty: all. */
  readonly allow: readonly string[]
  /** Counts more than `allow`. */
  readonly deny: readonly string[]
  /** Where, besides the upstream's own domain, tokens may be asked for: `host`, `host:port`, `https://host/path`. */
  readonly allowedRealms: readonly string[]
  /** Where it may send us although it is not public: `host` or `*.host`. */
  readonly redirectHosts: readonly string[]
  /** It may send us anywhere within our network. */
  readonly allowsPrivateAddresses: boolean
  /** Names by which clients reach this cache when they mean this upstream. */
  readonly hosts: readonly string[]
}

export interface TagRule {
  /** `*` stands for any text. */
  readonly pattern: string
  /** Infinity: the tag never moves. */
  readonly ttlMs: number
}

export type CredentialsConfiguration =
  | { readonly kind: 'static'; readonly username: string; readonly password: string }
  | {
      readonly kind: 'files'
      readonly username: string | undefined
      readonly usernameFile?: string
      readonly passwordFile: string
    }
  /** `file` undefined: where Docker keeps it. */
  | { readonly kind: 'docker-config'; readonly file: string | undefined }
  | { readonly kind: 'helper'; readonly helper: string }
  | { readonly kind: 'exec'; readonly command: string; readonly lifetimeMs: number }

/** The proxy servers that the environment names, uninterpreted. */
export interface EnvironmentProxy {
  readonly httpProxy: string | undefined
  readonly httpsProxy: string | undefined
  readonly noProxy: string | undefined
}

/** What `blobdescriptorsize: 0` means, which is unlimited in distribution: every cache has a bound here. */
export const DESCRIPTOR_CACHE_ENTRIES_MAX = 1_000_000
