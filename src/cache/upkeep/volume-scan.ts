// Looks through the whole volume and tells the index what is there: after a crash, when the index was lost, and when
// the volume of another registry is taken over. Runs beside the serving. What it finds broken is put right or set
// aside, and told in one summary.

import type { Logger } from 'pino'
import type { Clock } from '../../clock.ts'
import type { Digest } from '../../oci/digest.ts'
import {
  MANIFEST_SIZE_MAX_BYTES,
  readManifest,
  type Descriptor,
  type ManifestContent,
} from '../../oci/manifest.ts'
import { subjectOfTag, type RepositoryName, type Tag } from '../../oci/reference.ts'
import type { BlobStore, Shard } from '../../storage/blob-store.ts'
import { modifiedAtMs, removeTree } from '../../storage/filesystem.ts'
import type { BlobEntry, ContentIndex } from '../../storage/index/content-index.ts'
import type { IndexChange } from '../../storage/index/index-changes.ts'
import { readSchedulerState, type ExpiryTimes } from '../../storage/index/scheduler-state.ts'
import type { StoragePaths } from '../../storage/paths.ts'
import type { Link, RepositoryIndex } from '../../storage/repository-index.ts'
import type { Inventory } from '../inventory.ts'
import type { Retention } from '../retention.ts'

const BATCH_CHANGES = 500
/** Of which the uses are assumed together; more, if one repository has more. */
const LINKS_AT_ONCE = 300
/** Blobs looked at side by side: a network file system answers each late. */
const STATS_AT_ONCE = 16
/** What is beyond stays for the ttl, or until the next crash: there is no crash in which so many downloads end at once. */
const ORPHANS_MAX = 10_000

export interface VolumeScanDeps {
  readonly clock: Clock
  readonly logger: Logger
  readonly paths: StoragePaths
  readonly blobs: BlobStore
  readonly repositories: RepositoryIndex
  readonly index: ContentIndex
  readonly inventory: Inventory
  readonly retention: Retention
}

/** What there was to tell. */
const NOTHING = {
  blobs: 0,
  bytes: 0,
  links: 0,
  repositories: 0,
  emptyBlobs: 0,
  danglingLinks: 0,
  danglingTags: 0,
  incompleteImages: 0,
  incompleteIndexes: 0,
  damagedBlobs: 0,
  removedUploads: 0,
  vanishedBlobs: 0,
}

export class VolumeScan {
  readonly #deps: VolumeScanDeps
  #isStopped = false
  #report = { ...NOTHING }
  #batch: IndexChange[] = []
  /** Whether the whole tree was seen before: then what lacks a link is not what another registry has left. */
  #isOurs = false
  /** Links without a use in the index. */
  #unused: Link[] = []
  #orphans: Digest[] = []

  constructor(deps: VolumeScanDeps) {
    this.#deps = deps
  }

  /** Bytes that the last run has found without a link, as only a crash leaves them. */
  get orphans(): readonly Digest[] {
    return this.#orphans
  }

  /** Ends a run at its next step. */
  stop(): void {
    this.#isStopped = true
  }

