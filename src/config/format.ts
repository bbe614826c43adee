// A configuration as YAML in distribution's spelling, to show what is in effect. Invariants: no secret is
// in it, and (secrets aside) reading it gives the same configuration again.

import { dump } from 'js-yaml'

import { DOCUMENT } from './document.ts'
import { formatDuration } from './duration.ts'
import { formatDiskAmount, formatSize } from './size.ts'
import { maskQuery, maskSecrets } from './findings.ts'
import type { Node } from './node.ts'
import type {
  Check,
  Configuration,
  CredentialsConfiguration,
  EnvironmentProxy,
  HealthConfiguration,
  HostAndPort,
  HttpConfiguration,
  ListenAddress,
  RedisConfiguration,
  StorageConfiguration,
  UpstreamConfiguration,
} from './schema.ts'
import { IMMUTABLE } from './upstream-keys.ts'

const MASK = '***'

/** Plain data for YAML; undefined leaves a key out. */
type Printable =
  | string
  | number
  | boolean
  | undefined
  | readonly Printable[]
  | { readonly [key: string]: Printable }

/**
 * Prints the configuration in effect. Passwords, header values of health checks, userinfo in URLs and queries of
 * health checks are shown as `***`.
 */
export function formatConfiguration(configuration: Configuration): string {
  const { log, storage, redis, http, health, catalog, tags, proxy } = configuration
  const document = {
    version: 0.1,
    log: {
      level: log.level,
      formatter: log.formatter,
      fields: log.fields,
      accesslog: { disabled: !log.accessLogEnabled },
    },
    storage: storageDocument(storage),
    redis: redis && redisDocument(redis),
    http: httpDocument(http),
    health: healthDocument(health),
    catalog: { maxentries: catalog.entriesMax },
    tags: { maxtags: tags.tagsMax },
    proxy: {
      ...upstreamDocument(proxy.main),
      ratelimitstatus: proxy.rateLimitStatus,
      upstreams: Object.fromEntries(
        proxy.others.map((upstream) => [upstream.name, otherUpstreamDocument(upstream)]),
      ),
    },
  }
  const shown = withoutEmpty(masked(document, DOCUMENT))
  return dump(shown, { lineWidth: 100 }) + environmentComment(proxy.environmentProxy)
}

function storageDocument(storage: StorageConfiguration): Printable {
  const { descriptorCache } = storage
  return {
    filesystem: { rootdirectory: storage.rootDirectory },
    cache: {
      blobdescriptor: descriptorCache.kind === 'none' ? undefined : descriptorCache.kind,
      blobdescriptorsize:
        descriptorCache.kind === 'inmemory' ? descriptorCache.entriesMax : undefined,
    },
    maintenance: {
      uploadpurging: {
        enabled: storage.partialPurgeEnabled,
        age: formatDuration(storage.partialMaxAgeMs),
        interval: formatDuration(storage.partialPurgeIntervalMs),
        dryrun: false,
      },
    },
    maxsize: storage.maxSize && formatDiskAmount(storage.maxSize),
    minfree: storage.minFree && formatDiskAmount(storage.minFree),
    retention: storage.retention.map(({ isPinned, match, ttlMs }) => ({
      match,
      pin: isPinned || undefined,
      ttl: optionalDuration(ttlMs),
    })),
    scrub: storage.scrub && {
      interval: formatDuration(storage.scrub.intervalMs),
      rate: formatSize(storage.scrub.bytesPerSecond),
    },
  }
}

function redisDocument(redis: RedisConfiguration): Printable {
  return {
    addrs: redis.addresses.map(formatAddress),
    username: redis.username,
    password: redis.password,
    sentinelusername: redis.sentinelUsername,
    sentinelpassword: redis.sentinelPassword,
    mastername: redis.masterName,
    db: redis.database,
    dialtimeout: optionalDuration(redis.dialTimeoutMs),
    readtimeout: optionalDuration(redis.readTimeoutMs),
    writetimeout: optionalDuration(redis.writeTimeoutMs),
    maxretries: redis.maxRetries === 0 ? -1 : redis.maxRetries,
    clientname: redis.clientName,
    tls: redis.tls && {
      enabled: true,
      certificate: redis.tls.certificatePath,
      key: redis.tls.keyPath,
      rootcas: redis.tls.rootCaPaths,
    },
  }
}

function httpDocument({ listen, debug, ...http }: HttpConfiguration): Printable {
  return {
    addr: formatListenAddress(listen),
    net: 'path' in listen ? 'unix' : undefined,
    prefix: http.prefix || undefined,
    host: http.host,
    headers: http.headers,
    draintimeout: formatDuration(http.drainTimeoutMs),
    listeners: http.listeners.map((each) => ({
      addr: formatListenAddress(each.listen),
      net: 'path' in each.listen ? 'unix' : undefined,
      upstream: each.upstream,
    })),
    debug: debug && {
      addr: formatListenAddress(debug.listen),
      prometheus: { enabled: debug.prometheusPath !== undefined, path: debug.prometheusPath },
    },
  }
}

function otherUpstreamDocument(upstream: UpstreamConfiguration): Printable {
  return { enabled: true, ...upstreamDocument(upstream) }
}

