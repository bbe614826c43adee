// One walk over what was selected, for real or dry. One repository after the other, so that memory holds the tags
// and pins of one, whatever the volume has. What links say is read from disk, what belongs together from the index.

import type { Digest } from '../oci/digest.ts'
import type { RepositoryName, Tag } from '../oci/reference.ts'
import type { BlobStore } from '../storage/blob-store.ts'
import type { ContentIndex, LinkEntry } from '../storage/content-index.ts'
import { StorageError } from '../storage/filesystem.ts'
import type { Link, RepositoryIndex } from '../storage/repository-index.ts'
import { imageParts } from './image-parts.ts'
import type { Inventory } from './inventory.ts'
import { PinnedContent } from './pinned-content.ts'
import type { PurgeRoot, PurgeSelection } from './purge-selection.ts'
import type { Remover } from './remover.ts'
import { RepositoryTags } from './repository-tags.ts'
import type { Retention } from './retention.ts'

/** What became, or in a dry run would become, of one thing. */
export interface PurgeItem {
  /** `unlinked`: another repository holds the bytes too. The last two: it stays. */
  readonly outcome: 'removed' | 'unlinked' | 'untagged' | 'in-use' | 'pinned'
  readonly kind: 'manifest' | 'blob' | 'tag' | 'repository'
  /** Undefined: of bytes that no repository holds. */
  readonly repository: RepositoryName | undefined
  /** Undefined: all of the repository. */
  readonly digest: Digest | undefined
  readonly tags: readonly Tag[]
  /** On disk. */
  readonly freedBytes: number
}

export interface PurgeSummary {
  readonly isDryRun: boolean
  /** Manifests and blobs whose bytes went. */
  readonly removed: number
  readonly freedBytes: number
  readonly unlinked: number
  readonly untagged: number
  readonly inUse: number
  readonly pinned: number
}

export interface PurgeRunDeps {
  readonly blobs: BlobStore
  readonly repositories: RepositoryIndex
  readonly index: ContentIndex
  readonly inventory: Inventory
  readonly retention: Retention
  readonly remover: Remover
}

type Draft = Omit<PurgeItem, 'outcome' | 'freedBytes'> & { readonly digest: Digest }

export class PurgeRun {
  readonly #deps: PurgeRunDeps
  readonly #selection: PurgeSelection
  readonly #isDryRun: boolean
  readonly #remover: Remover
  readonly #pinned: PinnedContent
  readonly #sums = { removed: 0, freedBytes: 0, unlinked: 0, untagged: 0, inUse: 0, pinned: 0 }

  constructor(deps: PurgeRunDeps, selection: PurgeSelection, { isDryRun }: { isDryRun: boolean }) {
    this.#deps = deps
    this.#selection = selection
    this.#isDryRun = isDryRun
    this.#remover = deps.remover.batch()
    this.#pinned = new PinnedContent(deps)
  }

  get summary(): PurgeSummary {
    return { isDryRun: this.#isDryRun, ...this.#sums }
  }

  /** @throws {StorageError} */
  async *items(): AsyncGenerator<PurgeItem> {
    // Links, uses and names of the last seconds.
    await this.#flush()
    for await (const item of this.#walk()) {
      this.#count(item)
      yield item
    }
  }

  async *#walk(): AsyncGenerator<PurgeItem> {
    const { includesPinned, includesUnlinked, root } = this.#selection
    for await (const repository of this.#chosenRepositories()) {
      if (!includesPinned && this.#deps.retention.isPinned(repository)) {
        const item = { kind: 'repository', repository, digest: undefined, tags: [] } as const
        yield { ...item, outcome: 'pinned', freedBytes: 0 }
      } else if (root) yield* this.#images(repository, root)
      else yield* this.#content(repository)
    }
    if (includesUnlinked) yield* this.#unlinked()
  }

