// What takes the space: by upstream, by repository, by age. Every blob counts once in the sums. In the rows it counts
// for each that holds it, and the bytes that nobody else holds are told beside: that is what removing one would free.

import { setImmediate as nextTurn } from 'node:timers/promises'
import type { Clock } from '../../clock.ts'
import type { RepositoryName } from '../../oci/reference.ts'
import type { BlobEntry, ContentIndex, LinkEntry } from '../../storage/index/content-index.ts'
import type { DiskBudget } from '../disk-budget.ts'
import type { Inventory } from '../inventory.ts'
import { NotReadyError, volumeUnknown } from './not-ready.ts'
import type { StoredNames } from './stored-names.ts'

/** Rows of one report, about 20 MB. What is beyond is told as one row. */
const REPOSITORIES_MAX = 100_000
/** What that row is called: no repository can be. */
const OTHER = '(others)'
/** Entries looked at between two turns of the event loop. */
const STEP_ENTRIES = 500

const HOUR_MS = 3_600_000
const DAY_MS = 24 * HOUR_MS
/** Since the last use. */
const AGES = [
  { name: 'under an hour', belowMs: HOUR_MS },
  { name: 'under a day', belowMs: DAY_MS },
  { name: 'under 7 days', belowMs: 7 * DAY_MS },
  { name: 'under 30 days', belowMs: 30 * DAY_MS },
  { name: 'under 90 days', belowMs: 90 * DAY_MS },
  { name: '90 days or more', belowMs: Number.POSITIVE_INFINITY },
] as const

export interface UsageRow {
  readonly name: string
  readonly blobs: number
  /** Of all blobs that it holds. */
  readonly totalBytes: number
  /** Of those that it alone holds. */
  readonly ownBytes: number
}

export interface AgeRow {
  /** Since the last use. */
  readonly name: string
  readonly blobs: number
  readonly totalBytes: number
}

export interface UsageReport {
  /** All that is on disk, as the limit counts it. */
  readonly usedBytes: number
  /** Undefined: no limit but the disk. */
  readonly limitBytes: number | undefined
  readonly reservedBytes: number
  /** Blobs and manifests. What is left of `usedBytes`: links, folders, index, unfinished downloads, quarantine. */
  readonly contentBytes: number
  readonly blobs: number
  /** That no repository holds; they count in no row. */
  readonly unlinkedBytes: number
  /** The largest first. */
  readonly upstreams: readonly UsageRow[]
  readonly repositories: readonly UsageRow[]
  /** The most recently used first. */
  readonly ages: readonly AgeRow[]
}

export interface UsageDeps {
  readonly clock: Clock
  readonly index: ContentIndex
  readonly inventory: Inventory
  readonly budget: DiskBudget
  readonly names: StoredNames
}

/**
 * @param signal ends it: the index is about to be closed
 * @throws {NotReadyError}
 * @throws {StorageError}
 */
export async function usageReport(deps: UsageDeps, signal: AbortSignal): Promise<UsageReport> {
  const { budget, clock, index, inventory, names } = deps
  // Any figure would be too small.
  if (!inventory.isComplete) throw volumeUnknown()
  await inventory.flush()
  const count = new Count(names, clock.now())
  let step = 0
  for await (const { blob, holders } of withHolders(index)) {
    if (signal.aborted) throw new NotReadyError('the server is stopping')
    count.add(blob, holders)
    if (++step % STEP_ENTRIES === 0) await nextTurn()
  }
  const { limitBytes, reservedBytes, usedBytes } = budget
  return {
    usedBytes,
    limitBytes: Number.isFinite(limitBytes) ? limitBytes : undefined,
    reservedBytes,
    ...count.result(),
  }
}

/** Both tables are in the order of digests, so that one pass over each is enough. */
async function* withHolders(
  index: ContentIndex,
): AsyncGenerator<{ blob: BlobEntry; holders: readonly RepositoryName[] }> {
  const links = index.links()
  let link = await next(links)
  for await (const blob of index.blobsAfter(undefined)) {
    const holders: RepositoryName[] = []
    while (link && link.digest <= blob.digest) {
      if (link.digest === blob.digest) holders.push(link.repository)
      link = await next(links)
    }
    yield { blob, holders }
  }
}

async function next(links: AsyncGenerator<LinkEntry>): Promise<LinkEntry | undefined> {
  const step = await links.next()
  return step.done ? undefined : step.value
}

interface Sums {
  blobs: number
  totalBytes: number
  ownBytes: number
}

class Count {
  readonly #names: StoredNames
  readonly #nowMs: number
  readonly #upstreams = new Map<string, Sums>()
  readonly #repositories = new Map<string, Sums>()
  readonly #ages = AGES.map(({ name }) => ({ name, blobs: 0, totalBytes: 0 }))
  #blobs = 0
  #contentBytes = 0
  #unlinkedBytes = 0

  constructor(names: StoredNames, nowMs: number) {
    this.#names = names
    this.#nowMs = nowMs
  }

  add({ allocatedBytes, lastUsedMs }: BlobEntry, holders: readonly RepositoryName[]): void {
    this.#blobs++
    this.#contentBytes += allocatedBytes
    if (holders.length === 0) this.#unlinkedBytes += allocatedBytes
    addTo(this.#repositories, holders, allocatedBytes)
    const upstreams = new Set(holders.map((repository) => this.#names.upstreamOf(repository)))
    addTo(this.#upstreams, [...upstreams], allocatedBytes)
    const ageMs = this.#nowMs - lastUsedMs
    const age = this.#ages[AGES.findIndex(({ belowMs }) => ageMs < belowMs)]
    if (!age) return
    age.blobs++
    age.totalBytes += allocatedBytes
  }

  result(): Omit<UsageReport, 'usedBytes' | 'limitBytes' | 'reservedBytes'> {
    return {
      contentBytes: this.#contentBytes,
      blobs: this.#blobs,
      unlinkedBytes: this.#unlinkedBytes,
      upstreams: rowsOf(this.#upstreams),
      repositories: rowsOf(this.#repositories),
      ages: this.#ages,
    }
  }
}

function addTo(rows: Map<string, Sums>, holders: readonly string[], bytes: number): void {
  for (const holder of holders) {
    const name = rows.has(holder) || rows.size < REPOSITORIES_MAX ? holder : OTHER
    const row = rows.get(name) ?? { blobs: 0, totalBytes: 0, ownBytes: 0 }
    row.blobs++
    row.totalBytes += bytes
    if (holders.length === 1) row.ownBytes += bytes
    rows.set(name, row)
  }
}

function rowsOf(rows: ReadonlyMap<string, Sums>): UsageRow[] {
  return [...rows]
    .map(([name, sums]) => ({ name, ...sums }))
    .sort((a, b) => b.totalBytes - a.totalBytes || (a.name < b.name ? -1 : 1))
}
