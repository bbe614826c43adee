// What is on disk, how large it is, when it was last used, and what belongs together. A cache of what the
// directory tree says, plus times: an index that is lost, torn or from another version is thrown away and rebuilt
// by scanning, while serving. The engine is lmdb: transactions survive `kill -9`, opening a million entries takes
// milliseconds, and the map's pages are the system's to take back.
//
// Invariant: whatever a stored manifest names is never older than that manifest, since using the one renews the
// other. So the oldest of all is the root of an image that nobody wants, never a layer of one that somebody does.

import { parseDigest, type Digest, type DigestAlgorithm } from '../../oci/digest.ts'
import type { RepositoryName, Tag } from '../../oci/reference.ts'
import { allocatedBytesIn } from '../disk-space.ts'
import { StorageError } from '../filesystem.ts'
import type { Link } from '../repository-index.ts'
import { applyChange, type IndexChange, type Totals } from './index-changes.ts'
import {
  FORMAT,
  FORMAT_KEY,
  SCRUB_KEY,
  SEEN_KEY,
  TOTALS_KEY,
  type IndexDatabase,
} from './index-database.ts'
import type { IndexHandle } from './index-handle.ts'
import { IndexMarks } from './index-marks.ts'
import { openIndex, type IndexOpeningDeps } from './index-opening.ts'
import {
  blobRecord,
  digestKey,
  digestOfKey,
  digestOfOrderKey,
  digestsIn,
  keyAfter,
  keyAfterAll,
  keyAfterDigest,
  linkKey,
  linkOfKey,
  linkRecord,
  repositoryKey,
  shardKey,
  tagOfKey,
  tagsKey,
  type BlobRecord,
} from './index-records.ts'

export interface LinkEntry extends Link {
  readonly lastUsedMs: number
}

export interface BlobEntry extends BlobRecord {
  readonly digest: Digest
}

/** How far stored blobs have been read again. */
export interface ScrubPosition {
  /** When the pass began, since the epoch. */
  readonly startedAtMs: number
  /** The last one that was looked at; undefined: the pass is over. */
  readonly after: Digest | undefined
}

const NO_TOTALS: Totals = { blobs: 0, links: 0, tags: 0, directories: 0, allocatedBytes: 0 }
/** Made between two turns of the event loop: about 5 ms. Using one image may take hundreds. */
const CHUNK_WRITES = 500

export class ContentIndex {
  readonly #deps: IndexOpeningDeps
  readonly #marks: IndexMarks
  #handle: IndexHandle | undefined
  #opening: Promise<IndexHandle> | undefined
  #totals = NO_TOTALS
  #wasComplete = false
  #isComplete = false
  #mayLack = false
  #isOfAnotherVolume = false
  #fileBytes = 0

  private constructor(deps: IndexOpeningDeps) {
    this.#deps = deps
    this.#marks = new IndexMarks(deps)
  }

  /**
   * Opens the index. On a full disk it knows nothing for the time being, and takes what it is told as soon as
   * there is room: a cache starts on a full disk too.
   */
  static async open(deps: IndexOpeningDeps): Promise<ContentIndex> {
    const index = new ContentIndex(deps)
    try {
      // Before anything is stored, also on a disk that has no room for an index yet.
      index.#wasComplete = await index.#marks.takeComplete()
      await index.#ready()
    } catch (error) {
      if (!(error instanceof StorageError)) throw error
      deps.logger.error(
        { err: error },
        'no index of the content: nothing expires until there is room',
      )
    }
    return index
  }

  /** Whether it had everything that is on disk when the process started: it was closed in order, after `markComplete`. */
  get wasComplete(): boolean {
    return this.#wasComplete && this.isOpen
  }

  /** Whether it ever had everything: what it lacks now is what a crash has kept from it. */
  get hasSeenAll(): boolean {
    return this.#database?.meta.get(SEEN_KEY) === true
  }

  /** Says for the next start that nothing is missing: the last thing before `close`, which writes it down. */
  markComplete(): void {
    this.#isComplete = true
  }

  /** Whether something may be on disk that came there without us. */
  get mayLack(): boolean {
    return this.#mayLack
  }

  /** Whether there is another volume at present than the one that this tells of: nothing may be removed there by it. */
  get isOfAnotherVolume(): boolean {
    return this.#isOfAnotherVolume
  }

  /**
   * Somebody has changed the volume under us: the next start has to look through what it finds, whatever `markComplete`
   * says, and whatever another process has left there.
   *
   * @throws {StorageError}
   */
  async noteChangedVolume({ isForeign }: { isForeign: boolean }): Promise<void> {
    this.#mayLack = true
    this.#isOfAnotherVolume = isForeign
    await this.#marks.takeComplete()
  }

