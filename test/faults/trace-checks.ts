// What is checked of what a cell leaves behind: the disk, the access log, the application's log, the counters,
// and what the upstream was asked.

import { readFile } from 'node:fs/promises'
import { join } from 'node:path'
import { matchesDigest } from '../../src/oci/digest.ts'
import { blobFile, type AccessLine } from '../support/layover.ts'
import { waitFor } from '../support/wait-for.ts'
import type { Asked } from './asking.ts'
import { expectedOf, strikes } from './expectation.ts'
import { meaningIn, type Cell } from './matrix.ts'
import type { Scene } from './scene.ts'
import type { Counters, Station } from './station.ts'

/** What was there before the clients asked. */
export interface Before {
  readonly counters: Counters
  readonly accessLines: number
  readonly logLines: number
}

export async function before(station: Station): Promise<Before> {
  const counters = await station.counters()
  const { accessLines, log } = station.layover
  return { counters, accessLines: accessLines.length, logLines: log.length }
}

/** Blobs and manifests are kept as soon as they are right, and not before; of lists nothing is kept. */
export async function diskDeviations(
  cell: Cell,
  scene: Scene,
  station: Station,
): Promise<string[]> {
  const isListing = cell.resource === 'tags' || cell.resource === 'referrers'
  const found = isListing ? [] : await contentDeviations(cell, scene, station)
  // A check of the disk may be under way.
  const isTidy = async (): Promise<boolean> =>
    (await station.layover.files('layover/temporary')).length === 0
  await waitFor('temporary files to go', isTidy).catch(() => found.push('temporary files are left'))
  for (const part of await scene.parts()) {
    found.push(...(await partDeviations(part, cell, { scene, station })))
  }
  return found
}

async function contentDeviations(cell: Cell, scene: Scene, station: Station): Promise<string[]> {
  const file = join(station.layover.rootDirectory, blobFile(scene.digest))
  const read = (): Promise<Buffer | undefined> => readFile(file).catch(() => undefined)
  const { outcome, source } = expectedOf(cell)
  const isKnown = cell.state === 'warm' || cell.state === 'stale'
  if (isKnown || (outcome === 'content' && source !== 'stale')) {
    // HEAD asks for the size of a blob alone; if the upstream does not tell it, the blob comes.
    if (!isKnown && cell.resource === 'blob' && cell.client === 'head') return []
    const bytes = await waitFor('the content to be stored', read).catch(() => undefined)
    if (!bytes) return ['what was served is not kept']
    if (!matchesDigest(bytes, scene.digest)) return ['what is kept is wrong']
    return tagDeviations(scene, station)
  }
  return (await read()) ? ['something is kept that was never served as right'] : []
}

/** What the tag means is kept, too. */
async function tagDeviations(scene: Scene, station: Station): Promise<string[]> {
  const { tagFile } = scene
  if (tagFile === undefined) return []
  const file = join(station.layover.rootDirectory, tagFile)
  const isNamed = async (): Promise<boolean> =>
    (await readFile(file, 'utf8').catch(() => '')) === scene.digest
  const found: string[] = []
  await waitFor('the tag to be stored', isNamed).catch(() => {
    found.push('the tag on disk does not mean what was served')
  })
  return found
}

/** A part may stay for the next attempt, if it is the beginning of the blob. */
async function partDeviations(
  name: string,
  { row: { leavesWrong } }: Cell,
  { scene, station }: { scene: Scene; station: Station },
): Promise<string[]> {
  const file = join(station.layover.rootDirectory, 'layover/spool', name)
  const bytes = await readFile(file).catch(() => undefined)
  if (!bytes) return []
  if (!name.startsWith(`${scene.blob.digest.replace(':', '-')}-`)) return [`the spool has ${name}`]
  if (leavesWrong) return []
  const beginning = scene.blob.bytes.subarray(0, bytes.length)
  return beginning.equals(bytes) ? [] : ['the part that is left is not how the blob begins']
}

function statuses(all: readonly (number | undefined)[]): string {
  return all
    .map(String)
    .sort((a, b) => a.localeCompare(b))
    .join(' ')
}

