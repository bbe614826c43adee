// What pins protect in a repository, down to the layers: a pinned tag protects its manifest and all that belongs to
// that. Of one moment: for a walk over the volume, made anew for each.

import { LRUCache } from 'lru-cache'
import type { Digest } from '../../oci/digest.ts'
import type { RepositoryName } from '../../oci/reference.ts'
import type { ContentIndex } from '../../storage/index/content-index.ts'
import type { RepositoryIndex } from '../../storage/repository-index.ts'
import type { Retention } from '../retention.ts'
import { RepositoryTags } from './repository-tags.ts'

/** Repositories whose pins are remembered; each may have thousands of digests. */
const REPOSITORIES_MAX = 16
/** About 20 MB. Whoever pins more in one repository means all of it, and can say so in one rule. */
const PINNED_MAX = 100_000

export class PinnedContent {
  readonly #deps: {
    readonly index: ContentIndex
    readonly repositories: RepositoryIndex
    readonly retention: Retention
  }
  readonly #byTag = new LRUCache<RepositoryName, ReadonlySet<Digest>>({ max: REPOSITORIES_MAX })

  constructor(deps: { index: ContentIndex; repositories: RepositoryIndex; retention: Retention }) {
    this.#deps = deps
  }

  /** @throws when tags pin too much to be remembered */
  async has(repository: RepositoryName, digest: Digest): Promise<boolean> {
    const { retention } = this.#deps
    if (retention.isPinned(repository)) return true
    if (!retention.mayPinTags(repository)) return false
    return (await this.#ofTags(repository)).has(digest)
  }

  async #ofTags(repository: RepositoryName): Promise<ReadonlySet<Digest>> {
    const known = this.#byTag.get(repository)
    if (known) return known
    const { index, repositories, retention } = this.#deps
    const tags = await RepositoryTags.read(repositories, repository)
    const roots = tags.all.flatMap((tag) => {
      return retention.isTagPinned(repository, tag) ? (tags.digestOf(tag) ?? []) : []
    })
    const pinned = new Set(roots)
    // A set goes on with what is added to it meanwhile.
    for (const digest of pinned) {
      for (const part of index.namesOf(digest)) pinned.add(part)
      if (pinned.size > PINNED_MAX) {
        throw new Error(
          `the tags that are pinned in ${repository} have more than ${PINNED_MAX} parts; pin the repository instead`,
        )
      }
    }
    this.#byTag.set(repository, pinned)
    return pinned
  }
}
