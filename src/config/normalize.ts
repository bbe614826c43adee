// From the file's spelling to what the program is told. Every rule that involves more than one key, or a
// key's history, is here; all of them report through the findings and none of them throws.

import type { Document } from './document.ts'
import type { Environment } from './env.ts'
import { describe, type Findings } from './findings.ts'
import { LISTEN_ADDRESS_EXPECTED, parseListenAddress } from './scalars.ts'
import {
  DESCRIPTOR_CACHE_ENTRIES_MAX,
  type BoundListener,
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
  type RetentionRuleConfiguration,
  type StorageConfiguration,
} from './schema.ts'
import type { DiskAmount } from './size.ts'
import {
  defaultUpstreamOf,
  DOCKER_HUB,
  isDockerHubName,
  otherUpstreamsOf,
  ttlOf,
} from './upstreams.ts'

const CHECK_INTERVAL_MS = 10_000
const PURGE_INTERVAL_MS = 24 * 3_600_000
const DRAIN_TIMEOUT_MS = 30_000
const PAGE_ENTRIES_MAX = 1000
/** A tenth of what a slow disk gives. */
const SCRUB_BYTES_PER_SECOND = 20e6

/** @param document may have gaps where values were wrong: what comes out is then not to be used */
export function toConfiguration(
  document: Document,
  environment: Environment,
  findings: Findings,
): Configuration {
  const redis = redisOf(document.redis, findings)
  const log = logOf(document, findings)
  const storage = storageOf(document.storage, redis, findings)
  const proxy = proxyOf(document.proxy, environment, findings)
  return {
    log,
    storage,
    redis,
    http: httpOf(document.http, proxy, findings),
    health: healthOf(document.health, findings),
    catalog: { entriesMax: positiveOr(PAGE_ENTRIES_MAX, document.catalog.maxentries) },
    tags: { tagsMax: positiveOr(PAGE_ENTRIES_MAX, document.tags.maxtags) },
    proxy,
  }
}

/** What each line has of its own; the others are called as logrus calls them. */
const LINE_FIELDS: ReadonlySet<string> = new Set(['err', 'error', 'level', 'msg', 'time'])

function fieldsOf(fields: LogConfiguration['fields']): LogConfiguration['fields'] {
  return Object.fromEntries(
    Object.entries(fields).map(([name, value]) => {
      return [LINE_FIELDS.has(name) ? `fields.${name}` : name, value]
    }),
  )
}

function logOf({ log, loglevel }: Document, findings: Findings): LogConfiguration {
  if (loglevel) findings.warning('loglevel', 'deprecated; use log.level')
  if (log.formatter === 'logstash') {
    findings.warning('log.formatter', 'logstash is taken as json, whose fields have other names')
  }
  return {
    level: log.level ?? loglevel ?? 'info',
    formatter: log.formatter === 'text' ? 'text' : 'json',
    fields: fieldsOf(log.fields),
    accessLogEnabled: !log.accesslog.disabled,
  }
}

function storageOf(
  { filesystem, cache, maintenance, ...storage }: Document['storage'],
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
    maxSize: maxSizeOf(storage.maxsize, findings),
    minFree: minFreeOf(storage.minfree, findings),
    retention: retentionOf(storage.retention, findings),
    scrub: scrubOf(storage.scrub, findings),
    partialMaxAgeMs: age,
    partialPurgeEnabled: enabled && !dryrun,
    partialPurgeIntervalMs: positiveOr(PURGE_INTERVAL_MS, interval),
  }
}

function maxSizeOf(amount: DiskAmount | undefined, findings: Findings): DiskAmount | undefined {
  const isNothing = amount && (amount.kind === 'bytes' ? amount.bytes : amount.part) === 0
  if (isNothing) {
    findings.problem('storage.maxsize', 'expected more than nothing; without it there is no limit')
  }
  return amount
}

function minFreeOf(amount: DiskAmount | undefined, findings: Findings): DiskAmount | undefined {
  if (amount?.kind === 'part' && amount.part === 1) {
    findings.problem('storage.minfree', 'expected less than all of the disk')
  }
  return amount
}

