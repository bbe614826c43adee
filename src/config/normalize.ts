// From the file's spelling to what the program is told. Every rule that involves more than one key, or a
// key's history, is here; all of them report through the findings and none of them throws.

import type { Document } from './document.ts'
import type { Environment } from './env.ts'
import { describe, type Findings } from './findings.ts'
import { LISTEN_ADDRESS_EXPECTED, parseListenAddress } from './scalars.ts'
import {
  DESCRIPTOR_CACHE_ENTRIES_MAX,
  DOCKER_HUB_URL,
  type Check,
  type Configuration,
  type DescriptorCacheConfiguration,
  type EnvironmentProxy,
  type HealthConfiguration,
  type HttpConfiguration,
  type ListenAddress,
  type LogConfiguration,
  type ProxyConfiguration,
  type RedisConfiguration,
  type StorageConfiguration,
} from './schema.ts'

const TTL_MIN_MS = 1_000
const CHECK_INTERVAL_MS = 10_000
const PURGE_INTERVAL_MS = 24 * 3_600_000
const DRAIN_TIMEOUT_MS = 30_000
const PAGE_ENTRIES_MAX = 1000

/** Docker Hub's names that people write; its registry answers to neither. */
const DOCKER_HUB_ALIAS = /^https?:\/\/(?:index\.)?docker\.io(?:\/v[12])?$/

/** @param document may have gaps where values were wrong: what comes out is then not to be used */
export function toConfiguration(
  document: Document,
  environment: Environment,
  findings: Findings,
): Configuration {
  const redis = redisOf(document.redis, findings)
  return {
    log: logOf(document, findings),
    storage: storageOf(document.storage, redis, findings),
    redis,
    http: httpOf(document.http, findings),
    health: healthOf(document.health, findings),
    catalog: { entriesMax: positiveOr(PAGE_ENTRIES_MAX, document.catalog.maxentries) },
    tags: { tagsMax: positiveOr(PAGE_ENTRIES_MAX, document.tags.maxtags) },
    proxy: proxyOf(document.proxy, environment, findings),
  }
}

function logOf({ log, loglevel }: Document, findings: Findings): LogConfiguration {
  if (loglevel) findings.warning('loglevel', 'deprecated; use log.level')
  return {
    level: log.level ?? loglevel ?? 'info',
    formatter: log.formatter === 'text' ? 'text' : 'json',
    fields: log.fields,
    accessLogEnabled: !log.accesslog.disabled,
  }
}

function storageOf(
  { filesystem, cache, maintenance }: Document['storage'],
  redis: RedisConfiguration | undefined,
  findings: Findings,
): StorageConfiguration {
  const descriptorCache = descriptorCacheOf(cache, findings)
  if (descriptorCache.kind === 'redis' && !redis && !findings.hasProblemWithin('redis')) {
    findings.problem('storage.cache.blobdescriptor', 'redis needs redis.addrs to be set')
  }
  const { enabled, age, interval, dryrun } = maintenance.uploadpurging
  if (enabled && dryrun) {
    findings.warning('storage.maintenance.uploadpurging.dryrun', 'taken as enabled: false')
  }
  return {
    rootDirectory: filesystem.rootdirectory,
    descriptorCache,
    partialMaxAgeMs: age,
    partialPurgeEnabled: enabled && !dryrun,
    partialPurgeIntervalMs: positiveOr(PURGE_INTERVAL_MS, interval),
  }
}

function descriptorCacheOf(
  { blobdescriptor, layerinfo, blobdescriptorsize }: Document['storage']['cache'],
  findings: Findings,
): DescriptorCacheConfiguration {
  const kind = (blobdescriptor ?? layerinfo)?.toLowerCase()
  if (kind === undefined) return { kind: 'none' }
  if (kind === 'redis') return { kind }
  if (kind === 'inmemory') {
    return { kind, entriesMax: descriptorEntriesMax(blobdescriptorsize, findings) }
  }
  const key = blobdescriptor === undefined ? 'layerinfo' : 'blobdescriptor'
  const message = `expected inmemory or redis, got ${describe(kind)}; there is no descriptor cache`
  findings.warning(`storage.cache.${key}`, message)
  return { kind: 'none' }
}

