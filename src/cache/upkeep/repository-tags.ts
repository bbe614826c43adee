// The tags of one repository as they stand on disk at one moment, both ways round.

import type { Digest } from '../../oci/digest.ts'
import { subjectOfTag, type RepositoryName, type Tag } from '../../oci/reference.ts'
import type { RepositoryIndex } from '../../storage/repository-index.ts'

export class RepositoryTags {
  readonly #digests = new Map<Tag, Digest>()
  readonly #tags = new Map<Digest, Tag[]>()
  readonly #companions = new Map<Digest, Tag[]>()

  static async read(
    repositories: RepositoryIndex,
    repository: RepositoryName,
  ): Promise<RepositoryTags> {
    const tags = new RepositoryTags()
    for (const tag of await repositories.listTags(repository)) {
      const digest = await repositories.readTag(repository, tag)
      if (digest) tags.#add(tag, digest)
    }
    return tags
  }

  /** In lexical order. */
  get all(): Tag[] {
    return [...this.#digests.keys()]
  }

  digestOf(tag: Tag): Digest | undefined {
    return this.#digests.get(tag)
  }

  /** Those that point to a manifest. */
  of(digest: Digest): readonly Tag[] {
    return this.#tags.get(digest) ?? []
  }

  /** Those that are named after a manifest, and point to its signature, its attestation, … */
  companionsOf(digest: Digest): readonly Tag[] {
    return this.#companions.get(digest) ?? []
  }

  #add(tag: Tag, digest: Digest): void {
    this.#digests.set(tag, digest)
    append(this.#tags, digest, tag)
    const subject = subjectOfTag(tag)
    if (subject) append(this.#companions, subject, tag)
  }
}

function append(map: Map<Digest, Tag[]>, digest: Digest, tag: Tag): void {
  const tags = map.get(digest)
  if (tags) tags.push(tag)
  else map.set(digest, [tag])
}
