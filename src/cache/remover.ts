// Takes content away, for whatever reason: expired, evicted, purged. Links first, then bytes, so that a link to
// nothing never stands; nothing that is being read goes.

import type { Digest } from '../oci/digest.ts'
import type { RepositoryName, Tag } from '../oci/reference.ts'
import type { BlobStore } from '../storage/blob-store.ts'
import type { ContentIndex } from '../storage/content-index.ts'
import type { Link, RepositoryIndex } from '../storage/repository-index.ts'
import type { Inventory } from './inventory.ts'
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
    const { inventory } = this.#deps
    // A use that comes from now on is somebody's who wants it again.
    inventory.forgetUse(link)
    await this.#removeFiles(link)
    inventory.addUnlinked(link)
  }

  /** Removes a tag; what it points to stays. @returns false when there was none */
  async untag(repository: RepositoryName, tag: Tag): Promise<boolean> {
    const { onUnlinked, repositories } = this.#deps
    const digest = await repositories.readTag(repository, tag)
    if (!digest) return false
    await this.#removeTag(repository, tag)
    onUnlinked({ repository, digest, kind: 'manifest' })
    return true
  }

  /**
   * Removes bytes, and every link to them.
   *
   * @returns the bytes that were freed; undefined when it is in use, and stays
   */
  async remove(digest: Digest): Promise<number | undefined> {
    const { blobs, index, inventory, onRemoved } = this.#deps
    if (this.#isInUse(digest)) return undefined
    for (const link of index.linksOf(digest)) await this.unlink(link)
    // Somebody may have asked for it while its links were removed: then the bytes stay for them.
    if (this.#isInUse(digest)) return undefined
    const freedBytes = index.blob(digest)?.allocatedBytes ?? 0
    onRemoved(digest)
    await blobs.remove(digest)
    inventory.addRemoved(digest)
    return freedBytes
  }

  #isInUse(digest: Digest): boolean {
    return this.#deps.blobs.isBeingRead(digest) || this.#deps.inventory.hasNoteOf(digest)
  }

  /** A manifest may have been asked for as a blob too: one entry stands for both links. */
  async #removeFiles({ digest, kind, repository }: Link): Promise<void> {
    const other: Link = { digest, repository, kind: kind === 'blob' ? 'manifest' : 'blob' }
    if (await this.#deps.repositories.has(other)) await this.#removeLink(other)
    await this.#removeLink({ digest, repository, kind })
  }

  async #removeTag(repository: RepositoryName, tag: Tag): Promise<void> {
    const { inventory, repositories } = this.#deps
    for (const digest of await repositories.removeTag(repository, tag)) {
      inventory.addUntagged(repository, tag, digest)
    }
  }

  async #removeLink(link: Link): Promise<void> {
    const { inventory, onUnlinked, repositories } = this.#deps
    const { digest, kind, repository } = link
    if (kind === 'manifest') {
      const tags = this.#tags ?? new TagsOfDigests(repositories)
      for (const tag of await tags.of(repository, digest)) {
        // It may point elsewhere by now.
        const isCurrent = (await repositories.readTag(repository, tag)) === digest
        if (isCurrent) await this.#removeTag(repository, tag)
        else {
          await repositories.removeFromHistory(repository, tag, digest)
          inventory.addUntagged(repository, tag, digest)
        }
      }
    }
    await repositories.unlink(link)
    onUnlinked(link)
  }
}