function descriptorEntriesMax(size: number, findings: Findings): number {
  if (size > DESCRIPTOR_CACHE_ENTRIES_MAX) {
    const message = `${size} is more than can be had; ${DESCRIPTOR_CACHE_ENTRIES_MAX} is used`
    findings.warning('storage.cache.blobdescriptorsize', message)
  }
  return Math.min(size || DESCRIPTOR_CACHE_ENTRIES_MAX, DESCRIPTOR_CACHE_ENTRIES_MAX)
}

function redisOf(document: Document['redis'], findings: Findings): RedisConfiguration | undefined {
  const { addr, addrs, tls } = document
  if (addr && addrs.length > 0) {
    findings.problem('redis.addr', 'cannot stand beside redis.addrs; move the address there')
  }
  const addresses = addr ? [addr] : addrs
  if (addresses.length === 0) return undefined
  if (addresses.length > 1 && !document.mastername) {
    findings.warning('redis.addrs', 'a cluster is not supported; only the first address is used')
  }
  const rootCaPaths = [...tls.rootcas, ...tls.clientcas]
  const usesTls = tls.enabled ?? Boolean(tls.certificate || tls.key || rootCaPaths.length > 0)
  if (Boolean(tls.certificate) !== Boolean(tls.key)) {
    findings.problem('redis.tls', 'certificate and key go together; one of them is missing')
  }
  return {
    addresses,
    username: document.username,
    password: document.password,
    sentinelUsername: document.sentinelusername,
    sentinelPassword: document.sentinelpassword,
    masterName: document.mastername,
    database: document.db,
    dialTimeoutMs: positiveOr(undefined, document.dialtimeout),
    readTimeoutMs: positiveOr(undefined, document.readtimeout),
    writeTimeoutMs: positiveOr(undefined, document.writetimeout),
    // As in go-redis: 0 is what the library does by itself, -1 is none.
    maxRetries: document.maxretries === -1 ? 0 : document.maxretries || undefined,
    clientName: document.clientname,
    tls: usesTls ? { certificatePath: tls.certificate, keyPath: tls.key, rootCaPaths } : undefined,
  }
}

function httpOf(http: Document['http'], findings: Findings): HttpConfiguration {
  const { addr, prometheus } = http.debug
  if (prometheus.enabled && !addr) {
    findings.warning('http.debug.prometheus', 'has no effect without http.debug.addr')
  }
  return {
    listen: listenOf(http, findings),
    prefix: http.prefix,
    host: http.host,
    headers: http.headers,
    // Distribution's 0 means that nobody has set it, and cuts every client off.
    drainTimeoutMs: positiveOr(DRAIN_TIMEOUT_MS, http.draintimeout),
    debug: addr && {
      listen: addr,
      prometheusPath: prometheus.enabled ? prometheus.path : undefined,
    },
  }
}

function listenOf({ net, addr }: Document['http'], findings: Findings): ListenAddress {
  if (net === 'unix') return { path: addr }
  const address = parseListenAddress(addr)
  if (!address) {
    findings.problem('http.addr', `expected ${LISTEN_ADDRESS_EXPECTED}, got ${describe(addr)}`)
  }
  return address ?? { path: '' }
}