/** Each request has its line and its count, each failure its reason. */
export async function logDeviations(
  cell: Cell,
  { requests, seen }: Asked,
  { before, station }: { before: Before; station: Station },
): Promise<string[]> {
  const { layover } = station
  const lines = await waitFor('an access line for each request', () => {
    const fresh = layover.accessLines.slice(before.accessLines)
    return fresh.length >= requests && fresh
  }).catch(() => layover.accessLines.slice(before.accessLines))
  const found: string[] = []
  if (lines.length !== requests) found.push(`${lines.length} access lines for ${requests} requests`)
  for (const line of lines) found.push(...lineDeviations(line))
  const told = statuses(lines.map(({ status }) => status))
  const were = statuses(seen.map(({ response }) => response.status))
  if (seen.length === requests && told !== were) found.push(`the log tells ${told}, not ${were}`)
  const messages = layover.log.slice(before.logLines)
  if (messages.some(({ isBug }) => isBug === true)) found.push('the log tells of a bug of ours')
  const { outcome, source } = expectedOf(cell)
  const isTag = cell.resource === 'tag' || cell.resource === 'token'
  const expected = [
    ...(source === 'stale' && isTag ? [/^serving the manifest that the tag had/] : []),
    ...(outcome === 'short' ? [/^(a download .* was given up|the upstream sent wrong bytes)/] : []),
  ]
  for (const pattern of expected) {
    // What was begun for a client that has left may take a little longer.
    const isSaid = (): boolean =>
      layover.log.slice(before.logLines).some(({ msg }) => pattern.test(String(msg)))
    await waitFor(`the log to say ${pattern.source}`, isSaid).catch((error: unknown) => {
      found.push(String(error))
    })
  }
  return found
}

function lineDeviations(line: AccessLine): string[] {
  const { aborted, cache, error, status } = line
  const isFailure = status >= 400
  if (isFailure && !error) return [`a ${status} has no reason in the access log`]
  if (!isFailure && !aborted && !cache) return ['an access line does not say what the cache did']
  if (!isFailure && !aborted && error)
    return [`a ${status} is logged as a failure: ${JSON.stringify(error)}`]
  return []
}

export async function counterDeviations(
  cell: Cell,
  { requests, seen }: Asked,
  { before, station }: { before: Before; station: Station },
): Promise<string[]> {
  const after = await station.counters()
  const grown = (prefix: string): number => sum(after, prefix) - sum(before.counters, prefix)
  const found: string[] = []
  const counted = grown('registry_http_requests_total{')
  if (counted !== requests) found.push(`${counted} requests are counted of ${requests}`)
  const answered = seen.filter(({ response }) => (response.status ?? 0) < 300).length
  const isContent = cell.resource !== 'tags' && cell.resource !== 'referrers'
  const outcomes = grown('layover_requests_total{')
  if (isContent && seen.length === requests && outcomes !== answered) {
    found.push(`${outcomes} outcomes are counted of ${answered} answers`)
  }
  if (grown('layover_storage_errors_total') > 0) found.push('a failure of the disk is counted')
  if (!cell.row.counts || !strikes(cell)) return found
  const name =
    cell.row.counts === 'mismatch'
      ? 'layover_digest_mismatches_total{'
      : 'layover_fill_resumes_total'
  if (grown(name) < 1) found.push(`${name} does not count`)
  return found
}

function sum(counters: Counters, prefix: string): number {
  let total = 0
  for (const [series, value] of counters) if (series.startsWith(prefix)) total += value
  return total
}

/** What is cached and fresh costs the upstream nothing; a download is shared. */
export function upstreamDeviations(
  cell: Cell,
  { requests }: Asked,
  { scene, station }: { scene: Scene; station: Station },
): string[] {
  const { upstream } = station
  const { repository = '' } = scene.match
  const asked = upstream.count({ repository })
  if (cell.state === 'warm') return asked === 0 ? [] : [`the upstream was asked ${asked} times`]
  const mayRepeat = cell.row.plans.some(({ times }) => times !== undefined) || requests === 1
  const isHarmless = meaningIn(cell).is === 'harmless'
  if (cell.resource !== 'blob' || !isHarmless || mayRepeat) return []
  const isWhole = cell.row.counts !== 'resume'
  const sentBytes = upstream.bytesSent(scene.blob.digest)
  // A rest that is refused, or a little more than the content when it is compressed, is not yet another download.
  return isWhole && sentBytes >= 2 * scene.blob.bytes.length
    ? [`the upstream sent ${sentBytes} bytes for ${requests} clients`]
    : []
}
