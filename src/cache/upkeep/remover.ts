// Takes content away, for whatever reason: expired, evicted, purged. Links first, then bytes, so that a link to
// nothing never stands; nothing that is being read goes.

import type { Digest } from '../../oci/digest.ts'
import type { RepositoryName, Tag } from '../../oci/reference.ts'
import type { BlobStore } from '../../storage/blob-store.ts'
import type { ContentIndex } from '../../storage/index/content-index.ts'
import type { Link, RepositoryIndex } from '../../storage/repository-index.ts'
import type { Inventory } from '../inventory.ts'
import { TagsOfDigests } from './tags-of-digests.ts'

export interface RemoverDeps {
  readonly blobs: BlobStore
  readonly repositories: RepositoryIndex
  readonly index: ContentIndex
  readonly inventory: Inventory
  /** Called after a link was removed, so that nothing in memory claims it. */
  readonly onUnlinked: (link: Link) => void
  /** Called after a blob's bytes were removed. */
  readonly onRemoved: (digest: Digest) => void
}

export class Remover {
  readonly #deps: RemoverDeps
  /** Undefined: read anew for each removal. */
  readonly #tags: TagsOfDigests | undefined

  constructor(deps: RemoverDeps, tags?: TagsOfDigests) {
    this.#deps = deps
    this.#tags = tags
  }

  /**
   * For many removals, one soon after the other: the tags of a repository are read once for all of its manifests.
   * What is tagged meanwhile was used meanwhile, and stays.
   */
  batch(): Remover {
    return new Remover(this.#deps, new TagsOfDigests(this.#deps.repositories))
  }

  /** Removes what a repository has under a digest: its link and the tags that point to it. */
  async unlink(link: Link): Promise<void> {
    await this.#unlink(link)
  }

  /** Removes a tag; what it points to stays. @returns false when it does not, or no longer, point there */
  async untag(repository: RepositoryName, tag: Tag, digest: Digest): Promise<boolean> {
    const { onUnlinked, repositories } = this.#deps
    if ((await repositories.readTag(repository, tag)) !== digest) return false
    await this.#removeTag(repository, tag)
    onUnlinked({ repository, digest, kind: 'manifest' })
    return true
  }

  /**
   * Removes bytes, and every link to them.
   *
   * @returns the bytes that were freed, with links and tags; undefined when it is in use, and stays
   */
  async remove(digest: Digest): Promise<number | undefined> {
    const { blobs, index, inventory, onRemoved } = this.#deps
    // An index that was lost knows of no links, that of another volume not of these: who holds it cannot be told.
    if (!index.isOpen || index.isOfAnotherVolume || this.#isInUse(digest)) return undefined
    const entry = index.blob(digest)
    const freedBytes = entry ? inventory.freedBy(entry) : 0
    const unlinked: Unlinked[] = []
    const links = index.linksOf(digest)
    for (const link of links) unlinked.push(...(await this.#unlink(link)))
    const holders = new Set(links.map(({ repository }) => repository))
    const isHeldAnew = index.linksOf(digest).some(({ repository }) => !holders.has(repository))
    // Somebody has asked for it while its links were removed: it stays, and never without a link.
    if (isHeldAnew || this.#isInUse(digest)) {
      for (const each of unlinked) await this.#linkAgain(each)
      return undefined
    }
    onRemoved(digest)
    await blobs.remove(digest)
    inventory.addRemoved(digest)
    return freedBytes
  }

  #isInUse(digest: Digest): boolean {
    return this.#deps.blobs.isBeingRead(digest) || this.#deps.inventory.hasNoteOf(digest)
  }

  /** A manifest may have been asked for as a blob too: one entry stands for both links. */
  async #unlink({ digest, kind, repository }: Link): Promise<Unlinked[]> {
    const { inventory, repositories } = this.#deps
    const other: Link = { digest, repository, kind: kind === 'blob' ? 'manifest' : 'blob' }
    const link: Link = { digest, repository, kind }
    // A use that comes from now on is somebody's who wants it again.
    inventory.forgetUse(link)
    const unlinked: Unlinked[] = []
    if (await repositories.has(other)) unlinked.push(await this.#removeLink(other))
    unlinked.push(await this.#removeLink(link))
    inventory.addUnlinked(link)
    return unlinked
  }

  async #linkAgain({ link, tags }: Unlinked): Promise<void> {
    const { inventory, repositories } = this.#deps
    const { digest, repository } = link
    await repositories.link(link)
    inventory.touch(link)
    for (const tag of tags) {
      // It may have come to point elsewhere meanwhile.
      if ((await repositories.readTag(repository, tag)) !== undefined) continue
      await repositories.setTag(repository, tag, digest)
      inventory.addTag(repository, tag, digest)
    }
  }

  async #removeTag(repository: RepositoryName, tag: Tag): Promise<void> {
    const { inventory, repositories } = this.#deps
    for (const digest of await repositories.removeTag(repository, tag)) {
      inventory.addUntagged(repository, tag, digest)
    }
  }

  async #removeLink(link: Link): Promise<Unlinked> {
    const { inventory, onUnlinked, repositories } = this.#deps
    const { digest, kind, repository } = link
    const removed: Tag[] = []
    if (kind === 'manifest') {
      const tags = this.#tags ?? new TagsOfDigests(repositories)
      for (const tag of await tags.of(repository, digest)) {
        // It may point elsewhere by now.
        if ((await repositories.readTag(repository, tag)) === digest) {
          await this.#removeTag(repository, tag)
          removed.push(tag)
        } else {
          await repositories.removeFromHistory(repository, tag, digest)
          inventory.addUntagged(repository, tag, digest)
        }
      }
    }
    await repositories.unlink(link)
    onUnlinked(link)
    return { link, tags: removed }
  }
}

/** What was taken away, and the tags that pointed to it. */
interface Unlinked {
  readonly link: Link
  readonly tags: readonly Tag[]
}
