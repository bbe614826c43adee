// What is known of the content on disk, the last seconds included. A use is a note in memory: nothing on a
// request's path waits or touches the disk; the janitor writes the notes into the index, in batches.

import type { Logger } from 'pino'
import type { Clock } from '../clock.ts'
import type { Digest } from '../oci/digest.ts'
import type { ManifestContent } from '../oci/manifest.ts'
import type { RepositoryName, Tag } from '../oci/reference.ts'
import type { FileCosts } from '../storage/disk-space.ts'
import type { BlobEntry, ContentIndex } from '../storage/index/content-index.ts'
import { directoriesOf } from '../storage/index/index-changes.ts'
import type { Link } from '../storage/repository-index.ts'
import {
  changesOf,
  emptyNotes,
  inSequence,
  isEmpty,
  isUsedBy,
  keyOf,
  type TagChange,
} from './inventory-notes.ts'
import type { Retention } from './retention.ts'

/** Notes are written at once when there are so many: they are bounded too. */
const NOTES_MAX = 50_000
/** Its own, `current`, `index`, the algorithm's and the digest's, with two files; each further digest takes less. */
const TAG_DIRECTORIES = 5
const TAG_FILES = 2
/** Looked at before a digest counts as nobody's that was wanted: thousands of repositories share a base layer. */
const HOLDERS_MAX = 1_000
/** Two digits: blobs share these. */
const SHARDS = 256

export interface InventoryDeps {
  readonly clock: Clock
  readonly logger: Logger
  readonly index: ContentIndex
  readonly retention: Retention
}

export class Inventory {
  readonly #deps: InventoryDeps
  readonly #costs: FileCosts
  #notes = emptyNotes()
  /** Taken for writing, not written yet. */
  #writing = emptyNotes()
  /** What was stored when that began: it is being added to, bit by bit. Undefined: nothing is being written. */
  #beforeWritingBytes: number | undefined
  #flushing: Promise<void> | undefined
  #isComplete = false
  readonly #counted = new Latch()
  /** Called when notes should be written soon: there are many, or something new is on disk. */
  onUrgent: () => void = () => undefined

  constructor(deps: InventoryDeps, costs: FileCosts) {
    this.#deps = deps
    this.#costs = costs
  }

  /** Whether everything on disk is known: then what is not known is not there. */
  get isComplete(): boolean {
    return this.#isComplete
  }

  setComplete(isComplete: boolean): void {
    this.#isComplete = isComplete
    if (isComplete) this.setCounted()
  }

  /** Whether everything on disk was known once: `usedBytes` lacks no more than a crash has kept from the index. */
  get isCounted(): boolean {
    return this.#counted.isOpen
  }

  setCounted(): void {
    this.#counted.open()
  }

  whenCounted(): Promise<void> {
    return this.#counted.opened
  }

  /** What all content takes on disk, its links and directories included. Never less than it really is. */
  get usedBytes(): number {
    const writtenBytes = this.#writtenBytes
    // Some of what is being written is written already: it counts once.
    const whenWrittenBytes = (this.#beforeWritingBytes ?? 0) + this.#writing.bytes
    return Math.max(writtenBytes, whenWrittenBytes) + this.#notes.bytes
  }

  get #writtenBytes(): number {
    const { allocatedBytes, blobs, directories, links, tags } = this.#deps.index.totals
    const allDirectories = blobs + Math.min(blobs, SHARDS) + directories
    return (
      allocatedBytes +
      allDirectories * this.#costs.directoryBytes +
      links * this.#linkBytes +
      tags * this.tagBytes
    )
  }

  /** What a file will take, with its directory. @param repository with the link of this one */
  costOf(sizeBytes: number, repository?: RepositoryName): number {
    // Its own directory, and one that it may be the first in.
    const directoryBytes = 2 * this.#costs.directoryBytes
    const linkBytes = repository === undefined ? 0 : this.costOfLink(repository)
    return this.#inBlocks(sizeBytes) + directoryBytes + linkBytes
  }