  /**
   * @param uploadMaxAgeMs unfinished uploads that are older are removed; 0 keeps them
   * @returns false when it was stopped before the end
   * @throws {StorageError}
   */
  async run(uploadMaxAgeMs: number): Promise<boolean> {
    const { blobs, index, paths, repositories } = this.#deps
    this.#report = { ...NOTHING }
    this.#batch = []
    this.#isOurs = index.hasSeenAll
    this.#orphans = []
    this.#unused = []
    for await (const shard of blobs.shards()) {
      if (this.#isStopped) return false
      await this.#lookAtShard(shard)
    }
    const expiryTimes = await readSchedulerState(paths)
    for await (const repository of repositories.repositories()) {
      this.#report.repositories++
      await this.#removeUploads(repository, uploadMaxAgeMs)
      for await (const link of repositories.linksOf(repository)) {
        if (this.#isStopped) return false
        await this.#lookAtLink(link)
      }
      await this.#lookAtTags(repository)
      if (this.#unused.length >= LINKS_AT_ONCE) await this.#assumeUses(expiryTimes)
      await this.#deps.index.letGo()
    }
    await this.#assumeUses(expiryTimes)
    if (this.#isOurs) await this.#findOrphans()
    if (this.#isStopped) return false
    this.#tell()
    return true
  }

  /** Adds what is not in the index, and takes out of it what is not there. */
  async #lookAtShard(shard: Shard): Promise<void> {
    const known = new Map<Digest, BlobEntry>()
    for await (const entry of this.#deps.index.blobs(shard)) known.set(entry.digest, entry)
    // In the order of the index: so it grows page by page.
    const digests = [...new Set([...shard.digests, ...known.keys()])].sort()
    for (let start = 0; start < digests.length; start += STATS_AT_ONCE) {
      if (this.#isStopped) return
      const some = digests.slice(start, start + STATS_AT_ONCE)
      await Promise.all(some.map((digest) => this.#lookAtBlob(digest, known.get(digest))))
    }
    await this.#write()
  }

  async #lookAtBlob(digest: Digest, known: BlobEntry | undefined): Promise<void> {
    const info = await this.#deps.blobs.stat(digest)
    if (!info) {
      await this.#lookAtNothing(digest, known)
      return
    }
    const { allocatedBytes } = info
    this.#report.blobs++
    this.#report.bytes += allocatedBytes
    if (known?.allocatedBytes === allocatedBytes) return
    const atMs = known?.lastUsedMs ?? this.#deps.retention.oldestAssumedUseMs
    const found = { change: 'store', digest, allocatedBytes, isManifest: false, atMs } as const
    await this.#add(known || this.#isOurs ? found : { ...found, mayLackLink: true })
  }

  /** Also those that were known: the process may have ended again before an earlier scan's had gone. */
  async #findOrphans(): Promise<void> {
    const { index, inventory } = this.#deps
    for await (const { digest, mayLackLink } of index.blobs()) {
      if (this.#isStopped || this.#orphans.length >= ORPHANS_MAX) return
      // What has just come gets its link in a moment.
      if (mayLackLink || inventory.hasNoteOf(digest) || index.linksOf(digest).length > 0) continue
      this.#orphans.push(digest)
    }
  }

  async #lookAtNothing(digest: Digest, known: BlobEntry | undefined): Promise<void> {
    const { blobs, index, inventory } = this.#deps
    if (known) {
      // It may have come, and been written down, since we looked.
      const isSame = index.blob(digest)?.lastUsedMs === known.lastUsedMs
      if (!isSame || inventory.hasNoteOf(digest)) return
      this.#report.vanishedBlobs++
      await index.write([{ change: 'remove', digest }])
    } else {
      // A directory without a file: what a crash of registry:2 leaves.
      this.#report.emptyBlobs++
    }
    await blobs.prune(digest)
  }

  async #lookAtLink(link: Link): Promise<void> {
    const { index } = this.#deps
    const { digest, kind, repository } = link
    this.#report.links++
    const blob = index.blob(digest)
    if (!blob) {
      // Served as a miss, and fetched again: nothing to put right.
      if (await this.#isDangling(link)) this.#report.danglingLinks++
      return
    }
    // A crash may have come between the manifest and what it names.
    const isKnown = blob.isManifest && index.namesOf(digest).length > 0
    if (kind === 'manifest' && !isKnown) await this.#readManifest(digest)
    if (!index.link(digest, repository)) this.#unused.push(link)
  }

  /** Not so: what has just come, and what has just gone, bytes and link. */
  async #isDangling(link: Link): Promise<boolean> {
    const { blobs, inventory, repositories } = this.#deps
    if (inventory.hasNoteOf(link.digest) || (await blobs.stat(link.digest))) return false
    return repositories.has(link)
  }

  /** When links were last used that the index knows nothing of. The parts of an image were when it was: it goes whole. */
  async #assumeUses(expiryTimes: ExpiryTimes): Promise<void> {
    const { index, retention } = this.#deps
    const links = this.#unused
    this.#unused = []
    // What names what is known now.
    await this.#write()
    const isPart = ({ digest }: Link): boolean => (index.blob(digest)?.namedBy ?? 0) > 0
    for (const link of links.filter((each) => !isPart(each))) {
      const { digest, repository } = link
      const expiresAtMs = expiryTimes.get(`${repository}@${digest}`)
      const atMs = retention.assumedLastUseMs(digest, repository, expiresAtMs)
      await this.#add({ change: 'use', link, atMs })
    }
    await this.#write()
    for (const link of links.filter(isPart)) {
      const atMs = index.blob(link.digest)?.lastUsedMs
      if (atMs !== undefined) await this.#add({ change: 'use', link, atMs })
    }
    await this.#write()
  }

  /** Learns what belongs together, and finds blobs that were cut short. */
  async #readManifest(digest: Digest): Promise<void> {
    const { blobs, index } = this.#deps
    const bytes = await blobs.readWhole(digest, MANIFEST_SIZE_MAX_BYTES)
    // What does not match is no longer there; what is too large for a manifest is.
    if (!bytes && !(await blobs.stat(digest))) await this.#noteDamaged()
    const content = contentOf(bytes)
    if (!content) return
    const { allocatedBytes, lastUsedMs } = index.blob(digest) ?? {
      allocatedBytes: 0,
      lastUsedMs: 0,
    }
    await this.#add({ change: 'store', digest, allocatedBytes, isManifest: true, atMs: lastUsedMs })
    const children = content.manifests.map((child) => child.digest)
    const names = [...content.blobs.map((blob) => blob.digest), ...children]
    await this.#add({ change: 'name', digest, names, manifests: children })
    const { subject } = content
    if (subject) {
      await this.#add({ change: 'name', digest: subject, names: [digest], manifests: [digest] })
    }
    let isComplete = true
    for (const blob of content.blobs) isComplete = (await this.#isWhole(blob)) && isComplete
    if (!isComplete) this.#report.incompleteImages++
    if (!children.every((child) => index.has(child))) this.#report.incompleteIndexes++
  }

  /** A blob of another length than a manifest says is hashed: the bytes decide. */
  async #isWhole({ digest, sizeBytes }: Descriptor): Promise<boolean> {
    const { blobs } = this.#deps
    const info = await blobs.stat(digest)
    if (!info) return false
    if (info.sizeBytes === sizeBytes || (await blobs.verify(digest, info))) return true
    await this.#noteDamaged()
    return false
  }

  /** Written down at once: tags that point to it count as dangling. */
  async #noteDamaged(): Promise<void> {
    this.#report.damagedBlobs++
    await this.#write()
    await this.#deps.inventory.flush()
  }

  async #lookAtTags(repository: RepositoryName): Promise<void> {
    const { index, repositories } = this.#deps
    for (const tag of await repositories.listTags(repository)) {
      const digest = await repositories.readTag(repository, tag)
      for (const each of await repositories.readTagHistory(repository, tag)) {
        await this.#add({ change: 'tag', digest: each, repository, tag })
      }
      // Kept: the upstream is asked, and tells what the tag is now.
      if (!digest || !index.has(digest)) this.#report.danglingTags++
      else await this.#noteCompanion(tag, digest)
    }
  }

  /** Signatures and the like belong to what their tag names. */
  async #noteCompanion(tag: Tag, digest: Digest): Promise<void> {
    const subject = subjectOfTag(tag)
    if (!subject) return
    await this.#add({ change: 'name', digest: subject, names: [digest], manifests: [digest] })
  }