  async *#chosenRepositories(): AsyncGenerator<RepositoryName> {
    const { repository } = this.#selection
    if (repository) {
      if (this.#selection.matchesRepository(repository)) yield repository
      return
    }
    for await (const name of this.#deps.repositories.repositories()) {
      if (this.#selection.matchesRepository(name)) yield name
    }
  }

  /** All of a repository, or what of it was not used. */
  async *#content(repository: RepositoryName): AsyncGenerator<PurgeItem> {
    const { repositories } = this.#deps
    const tags = await RepositoryTags.read(repositories, repository)
    const isAll = this.#selection.usedBeforeMs === undefined
    for await (const link of repositories.linksOf(repository)) {
      const entry = await this.#entryOf(link)
      if (!entry || !this.#isOldEnough(entry)) continue
      const draft = { ...link, tags: tags.of(link.digest) }
      if (await this.#isPinned(entry)) yield { ...draft, outcome: 'pinned', freedBytes: 0 }
      else if (!(await this.#goesEverywhere(entry))) yield await this.#unlink(draft)
      // In the real run the first repository takes it along for all of them.
      else if (!this.#isDryRun || this.#firstHolder(entry) === repository) {
        yield await this.#remove(draft)
      }
    }
    if (isAll) yield* this.#danglingTags(repository, tags)
  }

  /** One image, or those that have certain tags. */
  async *#images(repository: RepositoryName, root: PurgeRoot): AsyncGenerator<PurgeItem> {
    const { index, repositories } = this.#deps
    const tags = await RepositoryTags.read(repositories, repository)
    const chosen = new Set<Tag>()
    const roots = new Set<Digest>()
    const isMeant = (digest: Digest): boolean => {
      const link = index.link(digest, repository)
      return !link || this.#isOldEnough(link)
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
    for (const digest of roots) {
      if (this.#selection.includesPinned || !(await this.#pinned.has(repository, digest))) continue
      // Another tag of the same image may be the one that is pinned.
      roots.delete(digest)
      for (const tag of tags.of(digest)) chosen.delete(tag)
      const kept = { kind: 'manifest', repository, digest, tags: tags.of(digest) } as const
      yield { ...kept, outcome: 'pinned', freedBytes: 0 }
    }
    yield* this.#parts(repository, { root, roots: [...roots], chosen, tags })
  }

  async *#parts(
    repository: RepositoryName,
    images: { root: PurgeRoot; roots: Digest[]; chosen: ReadonlySet<Tag>; tags: RepositoryTags },
  ): AsyncGenerator<PurgeItem> {
    const { index } = this.#deps
    const { tags } = images
    const isByDigest = images.root.kind === 'digest'
    const parts = await imageParts(this.#deps, { repository, isByDigest, ...images })
    for (const tag of parts.tags) {
      const digest = tags.digestOf(tag)
      if (digest && !parts.links.has(digest)) yield await this.#untag(repository, tag, digest)
    }
    /** Parts of what stays since somebody uses it. */
    const kept = new Set<Digest>()
    for (const [digest, kind] of parts.links) {
      if (kept.has(digest)) {
        for (const part of index.namesOf(digest)) kept.add(part)
        continue
      }
      const isShared = index.linksOf(digest).some((link) => link.repository !== repository)
      const names = index.namesOf(digest)
      const draft = { repository, digest, kind, tags: tags.of(digest) }
      const item = await (isShared ? this.#unlink(draft) : this.#remove(draft))
      if (item.outcome === 'in-use') for (const part of names) kept.add(part)
      yield item
    }
  }

  /** Bytes that no repository holds. */
  async *#unlinked(): AsyncGenerator<PurgeItem> {
    const { index } = this.#deps
    for await (const entry of index.blobsAfter(undefined)) {
      if (!this.#isOldEnough(entry) || index.linksOf(entry.digest).length > 0) continue
      const kind = entry.isManifest ? 'manifest' : 'blob'
      yield await this.#remove({ kind, repository: undefined, digest: entry.digest, tags: [] })
    }
  }

  /** Tags that point to what is not here. */
  async *#danglingTags(
    repository: RepositoryName,
    tags: RepositoryTags,
  ): AsyncGenerator<PurgeItem> {
    const { repositories } = this.#deps
    for (const tag of tags.all) {
      const digest = await repositories.readTag(repository, tag)
      if (!digest || (await repositories.has({ repository, digest, kind: 'manifest' }))) continue
      yield await this.#untag(repository, tag, digest)
    }
  }

  /**
   * What there is to decide about a link. Content that was asked for as a manifest and as a blob has two links on
   * disk, which go together: one of them stands for both.
   */
  async #entryOf(link: Link): Promise<LinkEntry | undefined> {
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

  /** Whether every repository that holds it is to lose it. */
  async #goesEverywhere({ digest, repository }: LinkEntry): Promise<boolean> {
    const { index } = this.#deps
    if (!index.has(digest)) return false
    for (const holder of index.linksOf(digest)) {
      if (holder.repository === repository) continue
      if (!this.#selection.matchesRepository(holder.repository)) return false
      if (!this.#isOldEnough(holder) || (await this.#isPinned(holder))) return false
    }
    return true
  }

  #firstHolder({ digest }: LinkEntry): RepositoryName | undefined {
    return this.#deps.index.linksOf(digest)[0]?.repository
  }

  #isOldEnough({ lastUsedMs }: { readonly lastUsedMs: number }): boolean {
    const { usedBeforeMs } = this.#selection
    return usedBeforeMs === undefined || lastUsedMs <= usedBeforeMs
  }

  async #isPinned({ digest, repository }: LinkEntry): Promise<boolean> {
    return !this.#selection.includesPinned && this.#pinned.has(repository, digest)
  }

  async #remove(draft: Draft): Promise<PurgeItem> {
    const freedBytes = await this.#free(draft.digest)
    if (freedBytes === undefined) return { ...draft, outcome: 'in-use', freedBytes: 0 }
    return { ...draft, outcome: 'removed', freedBytes }
  }

  /** @returns undefined when it is in use */
  async #free(digest: Digest): Promise<number | undefined> {
    const { blobs, index, inventory } = this.#deps
    if (this.#isDryRun) {
      const entry = index.blob(digest)
      if (blobs.isBeingRead(digest)) return undefined
      return entry ? inventory.freedBy(entry) : 0
    }
    const freedBytes = await this.#remover.remove(digest)
    if (freedBytes !== undefined || blobs.isBeingRead(digest)) return freedBytes
    // It was used in the last seconds. Once that is written down, only who reads it right now counts.
    await this.#flush()
    return this.#remover.remove(digest)
  }

  /** A disk that is full is a reason to purge: what cannot be written down yet counts as in use. */
  async #flush(): Promise<void> {
    try {
      await this.#deps.inventory.flush()
    } catch (error) {
      if (!(error instanceof StorageError)) throw error
    }
  }

  async #unlink({ kind, repository, ...draft }: Draft): Promise<PurgeItem> {
    const { digest } = draft
    const isLink = repository !== undefined && (kind === 'manifest' || kind === 'blob')
    const link = isLink && digest ? { repository, digest, kind } : undefined
    const freedBytes = link ? this.#deps.inventory.freedByLink(link) : 0
    if (!this.#isDryRun && link) await this.#remover.unlink(link)
    return { kind, repository, ...draft, outcome: 'unlinked', freedBytes }
  }

  async #untag(repository: RepositoryName, tag: Tag, digest: Digest): Promise<PurgeItem> {
    if (!this.#isDryRun) await this.#remover.untag(repository, tag)
    const freedBytes = this.#deps.inventory.tagBytes
    return { outcome: 'untagged', kind: 'tag', repository, digest, tags: [tag], freedBytes }
  }

  #count({ freedBytes, outcome }: PurgeItem): void {
    this.#sums.freedBytes += freedBytes
    if (outcome === 'in-use') this.#sums.inUse++
    else this.#sums[outcome]++
  }
}
