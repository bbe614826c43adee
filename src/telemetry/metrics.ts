// Every metric, declared once. Names that dashboards of registry:3 chart are kept with their meaning; ours
// start with `layover_`. Labels are bounded: never a repository, a digest or a client.

import { Counter, Gauge, Histogram, Registry } from 'prom-client'

export type ContentType = 'blob' | 'manifest'

/** What a request did to the cache; the access log's and the metrics' word for it. */
export type CacheOutcome = 'hit' | 'miss' | 'stale' | 'revalidated' | 'coalesced' | 'bypass'

const CONTENT_TYPES = ['blob', 'manifest'] as const
const DURATION_BUCKETS = [0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 25, 60]

export class Metrics {
  readonly registry = new Registry()

  readonly proxyRequests = this.#counter('registry_proxy_requests_total', {
    help: 'The number of total incoming proxy request received',
    labels: ['type'],
  })
  readonly proxyHits = this.#counter('registry_proxy_hits_total', {
    help: 'The number of total proxy request hits',
    labels: ['type'],
  })
  readonly proxyMisses = this.#counter('registry_proxy_misses_total', {
    help: 'The number of total proxy request misses',
    labels: ['type'],
  })
  readonly proxyPulledBytes = this.#counter('registry_proxy_pulled_bytes_total', {
    help: 'The size of total bytes pulled from the upstream',
    labels: ['type'],
  })
  readonly proxyPushedBytes = this.#counter('registry_proxy_pushed_bytes_total', {
    help: 'The size of total bytes pushed to the client',
    labels: ['type'],
  })
  readonly httpRequests = this.#counter('registry_http_requests_total', {
    help: 'Total number of HTTP requests made',
    labels: ['handler', 'code', 'method'],
  })
  readonly httpDuration = new Histogram({
    name: 'registry_http_request_duration_seconds',
    help: 'The HTTP request latencies in seconds',
    labelNames: ['handler', 'method'],
    buckets: DURATION_BUCKETS,
    registers: [this.registry],
  })
  readonly httpInFlight = new Gauge({
    name: 'registry_http_in_flight_requests',
    help: 'The in-flight HTTP requests',
    registers: [this.registry],
  })

  readonly cacheRequests = this.#counter('layover_requests_total', {
    help: 'Content requests by what the cache did',
    labels: ['upstream', 'type', 'outcome'],
  })
  readonly upstreamRequests = this.#counter('layover_upstream_requests_total', {
    help: 'Requests sent to upstreams; code is "error" when there was no answer',
    labels: ['upstream', 'kind', 'method', 'code'],
  })
  readonly upstreamDuration = new Histogram({
    name: 'layover_upstream_request_duration_seconds',
    help: 'Time until an upstream answered with headers',
    labelNames: ['upstream', 'kind'],
    buckets: DURATION_BUCKETS,
    registers: [this.registry],
  })
  readonly loginFailing = new Gauge({
    name: 'layover_upstream_login_failing',
    help: '1 while the upstream refuses the credentials that are configured, or they cannot be read',
    labelNames: ['upstream'],
    registers: [this.registry],
  })
  readonly rateLimitLimit = new Gauge({
    name: 'layover_upstream_ratelimit_limit',
    help: 'Pulls that the upstream allows within its window, as it said last',
    labelNames: ['upstream'],
    registers: [this.registry],
  })
  readonly rateLimitRemaining = new Gauge({
    name: 'layover_upstream_ratelimit_remaining',
    help: 'Pulls that the upstream still allows, as it said last',
    labelNames: ['upstream'],
    registers: [this.registry],
  })
  readonly fillsRunning = new Gauge({
    name: 'layover_fills_running',
    help: 'Blob downloads from upstreams that are under way',
    registers: [this.registry],
  })
  readonly fillResumes = this.#counter('layover_fill_resumes_total', {
    help: 'Downloads that broke and were resumed where they stopped',
  })
  readonly mismatches = this.#counter('layover_digest_mismatches_total', {
    help: 'Content that did not match its digest, and was neither kept nor served to its end',
    labels: ['type'],
  })
  readonly storageErrors = this.#counter('layover_storage_errors_total', {
    help: 'Failures of the disk; clients are served all the same',
  })
  readonly expired = this.#counter('layover_expired_total', {
    help: 'Links removed because they were not used for longer than proxy.ttl',
    labels: ['type'],
  })
  readonly removedBlobs = this.#counter('layover_removed_blobs_total', {
    help: 'Blobs whose bytes were removed because no repository linked them any more',
  })

  readonly evictedBlobs = this.#counter('layover_evicted_blobs_total', {
    help: 'Blobs removed to make room, least recently used first',
  })
  readonly evictedBytes = this.#counter('layover_evicted_bytes_total', {
    help: 'Bytes on disk that were freed to make room',
  })
  readonly purgedBlobs = this.#counter('layover_purged_blobs_total', {
    help: 'Blobs that an operator had removed',
  })
  readonly purgedBytes = this.#counter('layover_purged_bytes_total', {
    help: 'Bytes on disk that were freed by what an operator had removed',
  })
  readonly notKept = this.#counter('layover_not_kept_total', {
    help: 'Blobs and manifests that were served but not kept: there was no room, or the disk was too slow',
    labels: ['type'],
  })
  readonly storageUsed = this.#gauge('layover_storage_used_bytes', {
    help: 'What the cache takes on disk',
  })
  readonly storageReserved = this.#gauge('layover_storage_reserved_bytes', {
    help: 'Room on disk that running downloads have been promised',
  })
  readonly storageLimit = this.#gauge('layover_storage_limit_bytes', {
    help: 'What the cache may take on disk: storage.maxsize, or what storage.minfree leaves',
  })
  readonly storedBlobs = this.#gauge('layover_stored_blobs', {
    help: 'Blobs on disk, manifests included',
  })
  readonly scrubbedBytes = this.#counter('layover_scrubbed_bytes_total', {
    help: 'Bytes on disk that were read and hashed again, to see whether they still match',
  })

  constructor() {
    // Dashboards divide by these: they start at 0, as registry's do.
    for (const type of CONTENT_TYPES) {
      for (const counter of [
        this.proxyRequests,
        this.proxyHits,
        this.proxyMisses,
        this.proxyPulledBytes,
        this.proxyPushedBytes,
      ]) {
        counter.inc({ type }, 0)
      }
    }
  }

  #gauge(name: string, { help }: { help: string }): Gauge {
    return new Gauge({ name, help, registers: [this.registry] })
  }

  #counter(name: string, { help, labels = [] }: { help: string; labels?: string[] }): Counter {
    return new Counter({ name, help, labelNames: labels, registers: [this.registry] })
  }
}