  async #removeUploads(repository: RepositoryName, maxAgeMs: number): Promise<void> {
    if (maxAgeMs <= 0) return
    const { clock, repositories } = this.#deps
    for await (const upload of repositories.uploads(repository)) {
      const atMs = await modifiedAtMs(upload)
      if (atMs === undefined || clock.now() - atMs < maxAgeMs) continue
      await removeTree(upload)
      this.#report.removedUploads++
    }
  }

  async #add(change: IndexChange): Promise<void> {
    if (this.#batch.push(change) >= BATCH_CHANGES) await this.#write()
  }

  async #write(): Promise<void> {
    const batch = this.#batch
    this.#batch = []
    await this.#deps.index.write(batch)
  }

  #tell(): void {
    const report = this.#report
    const { blobs, bytes, links, repositories } = report
    const gib = (bytes / 1024 ** 3).toFixed(1)
    const oddities = [
      [report.damagedBlobs, 'damaged blobs set aside'],
      [report.incompleteImages, 'images without all of their layers'],
      [report.incompleteIndexes, 'indexes without all of their platforms'],
      [report.danglingTags, 'tags without a manifest'],
      [report.danglingLinks, 'links without bytes'],
      [report.emptyBlobs, 'empty blob directories removed'],
      [report.vanishedBlobs, 'blobs that had vanished'],
      [report.removedUploads, 'unfinished uploads removed'],
    ] as const
    const told = oddities.flatMap(([count, what]) => (count > 0 ? `${count} ${what}` : []))
    const rest =
      told.length > 0 ? `; ${told.join(', ')}: all of it is fetched again when asked for` : ''
    this.#deps.logger.info(
      { ...report },
      `found ${blobs} blobs (${gib} GiB) and ${links} links in ${repositories} repositories in the volume${rest}`,
    )
  }
}

function contentOf(bytes: Buffer | undefined): ManifestContent | undefined {
  try {
    return bytes && readManifest(bytes)
  } catch {
    // Schema 1, or no manifest at all: it names nothing that we know of.
    return undefined
  }
}
