// Two walks over what was selected: one tells what nothing will name any more, the other takes it, for real or dry.
// One repository after the other, so that memory holds the tags and pins of one, whatever the volume has, and some
// bytes for each digest. What links say is read from disk, what belongs together from the index.

import { LRUCache } from 'lru-cache'
import type { Digest } from '../oci/digest.ts'
import type { RepositoryName, Tag } from '../oci/reference.ts'
import type { BlobEntry } from '../storage/content-index.ts'
import { StorageError } from '../storage/filesystem.ts'
import { DigestTable } from './digest-table.ts'
import { PurgePlan } from './purge-plan.ts'
import { PurgeScope, type PurgeScopeDeps } from './purge-scope.ts'
import type { PurgeRoot, PurgeSelection } from './purge-selection.ts'
import type { Remover } from './remover.ts'
import { RepositoryTags } from './repository-tags.ts'

/** What became, or in a dry run would become, of one thing. */
export interface PurgeItem {
  /**
   * `unlinked`: another repository holds the bytes too. The last three: it stays. `kept`: as the last link to what a
   * stored manifest names that stays.
   */
  readonly outcome: 'removed' | 'unlinked' | 'untagged' | 'kept' | 'in-use' | 'pinned'
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
  readonly kept: number
  readonly inUse: number
  readonly pinned: number
}

export interface PurgeRunDeps extends PurgeScopeDeps {
  readonly remover: Remover
}

type Draft = Omit<PurgeItem, 'outcome' | 'freedBytes'> & { readonly digest: Digest }

/** Of bytes. `held`: they lose their last link, but for what names them. */
type Fate = 'goes' | 'held' | 'shared'

/** A base layer has thousands of holders: who looked at all of them once need not do it for each. */
const FATES_MAX = 10_000
/** Links looked at between two turns of the event loop. */
const CHUNK_LINKS = 500

