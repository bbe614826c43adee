// What is measured. A scenario has variants (numbers of connections, mostly); each is run against every
// target, taking turns, and gives samples from which the columns of its table are computed.
//
//   { id, title, variants: [{ label, ... }], needs, targets, prepare(lab, target), run(lab, target, variant),
//     columns, rank: { metric, better } the column that the ratios are of, cold, runs }

import { download, wrk } from './drivers.mjs'

/** The variant of a server that has fetched a few thousand other blobs before. */
export const IN_SERVICE = 'in service'

const GB = 1e9
const MB = 1e6

/** How a measurement is called in lists. */
export const nameOf = ({ scenario, variant }) =>
  [scenario.id, variant.label].filter(Boolean).join(', ')

/** @param of computes the figure from a sample of measure.mjs; undefined where it makes no sense */
const column = (metric, label, digits, of) => ({ metric, label, digits, of })

const rssColumn = column('rssMb', 'RSS MB', 0, (s) => s.rssMb)
const upstreamRequests = (s) => Object.values(s.upstream.requests).reduce((sum, n) => sum + n, 0)
const perConnections = (counts) =>
  counts.map((n) => ({ label: `${n} connection${n === 1 ? '' : 's'}`, connections: n }))

const RATE_COLUMNS = [
  column('rate', 'req/s', 0, (s) => s.requests / s.seconds),
  column('p50Ms', 'p50 ms', 2, (s) => s.totalMs.p50),
  column('p99Ms', 'p99 ms', 2, (s) => s.totalMs.p99),
  column('cpuUs', 'CPU µs/req', 0, (s) => (s.cpuSeconds / s.requests) * 1e6),
  column('upstreamPerRequest', 'upstream/req', 2, (s) => upstreamRequests(s) / s.requests),
  rssColumn,
]

/** A request rate with everything cached. wrk cannot ask for heads, so the C driver does. */
function warmRate(settings, { id, title, pathSet, head = false }) {
  return {
    id,
    title,
    variants: perConnections(settings.connections),
    needs: head ? ['cc'] : ['wrk or cc'],
    prepare: (lab, target) => target.warm([lab.dataset.paths[pathSet]]),
    run(lab, target, { connections }) {
      const what = {
        paths: lab.dataset.paths[pathSet],
        connections,
        seconds: settings.seconds,
        head,
      }
      return lab.tools.wrk && !head
        ? wrk(lab.directory, target.url, what)
        : download(lab.tools.downloader, target.url, what)
    },
    columns: RATE_COLUMNS,
    rank: { metric: 'rate', better: 'higher' },
  }
}

function warmLargeBlob(settings) {
  return {
    id: 'wlarge',
    title: `warm ${settings.sizes.largeBytes / 1024 ** 2} MiB blob`,
    variants: perConnections(settings.largeConnections),
    needs: ['cc'],
    prepare: (lab, target) => target.warm([lab.dataset.paths['large-blob']]),
    run(lab, target, { connections }) {
      const volumeBytes = settings.largeVolumeBytes * Math.min(1, Math.max(4, connections) / 16)
      const requests = Math.max(connections, Math.round(volumeBytes / settings.sizes.largeBytes))
      const paths = lab.dataset.paths['large-blob']
      return download(lab.tools.downloader, target.url, { paths, connections, requests })
    },
    columns: [
      column('gbPerSecond', 'GB/s', 2, (s) => s.bytes / s.seconds / GB),
      column('cpuPerGb', 'CPU s/GB', 3, (s) => s.cpuSeconds / (s.bytes / GB)),
      rssColumn,
    ],
    rank: { metric: 'gbPerSecond', better: 'higher' },
  }
}

const COLD_COLUMNS = [
  column('seconds', 'time s', 2, (s) => s.seconds),
  column('storedSeconds', 'at rest s', 2, (s) => s.seconds + s.settledSeconds),
  column('firstByteMs', '1st byte p50 ms', 1, (s) => s.firstByteMs.p50),
  column('firstByteMaxMs', 'max ms', 1, (s) => s.firstByteMs.max),
  column('cpuSeconds', 'CPU s', 2, (s) => s.cpuSeconds),
  rssColumn,
]

/** Upstream traffic relative to what one client needs. */
const upstreamColumns = (expectedBytes) => [
  column('upstreamTimes', 'upstream bytes', 2, (s) => s.upstream.bodyBytes / expectedBytes),
  column('mostGets', 'GETs/blob max', 0, (s) => s.upstream.mostGetsOfOneBlob),
  column('upstreamRequests', 'upstream req', 0, upstreamRequests),
]

