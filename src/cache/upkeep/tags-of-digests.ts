// Which tags point to a manifest, or once did: the disk tells only the other way round. Each repository is read once,
// for as long as it is remembered; what is told may be out of date by then, and whoever acts on it looks again.

import { LRUCache } from 'lru-cache'
import type { Digest } from '../../oci/digest.ts'
import type { RepositoryName, Tag } from '../../oci/reference.ts'
import type { RepositoryIndex } from '../../storage/repository-index.ts'

type TagsByDigest = ReadonlyMap<Digest, readonly Tag[]>

/** Tags, each counted once for every digest that it has had: about 20 MB. */
const REMEMBERED_MAX = 100_000

export class TagsOfDigests {
  readonly #repositories: RepositoryIndex
  readonly #remembered = new LRUCache<RepositoryName, TagsByDigest>({
    maxSize: REMEMBERED_MAX,
    // One that is larger is remembered too, alone: it is for the sake of such that anything is.
    sizeCalculation: (tags) => Math.min(sizeOf(tags), REMEMBERED_MAX),
  })

  constructor(repositories: RepositoryIndex) {
    this.#repositories = repositories
  }

  async of(repository: RepositoryName, digest: Digest): Promise<readonly Tag[]> {
    let tags = this.#remembered.get(repository)
    if (!tags) {
      tags = await this.#read(repository)
      this.#remembered.set(repository, tags)
    }
    return tags.get(digest) ?? []
  }

  async #read(repository: RepositoryName): Promise<TagsByDigest> {
    const tags = new Map<Digest, Tag[]>()
    for (const tag of await this.#repositories.listTags(repository)) {
      for (const digest of await this.#repositories.readTagHistory(repository, tag)) {
        const known = tags.get(digest)
        if (known) known.push(tag)
        else tags.set(digest, [tag])
      }
    }
    return tags
  }
}

/** Never 0: a repository without tags is remembered too. */
function sizeOf(tags: TagsByDigest): number {
  let size = 1
  for (const { length } of tags.values()) size += length
  return size
}