export class PurgeRun {
  readonly #deps: PurgeRunDeps
  readonly #selection: PurgeSelection
  readonly #isDryRun: boolean
  readonly #remover: Remover
  readonly #scope: PurgeScope
  readonly #plan: PurgePlan
  readonly #fates = new LRUCache<Digest, Fate>({ max: FATES_MAX })
  /** Of repositories: what was told of already. */
  readonly #settled = new DigestTable()
  /** Of images: how many links each digest is to lose, and of what loses all: how many are left. */
  readonly #losing = new DigestTable()
  readonly #left = new DigestTable()
  readonly #sums = {
    removed: 0,
    freedBytes: 0,
    unlinked: 0,
    untagged: 0,
    kept: 0,
    inUse: 0,
    pinned: 0,
  }
  #areUsesWritten = true
  #isStopped = false

  constructor(deps: PurgeRunDeps, selection: PurgeSelection, { isDryRun }: { isDryRun: boolean }) {
    this.#deps = deps
    this.#selection = selection
    this.#isDryRun = isDryRun
    this.#remover = deps.remover.batch()
    this.#scope = new PurgeScope(deps, selection)
    const { root } = selection
    this.#plan = new PurgePlan(deps.index, root?.kind === 'digest' ? root.digest : undefined)
  }

  get summary(): PurgeSummary {
    return { isDryRun: this.#isDryRun, ...this.#sums }
  }

  get isStopped(): boolean {
    return this.#isStopped
  }

  /** Before the first item there is much to look at. */
  stop(): void {
    this.#isStopped = true
  }

  /** @throws {StorageError} */
  async *items(): AsyncGenerator<PurgeItem> {
    // Links, uses and names of the last seconds.
    this.#areUsesWritten = await this.#flush()
    await this.#survey()
    if (this.#isStopped) return
    for await (const item of this.#walk()) {
      this.#count(item)
      yield item
    }
  }

  /** Tells the plan what loses its last link. */
  async #survey(): Promise<void> {
    const { includesUnlinked, root } = this.#selection
    for await (const repository of this.#scope.repositories()) {
      if (this.#isStopped) return
      if (this.#scope.isPinnedWhole(repository)) continue
      if (root) await this.#surveyImages(repository, root)
      else await this.#surveyContent(repository)
    }
    if (!includesUnlinked) return
    for await (const entry of this.#deps.index.blobsAfter(undefined)) {
      if (this.#isStopped) return
      if (this.#plan.concerns(entry.digest) && this.#isUnlinked(entry)) this.#planFor(entry.digest)
    }
  }

  async #surveyContent(repository: RepositoryName): Promise<void> {
    let looked = 0
    for await (const { digest } of this.#deps.repositories.linksOf(repository)) {
      if (++looked % CHUNK_LINKS === 0) await nextTurn()
      if (this.#isStopped) return
      // Its first holder loses it too, or it does not go.
      if (!this.#plan.concerns(digest) || this.#scope.firstHolderOf(digest) !== repository) continue
      if (await this.#scope.goesEverywhere(digest)) this.#planFor(digest)
    }
  }

  async #surveyImages(repository: RepositoryName, root: PurgeRoot): Promise<void> {
    const { parts } = await this.#scope.imagesOf(repository, root)
    for (const digest of parts.links.keys()) {
      const losing = (this.#losing.get(digest) ?? 0) + 1
      this.#losing.set(digest, losing)
      if (!this.#plan.concerns(digest)) continue
      if (losing === this.#deps.index.linksOf(digest).length) this.#planFor(digest)
    }
  }

  /** What is in use stays. */
  #planFor(digest: Digest): void {
    if (!this.#isInUse(digest)) this.#plan.add(digest)
  }

  #isInUse(digest: Digest): boolean {
    const { blobs, inventory } = this.#deps
    return blobs.isBeingRead(digest) || (!this.#areUsesWritten && inventory.hasNoteOf(digest))
  }

  async *#walk(): AsyncGenerator<PurgeItem> {
    const { includesUnlinked, root } = this.#selection
    for await (const repository of this.#scope.repositories()) {
      if (this.#scope.isPinnedWhole(repository)) {
        const item = { kind: 'repository', repository, digest: undefined, tags: [] } as const
        yield { ...item, outcome: 'pinned', freedBytes: 0 }
      } else if (root) yield* this.#images(repository, root)
      else yield* this.#content(repository)
    }
    if (includesUnlinked) yield* this.#unlinked()
  }

  /** All of a repository, or what of it was not used. */
  async *#content(repository: RepositoryName): AsyncGenerator<PurgeItem> {
    const { repositories } = this.#deps
    const tags = await RepositoryTags.read(repositories, repository)
    const isAll = this.#selection.usedBeforeMs === undefined
    for await (const link of repositories.linksOf(repository)) {
      const entry = await this.#scope.entryOf(link)
      if (!entry || !this.#scope.isOldEnough(entry)) continue
      const draft = { ...link, tags: tags.of(link.digest) }
      if (await this.#scope.isPinned(entry)) {
        yield { ...draft, outcome: 'pinned', freedBytes: 0 }
        continue
      }
      const fate = await this.#fateOf(link.digest)
      // The first repository stands for all: what goes is taken from them too, what is held keeps its link there.
      const isFirst = this.#settled.get(link.digest) === undefined
      if (fate !== 'shared') this.#settled.set(link.digest, 1)
      if (fate === 'shared' || (fate === 'held' && !isFirst)) yield await this.#unlink(draft)
      else if (fate === 'held') yield* this.#keep(draft)
      else if (isFirst) yield await this.#remove(draft)
    }
    if (isAll) yield* this.#danglingTags(repository, tags)
  }

  async #fateOf(digest: Digest): Promise<Fate> {
    const known = this.#fates.get(digest)
    if (known) return known
    const isLosing = await this.#scope.goesEverywhere(digest)
    const fate = isLosing ? (this.#plan.goes(digest) ? 'goes' : 'held') : 'shared'
    // Who begins to hold what is to go counts.
    if (fate !== 'goes' || this.#isDryRun) this.#fates.set(digest, fate)
    return fate
  }

  /** One image, or those that have certain tags. */
  async *#images(repository: RepositoryName, root: PurgeRoot): AsyncGenerator<PurgeItem> {
    const { index } = this.#deps
    const { parts, pinned, tags } = await this.#scope.imagesOf(repository, root)
    for (const digest of pinned) {
      const item = { kind: 'manifest', repository, digest, tags: tags.of(digest) } as const
      yield { ...item, outcome: 'pinned', freedBytes: 0 }
    }
    for (const tag of parts.tags) {
      const digest = tags.digestOf(tag)
      if (digest && !parts.links.has(digest)) yield await this.#untag(repository, tag, digest)
    }
    /** Parts of what stays since somebody uses it. */
    const kept = new Set<Digest>()
    for (const [digest, kind] of parts.links) {
      const names = index.namesOf(digest)
      if (kept.has(digest)) {
        for (const part of names) kept.add(part)
        continue
      }
      const draft = { repository, digest, kind, tags: tags.of(digest) }
      const fate = this.#fateOfPart(digest)
      if (fate === 'held') yield* this.#keep(draft)
      else if (fate === 'shared') yield await this.#unlink(draft)
      else {
        const item = await this.#removeLast(draft)
        if (item.outcome === 'in-use') for (const part of names) kept.add(part)
        yield item
      }
    }
  }

  /** The last repository that is to lose it takes the bytes along; of what is held, the first keeps its link. */
  #fateOfPart(digest: Digest): Fate {
    const losing = this.#losing.get(digest) ?? 0
    const isAll = (): boolean => losing >= this.#deps.index.linksOf(digest).length
    const left = this.#left.get(digest) ?? (isAll() ? losing : 0)
    const fate = left === 0 ? 'shared' : this.#plan.goes(digest) ? 'goes' : 'held'
    this.#left.set(digest, fate === 'goes' ? left - 1 : 0)
    return fate === 'goes' && left > 1 ? 'shared' : fate
  }

  /** The index may still have the other links to it, which are gone: what they free was told of already. */
  async #removeLast(draft: Draft): Promise<PurgeItem> {
    const { index, inventory } = this.#deps
    let toldBytes = 0
    for (const link of index.eachLinkOf(draft.digest)) {
      if (link.repository !== draft.repository) toldBytes += inventory.freedByLink(link)
    }
    const item = await this.#remove(draft)
    return { ...item, freedBytes: Math.max(0, item.freedBytes - toldBytes) }
  }

  /** Bytes that no repository holds. */
  async *#unlinked(): AsyncGenerator<PurgeItem> {
    for await (const entry of this.#deps.index.blobsAfter(undefined)) {
      if (!this.#isUnlinked(entry)) continue
      const { digest, isManifest } = entry
      const kind = isManifest ? 'manifest' : 'blob'
      const draft = { kind, repository: undefined, digest, tags: [] } as const
      if (this.#plan.goes(digest)) yield await this.#remove(draft)
      else yield* this.#keep(draft)
    }
  }

  #isUnlinked(entry: BlobEntry): boolean {
    const isLinked = this.#scope.firstHolderOf(entry.digest) !== undefined
    return !isLinked && this.#scope.isOldEnough(entry)
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

  /** Its link stays, its tags go: what stays names it by digest. */
  async *#keep({ tags, ...draft }: Draft): AsyncGenerator<PurgeItem> {
    yield { ...draft, tags: [], outcome: 'kept', freedBytes: 0 }
    const { digest, repository } = draft
    if (!repository) return
    for (const tag of tags) yield await this.#untag(repository, tag, digest)
  }

  async #remove(draft: Draft): Promise<PurgeItem> {
    const freedBytes = await this.#free(draft.digest)
    if (freedBytes === undefined) {
      this.#plan.keep(draft.digest)
      return { ...draft, outcome: 'in-use', freedBytes: 0 }
    }
    return { ...draft, outcome: 'removed', freedBytes }
  }

  /** @returns undefined when it is in use */
  async #free(digest: Digest): Promise<number | undefined> {
    const { blobs, index, inventory } = this.#deps
    if (this.#isDryRun) {
      const entry = index.blob(digest)
      if (this.#isInUse(digest)) return undefined
      return entry ? inventory.freedBy(entry) : 0
    }
    const freedBytes = await this.#remover.remove(digest)
    if (freedBytes !== undefined || blobs.isBeingRead(digest)) return freedBytes
    // It was used in the last seconds. Once that is written down, only who reads it right now counts.
    await this.#flush()
    return this.#remover.remove(digest)
  }

  /** A disk that is full is a reason to purge. @returns false: what cannot be written down yet counts as in use */
  async #flush(): Promise<boolean> {
    try {
      await this.#deps.inventory.flush()
      return true
    } catch (error) {
      if (error instanceof StorageError) return false
      throw error
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

function nextTurn(): Promise<void> {
  return new Promise((resolve) => {
    setImmediate(resolve)
  })
}
