// What a selection means on this volume: which repositories, which of their links, which images.

import type { Digest } from '../../oci/digest.ts'
import type { RepositoryName, Tag } from '../../oci/reference.ts'
import type { BlobStore } from '../../storage/blob-store.ts'
import { StorageError } from '../../storage/filesystem.ts'
import type { ContentIndex, LinkEntry } from '../../storage/index/content-index.ts'
import type { Link, RepositoryIndex } from '../../storage/repository-index.ts'
import type { Inventory } from '../inventory.ts'
import type { Retention } from '../retention.ts'
import { imageParts, type ImageParts } from './image-parts.ts'
import { PinnedContent } from './pinned-content.ts'
import type { PurgeRoot, PurgeSelection } from './purge-selection.ts'
import { RepositoryTags } from './repository-tags.ts'

export interface PurgeScopeDeps {
  readonly blobs: BlobStore
  readonly repositories: RepositoryIndex
  readonly index: ContentIndex
  readonly inventory: Inventory
  readonly retention: Retention
}

/** Of one repository. */
export interface ChosenImages {
  /** Those that are chosen, and stay. */
  readonly pinned: readonly Digest[]
  readonly parts: ImageParts
  readonly tags: RepositoryTags
}

export class PurgeScope {
  readonly #deps: PurgeScopeDeps
  readonly #selection: PurgeSelection
  #pinned: PinnedContent

  constructor(deps: PurgeScopeDeps, selection: PurgeSelection) {
    this.#deps = deps
    this.#selection = selection
    this.#pinned = new PinnedContent(deps)
  }

  /** Those that are pinned included. */
  async *repositories(): AsyncGenerator<RepositoryName> {
    const { repository } = this.#selection
    if (repository) {
      if (this.#selection.matchesRepository(repository)) yield repository
      return
    }
    for await (const name of this.#deps.repositories.repositories()) {
      if (this.#selection.matchesRepository(name)) yield name
    }
  }

  /** Whether everything of a repository stays. */
  isPinnedWhole(repository: RepositoryName): boolean {
    return !this.#selection.includesPinned && this.#deps.retention.isPinned(repository)
  }

  async isPinned({ digest, repository }: LinkEntry): Promise<boolean> {
    return !this.#selection.includesPinned && this.#pinned.has(repository, digest)
  }

  /**
   * Puts into the index what happened in the last seconds. A disk that is full is a reason to purge.
   *
   * @returns false: what cannot be written down yet counts as in use
   */
  async writeNotes(): Promise<boolean> {
    try {
      await this.#deps.inventory.flush()
      return true
    } catch (error) {
      if (error instanceof StorageError) return false
      throw error
    } finally {
      // Tags may have come that pin something.
      this.#pinned = new PinnedContent(this.#deps)
    }
  }

  isOldEnough({ lastUsedMs }: { readonly lastUsedMs: number }): boolean {
    const { usedBeforeMs } = this.#selection
    return usedBeforeMs === undefined || lastUsedMs <= usedBeforeMs
  }

  /**
   * What there is to decide about a link. Content that was asked for as a manifest and as a blob has two links on
   * disk, which go together: one of them stands for both.
   */
  async entryOf(link: Link): Promise<LinkEntry | undefined> {
    const { blobs, index, inventory, repositories } = this.#deps
    // Gone with another one meanwhile.
    if (!(await repositories.has(link))) return undefined
    const entry = index.link(link.digest, link.repository)
    if (entry) {
      const isOther = entry.kind !== link.kind
      return isOther && (await repositories.has({ ...link, kind: entry.kind })) ? undefined : entry
    }
    // The link was written a moment ago; else it leads to nothing.
    const isNew = inventory.hasNoteOf(link.digest) || (await blobs.stat(link.digest))
    return isNew ? undefined : { ...link, lastUsedMs: 0 }
  }

  /** Whether every repository that holds it is to lose it, at the moment that this is answered. */
  async goesEverywhere(digest: Digest): Promise<boolean> {
    const { index } = this.#deps
    const looked = new Set<RepositoryName>()
    for (;;) {
      if (!index.has(digest)) return false
      const holders = index.linksOf(digest)
      for (const holder of holders) {
        if (!this.#selection.matchesRepository(holder.repository)) return false
        if (!this.isOldEnough(holder)) return false
      }
      // Tags are read from disk, for the pins: another repository may come to hold it meanwhile.
      const others = holders.filter(({ repository }) => !looked.has(repository))
      if (others.length === 0) return true
      for (const holder of others) {
        if (await this.isPinned(holder)) return false
        looked.add(holder.repository)
      }
    }
  }

  /** Whether another repository holds it on disk: the index may still have links that are gone. */
  async isHeldElsewhere(digest: Digest, repository: RepositoryName | undefined): Promise<boolean> {
    const { index, repositories } = this.#deps
    const looked = new Set([repository])
    for (;;) {
      const others = index.linksOf(digest).filter((link) => !looked.has(link.repository))
      if (others.length === 0) return false
      for (const link of others) {
        if (await repositories.has(link)) return true
        looked.add(link.repository)
      }
    }
  }

  firstHolderOf(digest: Digest): RepositoryName | undefined {
    for (const { repository } of this.#deps.index.eachLinkOf(digest)) return repository
    return undefined
  }

  /** One image, or those that have certain tags, with their parts. */
  async imagesOf(repository: RepositoryName, root: PurgeRoot): Promise<ChosenImages> {
    const { index, repositories } = this.#deps
    const tags = await RepositoryTags.read(repositories, repository)
    const chosen = new Set<Tag>()
    const roots = new Set<Digest>()
    const isMeant = (digest: Digest): boolean => {
      const link = index.link(digest, repository)
      return !link || this.isOldEnough(link)
    }
    if (root.kind === 'digest') {
      // What another repository has is not this one's to lose.
      const isHere = index.link(root.digest, repository) || tags.of(root.digest).length > 0
      if (isHere && isMeant(root.digest)) roots.add(root.digest)
    }
    const wanted = root.kind === 'digest' ? tags.of(root.digest) : tags.all.filter(root.matches)
    for (const tag of wanted) {
      const digest = tags.digestOf(tag)
      if (!digest || !isMeant(digest)) continue
      chosen.add(tag)
      roots.add(digest)
    }
    const pinned: Digest[] = []
    for (const digest of roots) {
      if (this.#selection.includesPinned || !(await this.#pinned.has(repository, digest))) continue
      // Another tag of the same image may be the one that is pinned.
      roots.delete(digest)
      for (const tag of tags.of(digest)) chosen.delete(tag)
      pinned.push(digest)
    }
    const isByDigest = root.kind === 'digest'
    const options = { repository, isByDigest, roots: [...roots], chosen, tags }
    return { pinned, parts: await imageParts(this.#deps, options), tags }
  }
}