  /** What a link will take, with the directories of a repository that has nothing yet. */
  costOfLink(repository: RepositoryName): number {
    const isFirst = !this.#deps.index.hasRepository(repository)
    const directories = isFirst ? directoriesOf(repository) : 0
    return this.#linkBytes + directories * this.#costs.directoryBytes
  }

  /** What a tag will take, or a tag's new digest. */
  get tagBytes(): number {
    return TAG_DIRECTORIES * this.#costs.directoryBytes + TAG_FILES * this.#costs.blockBytes
  }

  /** What removing stored content frees: its file, its links and the tags that point to it. */
  freedBy({ allocatedBytes, digest }: BlobEntry): number {
    let bytes = allocatedBytes + this.#costs.directoryBytes
    for (const link of this.#deps.index.linksOf(digest)) bytes += this.freedByLink(link)
    return bytes
  }

  /** What removing a link frees, with the tags that point to its digest. */
  freedByLink({ digest, kind, repository }: Link): number {
    const tags = kind === 'manifest' ? this.#deps.index.tagsOf(digest, repository).length : 0
    return this.#linkBytes + tags * this.tagBytes
  }

  /** Whether a digest is surely not stored: no need to look. */
  isAbsent(digest: Digest): boolean {
    const { index } = this.#deps
    if (!this.#isComplete || !index.isOpen || index.mayLack) return false
    return !this.#isNoted(digest) && !index.has(digest)
  }

  /** The bytes are on disk. @param allocatedBytes what the file takes; undefined: as many as its size needs */
  addStored(
    digest: Digest,
    sizeBytes: number,
    options: { isManifest: boolean; allocatedBytes?: number | undefined },
  ): void {
    const { isManifest } = options
    const allocatedBytes = options.allocatedBytes ?? this.#inBlocks(sizeBytes)
    if (!this.#notes.stored.has(digest)) {
      this.#notes.bytes += this.costOf(allocatedBytes)
    }
    const atMs = this.#deps.clock.now()
    this.#notes.stored.set(digest, { change: 'store', digest, allocatedBytes, isManifest, atMs })
    this.onUrgent()
  }

  /** A manifest was read: what it names goes along with it, and it goes along with its subject. */
  addNames(digest: Digest, { blobs, manifests, subject }: ManifestContent): void {
    const names = [...blobs, ...manifests].map((descriptor) => descriptor.digest)
    const children = manifests.map((descriptor) => descriptor.digest)
    if (names.length > 0) this.#addNames(digest, names, children)
    if (subject) this.#addNames(subject, [digest], [digest])
  }

  /** A signature, an attestation, … that is tagged after what it belongs to. */
  addCompanion(subject: Digest, companion: Digest): void {
    this.#addNames(subject, [companion], [companion])
  }

  /** Something new is kept. The line is the one that operators of registry:2 look for. */
  addLink(link: Link): void {
    this.touch(link)
    const { digest, repository } = link
    this.#notes.bytes += this.costOfLink(repository)
    const ttl = this.#deps.retention.ttlTextOf(repository)
    if (ttl === undefined) return
    this.#deps.logger.info(`Adding new scheduler entry for ${repository}@${digest} with ttl=${ttl}`)
  }

  /** A tag points to stored content, and its files are written. */
  addTag(repository: RepositoryName, tag: Tag, digest: Digest): void {
    const key = keyOf(digest, repository)
    const tags = this.#notes.tags.get(key) ?? new Map<Tag, TagChange>()
    tags.set(tag, { change: 'tag', digest, repository, tag })
    this.#notes.tags.set(key, tags)
    this.#notes.bytes += this.tagBytes
    this.onUrgent()
  }

  /** The files are gone that said that a tag points, or once pointed, to a digest. */
  addUntagged(repository: RepositoryName, tag: Tag, digest: Digest): void {
    const key = keyOf(digest, repository)
    this.#notes.tags.get(key)?.delete(tag)
    this.#notes.untagged.set(`${key}:${tag}`, { change: 'untag', digest, repository, tag })
  }

  /** Something was used. */
  touch(link: Link): void {
    const { used, uses } = this.#notes
    const key = keyOf(link.digest, link.repository)
    const atMs = this.#deps.clock.now()
    const noted = uses.get(key)
    if (noted?.link.kind === link.kind) {
      noted.atMs = atMs
      return
    }
    if (uses.size >= NOTES_MAX) this.onUrgent()
    // The index cannot be written for a long time: what is forgotten counts as less recently used, that is all.
    if (uses.size >= 2 * NOTES_MAX && !noted) return
    uses.set(key, { link, atMs })
    used.add(link.digest)
  }

  /** Its last use counts no longer. */
  forgetUse({ digest, repository }: Pick<Link, 'digest' | 'repository'>): void {
    this.#notes.uses.delete(keyOf(digest, repository))
  }

  /** A link is gone, and its tags. Uses that are noted already came after it had begun to go. */
  addUnlinked({ digest, repository }: Pick<Link, 'digest' | 'repository'>): void {
    const key = keyOf(digest, repository)
    this.#notes.tags.delete(key)
    this.#notes.unlinked.set(key, { change: 'unlink', digest, repository })
  }

  /** The bytes are gone, and every link to them. */
  addRemoved(digest: Digest): void {
    this.#notes.stored.delete(digest)
    this.#notes.removed.add(digest)
  }

  /** Whether something was stored, or used by any repository, that the index does not know of yet. */
  hasNoteOf(digest: Digest): boolean {
    return [this.#notes, this.#writing].some(
      ({ stored, used }) => stored.has(digest) || used.has(digest),
    )
  }

  /**
   * Whether one of the repositories that hold a digest is wanted. Of these some may not be known, while the volume is
   * looked through, or when there are very many: then it is false, too.
   */
  isHeldBy(digest: Digest, isWanted: (repository: RepositoryName) => boolean): boolean {
    let looked = 0
    for (const { repository } of this.#deps.index.eachLinkOf(digest)) {
      if (isWanted(repository)) return true
      if (++looked >= HOLDERS_MAX) break
    }
    return [this.#notes, this.#writing].some((notes) => isUsedBy(notes, digest, isWanted))
  }

  /**
   * Writes the notes down.
   *
   * @throws {StorageError} they stand, and are written the next time
   */
  async flush(): Promise<void> {
    // Whether that one succeeds is told to whoever began it.
    while (this.#flushing) await this.#flushing.catch(() => undefined)
    this.#flushing = this.#write().finally(() => {
      this.#flushing = undefined
    })
    await this.#flushing
  }

  async #write(): Promise<void> {
    if (isEmpty(this.#notes)) return
    const notes = this.#notes
    this.#writing = notes
    this.#beforeWritingBytes = this.#writtenBytes
    this.#notes = emptyNotes()
    try {
      await this.#deps.index.write(changesOf(notes))
    } catch (error) {
      this.#notes = inSequence(notes, this.#notes)
      throw error
    } finally {
      this.#writing = emptyNotes()
      this.#beforeWritingBytes = undefined
    }
  }

  /** A link is a directory with a file. */
  get #linkBytes(): number {
    return this.#costs.directoryBytes + this.#costs.blockBytes
  }

  #inBlocks(sizeBytes: number): number {
    const { blockBytes } = this.#costs
    return Math.ceil(sizeBytes / blockBytes) * blockBytes
  }

  #addNames(digest: Digest, names: readonly Digest[], manifests: readonly Digest[]): void {
    // As for uses; each time that the manifest is read it is noted again.
    if (this.#notes.names.size >= NOTES_MAX) return
    const note = this.#notes.names.get(digest) ?? { names: new Set(), manifests: new Set() }
    for (const name of names) note.names.add(name)
    for (const name of manifests) note.manifests.add(name)
    this.#notes.names.set(digest, note)
  }

  #isNoted(digest: Digest): boolean {
    return this.#notes.stored.has(digest) || this.#writing.stored.has(digest)
  }
}

/** Opened once. */
class Latch {
  isOpen = false
  readonly opened: Promise<void>
  #resolve: () => void = () => undefined

  constructor() {
    this.opened = new Promise((resolve) => {
      this.#resolve = resolve
    })
  }

  open(): void {
    this.isOpen = true
    this.#resolve()
  }
}