function healthOf(health: Document['health'], findings: Findings): HealthConfiguration {
  const { storagedriver, file, http, tcp } = health
  const missing = (path: string, expected: string): [] => {
    findings.problem(`health.${path}`, `expected ${expected}, got nothing`)
    return []
  }
  return {
    storageDriver: storagedriver.enabled ? checkOf(storagedriver) : undefined,
    files: file.flatMap((each, index) =>
      each.file === undefined
        ? missing(`file.${index}.file`, 'a path')
        : [{ path: each.file, ...checkOf(each) }],
    ),
    http: http.flatMap((each, index) =>
      each.uri === undefined
        ? missing(`http.${index}.uri`, 'an http or https URL')
        : [
            {
              url: each.uri,
              headers: each.headers,
              expectedStatus: each.statuscode,
              timeoutMs: positiveOr(undefined, each.timeout),
              ...checkOf(each),
            },
          ],
    ),
    tcp: tcp.flatMap((each, index) =>
      each.addr === undefined
        ? missing(`tcp.${index}.addr`, 'host:port')
        : [{ ...each.addr, timeoutMs: positiveOr(undefined, each.timeout), ...checkOf(each) }],
    ),
  }
}

function checkOf(check: { interval: number | undefined; threshold: number }): Check {
  return {
    intervalMs: positiveOr(CHECK_INTERVAL_MS, check.interval),
    threshold: Math.max(1, check.threshold),
  }
}

function proxyOf(
  proxy: Document['proxy'],
  environment: Environment,
  findings: Findings,
): ProxyConfiguration {
  const { username, password } = proxy
  if (username !== undefined && password === undefined) {
    findings.problem('proxy.password', 'expected a password, since there is a username')
  }
  if (password !== undefined && username === undefined) {
    findings.problem('proxy.username', 'expected a username, since there is a password')
  }
  return {
    remoteUrl: remoteUrlOf(proxy.remoteurl, findings),
    username,
    password,
    ttlMs: ttlOf(proxy.ttl, findings),
    tagTtlMs: proxy.tagttl,
    rateLimitStatus: proxy.ratelimitstatus === '429' ? 429 : 503,
    allowedRealms: proxy.allowedrealms,
    environmentProxy: environmentProxyOf(environment, findings),
  }
}

/** A ttl of some microseconds empties the cache it is meant for: `ttl: 3600` is nanoseconds in distribution. */
function ttlOf(ms: number, findings: Findings): number {
  if (ms > 0 && ms < TTL_MIN_MS) {
    findings.problem(
      'proxy.ttl',
      'expected a second or more; a bare number counts nanoseconds, so write 168h',
    )
  }
  return positiveOr(0, ms)
}

function remoteUrlOf(url: string | undefined, findings: Findings): string {
  const path = 'proxy.remoteurl'
  if (url === undefined) {
    const isWrong = findings.hasProblemWithin(path)
    if (!isWrong) findings.warning(path, `not set; Docker Hub, ${DOCKER_HUB_URL}, is used`)
    return DOCKER_HUB_URL
  }
  if (DOCKER_HUB_ALIAS.test(url)) {
    findings.warning(path, `${url} is not a registry; ${DOCKER_HUB_URL} is used`)
    return DOCKER_HUB_URL
  }
  if (/^https?:\/\/hub\.docker\.com(?:\/|$)/.test(url)) {
    findings.warning(path, `${url} is a web site; the registry is ${DOCKER_HUB_URL}`)
  } else if (url.endsWith('/v2')) {
    findings.warning(path, `${url} ends with /v2, which is appended to it anyway`)
  }
  return url
}

/** As curl and Go do: lower case wins. */
function environmentProxyOf(environment: Environment, findings: Findings): EnvironmentProxy {
  const valueOf = (name: string): string | undefined =>
    environment[name] || environment[name.toUpperCase()] || undefined
  const proxyOf = (name: string): string | undefined => {
    const value = valueOf(name)
    const isUsable = value === undefined || /^(?:https?:\/\/)?[^\s/]+\/?$/i.test(value)
    if (!isUsable)
      findings.problem(name, 'expected an http or https proxy such as http://host:3128')
    return value
  }
  return {
    httpProxy: proxyOf('http_proxy'),
    httpsProxy: proxyOf('https_proxy'),
    noProxy: valueOf('no_proxy'),
  }
}

/** Zero, and often less, stands for "not set" in Go. */
function positiveOr<T>(otherwise: T, value: number | undefined): number | T {
  return value !== undefined && value > 0 ? value : otherwise
}