function retentionOf(
  rules: Document['storage']['retention'],
  findings: Findings,
): RetentionRuleConfiguration[] {
  return rules.flatMap(({ match, pin, ttl }, index) => {
    const path = `storage.retention.${index}`
    if (match === undefined) {
      if (!findings.hasProblemWithin(`${path}.match`)) {
        findings.problem(`${path}.match`, 'expected a repository such as library/node, got nothing')
      }
      return []
    }
    if (pin === (ttl !== undefined)) {
      findings.problem(path, 'expected either pin: true or a ttl')
    }
    if (ttl !== undefined && match.includes(':')) {
      findings.problem(`${path}.match`, 'a ttl is for repositories; leave the tag out')
    }
    const ttlMs = ttl === undefined ? undefined : ttlOf(ttl, `${path}.ttl`, findings)
    return [{ match, isPinned: pin, ttlMs }]
  })
}

function scrubOf(
  { interval, rate }: Document['storage']['scrub'],
  findings: Findings,
): StorageConfiguration['scrub'] {
  const intervalMs = positiveOr(undefined, interval)
  if (intervalMs === undefined) {
    if (rate !== undefined) findings.warning('storage.scrub.rate', 'has no effect without interval')
    return undefined
  }
  return { intervalMs, bytesPerSecond: positiveOr(SCRUB_BYTES_PER_SECOND, rate) }
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

function httpOf(
  http: Document['http'],
  proxy: ProxyConfiguration,
  findings: Findings,
): HttpConfiguration {
  const { addr, prometheus } = http.debug
  if (prometheus.enabled && !addr) {
    findings.warning('http.debug.prometheus', 'has no effect without http.debug.addr')
  }
  return {
    listen: listenOf(http, 'http.addr', findings),
    listeners: http.listeners.flatMap((each, index) =>
      boundListenerOf(each, `http.listeners.${index}`, proxy, findings),
    ),
    prefix: http.prefix,
    host: http.host,
    headers: headersOf(http.headers, findings),
    // Distribution's 0 means that nobody has set it, and cuts every client off.
    drainTimeoutMs: positiveOr(DRAIN_TIMEOUT_MS, http.draintimeout),
    debug: addr && {
      listen: addr,
      prometheusPath: prometheus.enabled ? prometheus.path : undefined,
    },
  }
}

/** They tell how an answer is to be read, and where it ends: one that is wrong makes all of them unreadable. */
const FRAMING_HEADERS: ReadonlySet<string> = new Set([
  'connection',
  'content-encoding',
  'content-length',
  'content-range',
  'keep-alive',
  'te',
  'trailer',
  'transfer-encoding',
  'upgrade',
])

function headersOf(
  headers: HttpConfiguration['headers'],
  findings: Findings,
): HttpConfiguration['headers'] {
  const kept = Object.entries(headers).filter(([name]) => {
    const isFraming = FRAMING_HEADERS.has(name.toLowerCase())
    if (isFraming) findings.warning(`http.headers.${name}`, 'ignored: each answer has its own')
    return !isFraming
  })
  return Object.fromEntries(kept)
}

function boundListenerOf(
  { net, addr, upstream = '' }: Document['http']['listeners'][number],
  path: string,
  { main, others }: ProxyConfiguration,
  findings: Findings,
): BoundListener | [] {
  // As upstreams are called, whichever of its names somebody writes.
  const hubName = main.isDockerHub ? main.name : DOCKER_HUB
  const name = isDockerHubName(upstream) ? hubName : upstream.toLowerCase()
  const names = [main, ...others].map((each) => each.name).filter((each) => !each.includes('*'))
  if (!names.includes(name)) {
    const message = `expected one of ${names.join(', ')}, got ${describe(upstream)}`
    findings.problem(`${path}.upstream`, message)
    return []
  }
  return { listen: listenOf({ net, addr: addr ?? '' }, `${path}.addr`, findings), upstream: name }
}

function listenOf(
  { net, addr }: Pick<Document['http'], 'net' | 'addr'>,
  path: string,
  findings: Findings,
): ListenAddress {
  if (net === 'unix') return { path: addr }
  const address = parseListenAddress(addr)
  if (!address) {
    findings.problem(path, `expected ${LISTEN_ADDRESS_EXPECTED}, got ${describe(addr)}`)
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
  const main = defaultUpstreamOf(proxy, findings)
  return {
    main,
    others: otherUpstreamsOf(proxy, main, findings),
    rateLimitStatus: proxy.ratelimitstatus === '429' ? 429 : 503,
    environmentProxy: environmentProxyOf(environment, findings),
  }
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