function upstreamDocument(upstream: UpstreamConfiguration) {
  const { credentials, remoteUrls } = upstream
  return {
    remoteurl: remoteUrls.length === 1 ? remoteUrls[0] : remoteUrls,
    ...(credentials && credentialsDocument(credentials)),
    ca: upstream.caPaths,
    certificate: upstream.certificatePath,
    key: upstream.keyPath,
    skipverify: upstream.skipsVerification || undefined,
    timeout: optionalDuration(upstream.timeoutMs),
    connecttimeout: optionalDuration(upstream.connectTimeoutMs),
    maxconnections: upstream.connectionsMax,
    requestspersecond: upstream.requestsPerSecond,
    httpproxy: upstream.httpProxy && maskSecrets(upstream.httpProxy),
    ttl: formatDuration(upstream.ttlMs),
    tagttl: formatDuration(upstream.tagTtlMs),
    tagrules: Object.fromEntries(
      upstream.tagRules.map(({ pattern, ttlMs }) => [
        pattern,
        Number.isFinite(ttlMs) ? formatDuration(ttlMs) : IMMUTABLE,
      ]),
    ),
    allow: upstream.allow,
    deny: upstream.deny,
    allowedrealms: upstream.allowedRealms,
    redirecthosts: upstream.redirectHosts,
    allowprivateaddresses: upstream.allowsPrivateAddresses || undefined,
    hosts: upstream.hosts,
  }
}

function credentialsDocument(credentials: CredentialsConfiguration) {
  switch (credentials.kind) {
    case 'static':
      return { username: credentials.username, password: credentials.password }
    case 'files':
      return {
        username: credentials.username,
        usernamefile: credentials.usernameFile,
        passwordfile: credentials.passwordFile,
      }
    case 'docker-config':
      return { credentials: { dockerconfig: credentials.file ?? true } }
    case 'helper':
      return { credentials: { helper: credentials.helper } }
    case 'exec': {
      const { command, lifetimeMs } = credentials
      const lifetime = Number.isFinite(lifetimeMs) ? formatDuration(lifetimeMs) : undefined
      return { credentials: { exec: { command, lifetime } } }
    }
  }
}

function healthDocument({ storageDriver, files, http, tcp }: HealthConfiguration): Printable {
  return {
    storagedriver: storageDriver && { enabled: true, ...checkDocument(storageDriver) },
    file: files.map((check) => ({ file: check.path, ...checkDocument(check) })),
    http: http.map((check) => ({
      uri: maskQuery(check.url),
      headers: check.headers,
      statuscode: check.expectedStatus,
      timeout: optionalDuration(check.timeoutMs),
      ...checkDocument(check),
    })),
    tcp: tcp.map((check) => ({
      addr: formatAddress(check),
      timeout: optionalDuration(check.timeoutMs),
      ...checkDocument(check),
    })),
  }
}

function checkDocument({ intervalMs, threshold }: Check) {
  return { interval: formatDuration(intervalMs), threshold }
}

function optionalDuration(ms: number | undefined): string | undefined {
  return ms === undefined ? undefined : formatDuration(ms)
}

function formatListenAddress(listen: ListenAddress): string {
  if ('path' in listen) return listen.path
  return formatAddress({ host: listen.host ?? '', port: listen.port })
}

function formatAddress({ host, port }: HostAndPort): string {
  return host.includes(':') ? `[${host}]:${port}` : `${host}:${port}`
}

/** Walks the declaration beside the values: it knows what is secret. */
function masked(value: Printable, node: Node | undefined): Printable {
  if (value === undefined) return undefined
  if (node?.kind === 'scalar' && node.secret) return MASK
  if (typeof value === 'string') return value.includes('://') ? maskUrl(value) : value
  if (typeof value !== 'object') return value
  if (Array.isArray(value)) {
    const item = node?.kind === 'list' ? node.item : undefined
    return value.map((each: Printable) => masked(each, item))
  }
  return Object.fromEntries(
    Object.entries(value).map(([key, each]) => [key, masked(each, childOf(node, key))]),
  )
}

function childOf(node: Node | undefined, key: string): Node | undefined {
  if (node?.kind === 'dictionary') return node.item
  return node?.kind === 'section' && Object.hasOwn(node.fields, key) ? node.fields[key] : undefined
}

/** Says no more than is configured. */
function withoutEmpty(value: Printable): Printable {
  if (typeof value !== 'object') return value
  if (Array.isArray(value)) return value.map(withoutEmpty)
  const entries = Object.entries(value).map(([key, each]) => [key, withoutEmpty(each)] as const)
  return Object.fromEntries(entries.filter(([, each]) => !isEmpty(each)))
}

function isEmpty(value: Printable): boolean {
  return value === undefined || (typeof value === 'object' && Object.keys(value).length === 0)
}

/** The proxy servers are not in the file, so they stand in comments. */
function environmentComment({ httpProxy, httpsProxy, noProxy }: EnvironmentProxy): string {
  const lines = [
    httpProxy && `# http_proxy=${maskSecrets(httpProxy)}`,
    httpsProxy && `# https_proxy=${maskSecrets(httpsProxy)}`,
    noProxy && `# no_proxy=${noProxy}`,
  ]
  return lines.flatMap((line) => (line ? [`${line.replaceAll(/[\r\n]/g, ' ')}\n`] : [])).join('')
}

function maskUrl(text: string): string {
  return text.replaceAll(/\/\/[^/\s]*@/g, `//${MASK}@`)
}
