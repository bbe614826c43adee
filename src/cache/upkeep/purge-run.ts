// Two walks over what was selected: one tells what nothing will name any more, the other takes it, for real or dry.
// One repository after the other, so that memory holds the tags and pins of one, whatever the volume has, and some
// bytes for each digest. What links say is read from disk, what belongs together from the index. Clients are served
// meanwhile: what is noted of a digest is written into the index before its fate is told, and what is noted from then
// on keeps it.

import { setImmediate as nextTurn } from 'node:timers/promises'
import { LRUCache } from 'lru-cache'
import type { Digest } from '../../oci/digest.ts'
import type { RepositoryName, Tag } from '../../oci/reference.ts'
import type { BlobEntry, LinkEntry } from '../../storage/index/content-index.ts'
import type { Link } from '../../storage/repository-index.ts'
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
    this.#areUsesWritten = await this.#scope.writeNotes()
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
      if (this.#isStopped) return
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
    // A manifest that turns out to stay keeps what it names, which must not have gone before.
    for await (const link of repositories.linksOf(repository, ['manifest', 'blob'])) {
      if (this.#isStopped) return
      const entry = await this.#entryOf(link)
      if (!entry || !this.#scope.isOldEnough(entry)) continue
      const draft = { ...link, tags: tags.of(link.digest) }
      if (!isAll && this.#isNoted(link.digest)) {
        this.#plan.keep(link.digest)
        yield { ...draft, outcome: 'in-use', freedBytes: 0 }
        continue
      }
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

  async #entryOf(link: Link): Promise<LinkEntry | undefined> {
    const entry = await this.#scope.entryOf(link)
    if (!entry || !this.#isNoted(link.digest)) return entry
    await this.#scope.writeNotes()
    return this.#scope.entryOf(link)
  }

  /** Whether the index may not know yet who holds it, or when it was used. */
  #isNoted(digest: Digest): boolean {
    return !this.#isDryRun && this.#deps.inventory.hasNoteOf(digest)
  }

  async #fateOf(digest: Digest): Promise<Fate> {
    const known = this.#fates.get(digest)
    if (known) return known
    const isLosing = await this.#scope.goesEverywhere(digest)
    // Somebody began to hold it, or has used it, since the plan was made.
    if (!isLosing) this.#plan.keep(digest)
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
      if (digest && !parts.links.has(digest)) yield* this.#untag(repository, tag, digest)
    }
    /** Parts of what stays since somebody uses it. */
    const kept = new Set<Digest>()
    for (const [digest, kind] of parts.links) {
      const names = index.namesOf(digest)
      if (kept.has(digest) || (await this.#isWantedAnew(digest, repository))) {
        this.#plan.keep(digest)
        for (const part of names) kept.add(part)
        continue
      }
      const draft = { repository, digest, kind, tags: tags.of(digest) }
      const fate = await this.#fateOfPart(draft)
      if (fate === 'held') yield* this.#keep(draft)
      else if (fate === 'shared') yield await this.#unlink(draft)
      else {
        const item = await this.#removeLast(draft)
        if (item.outcome === 'in-use') for (const part of names) kept.add(part)
        yield item
      }
    }
  }

  /** Whether what was noted of a part, which is in the index afterwards, keeps it in a repository. */
  async #isWantedAnew(digest: Digest, repository: RepositoryName): Promise<boolean> {
    if (!this.#isNoted(digest)) return false
    await this.#scope.writeNotes()
    // It could not be written, or there is more.
    if (this.#selection.usedBeforeMs !== undefined && this.#isNoted(digest)) return true
    const link = this.#deps.index.link(digest, repository)
    return link !== undefined && (!this.#scope.isOldEnough(link) || this.#scope.isPinned(link))
  }

  /** The last repository that is to lose it takes the bytes along; of what is held, the first keeps its link. */
  async #fateOfPart({ digest, repository }: Draft): Promise<Fate> {
    const losing = this.#losing.get(digest) ?? 0
    const planned = this.#left.get(digest) ?? losing
    // Somebody may have begun to hold it since these were counted. In a dry run none has lost it by now.
    const isLast = planned === 1 && !this.#isDryRun
    const isShared =
      (isLast && (await this.#scope.isHeldElsewhere(digest, repository))) ||
      this.#deps.index.linksOf(digest).length > losing
    if (isShared) this.#plan.keep(digest)
    const left = isShared ? 0 : planned
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
      if (this.#isStopped) return
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
      yield* this.#untag(repository, tag, digest)
    }
  }

  /** Its link stays, its tags go: what stays names it by digest. */
  async *#keep({ tags, ...draft }: Draft): AsyncGenerator<PurgeItem> {
    yield { ...draft, tags: [], outcome: 'kept', freedBytes: 0 }
    const { digest, repository } = draft
    if (!repository) return
    for (const tag of tags) yield* this.#untag(repository, tag, digest)
  }

  async #remove(draft: Draft): Promise<PurgeItem> {
    const freedBytes = await this.#free(draft)
    if (freedBytes === undefined) {
      this.#plan.keep(draft.digest)
      return { ...draft, outcome: 'in-use', freedBytes: 0 }
    }
    return { ...draft, outcome: 'removed', freedBytes }
  }

  /** @returns undefined when it is in use */
  async #free(draft: Draft): Promise<number | undefined> {
    const { digest } = draft
    if (!this.#isDryRun) return (await this.#remover.remove(digest)) ?? this.#freeUsed(draft)
    if (this.#isInUse(digest)) return undefined
    const { index, inventory } = this.#deps
    const entry = index.blob(digest)
    return entry ? inventory.freedBy(entry) : 0
  }

  /** It was used just now. Of those that are to lose it, only who reads it at this moment counts. */
  async #freeUsed({ digest, repository }: Draft): Promise<number | undefined> {
    const { root, usedBeforeMs } = this.#selection
    if (usedBeforeMs !== undefined || this.#deps.blobs.isBeingRead(digest)) return undefined
    await this.#scope.writeNotes()
    const stays = root
      ? await this.#scope.isHeldElsewhere(digest, repository)
      : (await this.#fateOf(digest)) !== 'goes'
    return stays ? undefined : this.#remover.remove(digest)
  }

  async #unlink({ kind, repository, ...draft }: Draft): Promise<PurgeItem> {
    const { digest } = draft
    const isLink = repository !== undefined && (kind === 'manifest' || kind === 'blob')
    const link = isLink && digest ? { repository, digest, kind } : undefined
    const freedBytes = link ? this.#deps.inventory.freedByLink(link) : 0
    if (!this.#isDryRun && link) await this.#remover.unlink(link)
    return { kind, repository, ...draft, outcome: 'unlinked', freedBytes }
  }

  /** Nothing if it points elsewhere by now: then it was used just now. */
  async *#untag(repository: RepositoryName, tag: Tag, digest: Digest): AsyncGenerator<PurgeItem> {
    if (!this.#isDryRun && !(await this.#remover.untag(repository, tag, digest))) return
    const freedBytes = this.#deps.inventory.tagBytes
    yield { outcome: 'untagged', kind: 'tag', repository, digest, tags: [tag], freedBytes }
  }

  #count({ freedBytes, outcome }: PurgeItem): void {
    this.#sums.freedBytes += freedBytes
    if (outcome === 'in-use') this.#sums.inUse++
    else this.#sums[outcome]++
  }
}