/**
 * Something pulled through an empty cache.
 *
 * @param pull.load what the driver is to do, see drivers.mjs
 * @param pull.throttle of the origin, see targets.mjs
 */
function cold({ pathSet, expectedBytes, throttle = {}, load, columns = [], ...scenario }) {
  return {
    variants: [{ label: '' }],
    needs: ['cc'],
    cold: true,
    async prepare(lab, target, { busyBefore = false }) {
      await lab.origin.throttle({})
      await target.chill()
      if (busyBefore) await target.warm([lab.dataset.paths['other-blobs']])
      await lab.origin.throttle(throttle)
    },
    run: (lab, target) =>
      download(lab.tools.downloader, target.url, { paths: lab.dataset.paths[pathSet], ...load }),
    columns: [...columns, ...COLD_COLUMNS, ...upstreamColumns(expectedBytes)],
    rank: { metric: 'seconds', better: 'lower' },
    ...scenario,
  }
}

/**
 * All scenarios, in the order in which they run: warm ones first, since cold ones empty the caches.
 *
 * @param settings sizes, connections, seconds, herd: see options.mjs
 */
export function scenarios(settings) {
  const { sizes } = settings
  const hundred = `${sizes.hundredBytes / MB} MB`
  return [
    warmRate(settings, {
      id: 'wtag',
      title: 'warm manifest by tag',
      pathSet: 'manifests-by-tag',
    }),
    warmRate(settings, {
      id: 'wdigest',
      title: 'warm manifest by digest',
      pathSet: 'manifests-by-digest',
    }),
    warmRate(settings, { id: 'wsmall', title: 'warm 10 KB blob', pathSet: 'small-blobs' }),
    warmRate(settings, {
      id: 'whead',
      title: 'HEAD of a warm 10 KB blob',
      pathSet: 'small-blobs',
      head: true,
    }),
    warmLargeBlob(settings),
    cold({
      id: 'csmall',
      title: `${sizes.smallBlobs} cold blobs of 10 KB, 16 connections`,
      pathSet: 'small-blobs',
      expectedBytes: sizes.smallBlobs * 10 * 1024,
      load: { connections: 16, requests: sizes.smallBlobs },
      columns: [column('rate', 'blobs/s', 0, (s) => s.requests / s.seconds)],
      rank: { metric: 'rate', better: 'higher' },
      // A cache is started once, and asked for new images for weeks.
      variants: [{ label: 'just started' }, { label: IN_SERVICE, busyBefore: true }],
    }),
    cold({
      id: 'clarge',
      title: `one cold ${sizes.largeBytes / 1024 ** 2} MiB blob, upstream as fast as it goes`,
      pathSet: 'large-blob',
      expectedBytes: sizes.largeBytes,
      load: { requests: 1 },
    }),
    cold({
      id: 'first',
      title: `first byte of ${sizes.mediumBlobs} cold blobs, one after the other, upstream 20 ms away`,
      pathSet: 'medium-blobs',
      expectedBytes: sizes.mediumBlobs * sizes.mediumBytes,
      throttle: { latencyMs: 20 },
      load: { requests: sizes.mediumBlobs },
      rank: { metric: 'firstByteMs', better: 'lower' },
      direct: true,
    }),
    cold({
      id: 'behind',
      title: `one cold ${hundred} blob, upstream gives 50 MB/s`,
      pathSet: 'hundred-blob',
      expectedBytes: sizes.hundredBytes,
      throttle: { rate: 50 * MB },
      load: { requests: 1 },
      direct: true,
    }),
    cold({
      id: 'herd',
      title: `50 clients at once on one cold ${hundred} blob, upstream gives 100 MB/s`,
      pathSet: 'hundred-blob',
      expectedBytes: sizes.hundredBytes,
      throttle: { rate: 100 * MB },
      load: { connections: 50, requests: 50 },
      // It fetches the blob 51 times over, which takes as long as it takes.
      runs: { 'docker-registry': 1 },
    }),
    cold({
      id: 'slow',
      title: `4 clients on one cold ${hundred} blob beside 4 that read 1 MB/s, upstream gives 100 MB/s each`,
      pathSet: 'hundred-blob',
      expectedBytes: sizes.hundredBytes,
      throttle: { connectionRate: 100 * MB },
      load: { connections: 8, requests: 8, slow: { count: 4, bytesPerSecond: MB } },
    }),
  ]
}