  /** @throws {StorageError} */
  async markSeen(): Promise<void> {
    await this.#put(await this.#ready(), SEEN_KEY, true)
  }

  /** Of what is written down. */
  get totals(): Totals {
    return this.#totals
  }

  /** What its files took on disk after the last write. */
  get fileBytes(): number {
    return this.#fileBytes
  }

  /** Whether the bytes are stored. */
  has(digest: Digest): boolean {
    return this.blob(digest) !== undefined
  }

  /** @returns undefined when the bytes are not stored */
  blob(digest: Digest): BlobEntry | undefined {
    const record = blobRecord(this.#database?.blobs.get(digestKey(digest)))
    return record?.isStored ? { digest, ...record } : undefined
  }

  link(digest: Digest, repository: RepositoryName): LinkEntry | undefined {
    const record = linkRecord(this.#database?.links.get(linkKey(digest, repository)))
    return record && { digest, repository, ...record }
  }

  /** Who holds a digest. */
  linksOf(digest: Digest): LinkEntry[] {
    return [...this.eachLinkOf(digest)]
  }

  /** The same one by one, for whoever need not see all of them: a base layer has thousands. */
  *eachLinkOf(digest: Digest): Generator<LinkEntry> {
    const start = digestKey(digest)
    const range = { start, end: keyAfter(start) }
    for (const { key, value } of this.#handle?.iterate(({ links }) => links.getRange(range)) ??
      []) {
      const entry = linkEntry(key, value)
      if (entry) yield entry
    }
  }

  /** The tags of a repository that point to a digest, or once did. */
  tagsOf(digest: Digest, repository: RepositoryName): Tag[] {
    const start = tagsKey(digest, repository)
    const keys = this.#database?.tags.getKeys({ start, end: keyAfter(start) }) ?? []
    return [...keys].flatMap((key) => tagOfKey(key, start) ?? [])
  }

  /** Whether a repository has anything. */
  hasRepository(repository: RepositoryName): boolean {
    return this.#database?.repositories.doesExist(repositoryKey(repository)) === true
  }

  /** What goes along with a manifest, stored or not: what it names, and what refers to it. */
  namesOf(manifest: Digest): Digest[] {
    return digestsIn(this.#database?.names.get(digestKey(manifest)))
  }

  /** The manifests that name a manifest. */
  namedBy(manifest: Digest): Digest[] {
    return digestsIn(this.#database?.named.get(digestKey(manifest)))
  }

  /** Everything stored, the least recently used first. */
  async *oldestFirst(): AsyncGenerator<BlobEntry> {
    for await (const chunk of this.#chunksOf('order')) {
      for (const { key } of chunk) {
        const digest = digestOfOrderKey(key)
        const entry = digest && this.blob(digest)
        if (entry) yield entry
      }
    }
  }

  /** Every link, in the order of digests. */
  async *links(): AsyncGenerator<LinkEntry> {
    for await (const chunk of this.#chunksOf('links')) {
      for (const { key, value } of chunk) {
        const entry = linkEntry(key, value)
        if (entry) yield entry
      }
    }
  }

  /** Everything stored, in the order of digests. @param shard what shares a directory on disk; all, if not given */
  async *blobs(shard?: {
    algorithm: DigestAlgorithm
    hexPrefix: string
  }): AsyncGenerator<BlobEntry> {
    const start = shard && shardKey(shard.algorithm, shard.hexPrefix)
    const range = start ? { start, end: keyAfterAll(start) } : {}
    for await (const chunk of this.#chunksOf('blobs', range)) yield* storedIn(chunk)
  }

  /** Everything stored that comes after a digest, in the order of digests; all, if none is given. */
  async *blobsAfter(digest: Digest | undefined): AsyncGenerator<BlobEntry> {
    const range = digest ? { start: keyAfterDigest(digest) } : {}
    for await (const chunk of this.#chunksOf('blobs', range)) yield* storedIn(chunk)
  }

  /** @returns undefined when no pass ever began */
  get scrubPosition(): ScrubPosition | undefined {
    return scrubPositionIn(this.#database?.meta.get(SCRUB_KEY))
  }

  /** @throws {StorageError} */
  async setScrubPosition({ after, startedAtMs }: ScrubPosition): Promise<void> {
    await this.#put(await this.#ready(), SCRUB_KEY, { startedAtMs, after: after ?? null })
  }

  /**
   * Makes changes, in their order. Each survives a crash once this resolves; a crash in between leaves the first
   * ones.
   *
   * @throws {StorageError} some, or all, are not made
   */
  async write(changes: readonly IndexChange[]): Promise<void> {
    if (changes.length === 0) return
    const handle = await this.#ready()
    await this.#marks.during(async () => {
      for (let made = 0; made < changes.length;) {
        made += await this.#writeChunk(handle, changes.slice(made, made + CHUNK_WRITES))
        await handle.letGo()
      }
    })
    await this.#measure()
  }

  /** For whoever reads much of it: see `IndexHandle.letGo`. */
  async letGo(): Promise<void> {
    await this.#handle?.letGo()
  }

  async close(): Promise<void> {
    if (!(await this.#handle?.close())) return
    await this.#marks.noteClosed()
    if (!this.#isComplete || this.#mayLack) return
    await this.#marks.noteComplete().catch((error: unknown) => {
      this.#deps.logger.error({ err: error }, 'the next start has to look through the volume')
    })
  }

  /** Otherwise nothing is found in it. */
  get isOpen(): boolean {
    return this.#handle?.isOpen === true
  }

  get #database(): IndexDatabase | undefined {
    return this.#handle?.database
  }

  async *#chunksOf(
    ...range: Parameters<IndexHandle['chunksOf']>
  ): ReturnType<IndexHandle['chunksOf']> {
    if (this.#handle) yield* this.#handle.chunksOf(...range)
  }

  /** @throws {StorageError} there is no room for it */
  async #ready(): Promise<IndexHandle> {
    if (this.#handle) return this.#handle
    this.#opening ??= this.#open().finally(() => {
      this.#opening = undefined
    })
    return this.#opening
  }

  async #open(): Promise<IndexHandle> {
    const { handle } = await openIndex(this.#deps, this.#marks)
    const isNew = handle.database?.meta.get(FORMAT_KEY) === undefined
    if (isNew) {
      // It begins anew, whatever there was before.
      this.#wasComplete = false
      await this.#put(handle, FORMAT_KEY, FORMAT)
    }
    this.#totals = totalsIn(handle.database?.meta.get(TOTALS_KEY))
    this.#handle = handle
    await this.#measure()
    return handle
  }

  #put(handle: IndexHandle, key: string, value: unknown): Promise<void> {
    return this.#marks.during(() => handle.commit(({ meta }) => meta.put(key, value)))
  }

  async #measure(): Promise<void> {
    this.#fileBytes = await allocatedBytesIn(this.#deps.paths.index)
  }

  /** @returns how many of them are made */
  async #writeChunk(handle: IndexHandle, changes: readonly IndexChange[]): Promise<number> {
    let made = 0
    try {
      await handle.commit((database) =>
        // Unlike a plain one it leaves nothing if it throws.
        database.root.childTransaction(() => {
          let totals = this.#totals
          let writes = 0
          for (const change of changes) {
            const applied = applyChange(database, change, totals)
            totals = applied.totals
            made++
            writes += applied.writes
            if (writes >= CHUNK_WRITES) break
          }
          database.meta.put(TOTALS_KEY, totals).catch(() => undefined)
          // Now, not after the commit: the next transaction may begin before that.
          this.#totals = totals
        }),
      )
      return made
    } catch (error) {
      const { database } = handle
      if (database) this.#totals = totalsIn(database.meta.get(TOTALS_KEY))
      throw error
    }
  }
}

function linkEntry(key: Buffer, value: Buffer): LinkEntry | undefined {
  const link = linkOfKey(key)
  const record = linkRecord(value)
  return link && record && { ...link, ...record }
}

/** Leaves out what is known only because manifests name it. */
function* storedIn(chunk: readonly { key: Buffer; value: Buffer }[]): Generator<BlobEntry> {
  for (const { key, value } of chunk) {
    const digest = digestOfKey(key)
    const record = blobRecord(value)
    if (digest && record?.isStored) yield { digest, ...record }
  }
}

function scrubPositionIn(value: unknown): ScrubPosition | undefined {
  if (typeof value !== 'object' || value === null) return undefined
  const { after, startedAtMs } = value as Partial<Record<keyof ScrubPosition, unknown>>
  if (typeof startedAtMs !== 'number') return undefined
  return { startedAtMs, after: typeof after === 'string' ? parseDigest(after) : undefined }
}

function totalsIn(value: unknown): Totals {
  const totals = { ...NO_TOTALS }
  if (typeof value !== 'object' || value === null) return totals
  for (const key of ['blobs', 'links', 'tags', 'directories', 'allocatedBytes'] as const) {
    const number = (value as Partial<Record<keyof Totals, unknown>>)[key]
    if (typeof number === 'number') totals[key] = number
  }
  return totals
}
