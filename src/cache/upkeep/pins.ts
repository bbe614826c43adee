// What may never be removed by itself: the images that `storage.retention` pins.

import type { Digest } from '../../oci/digest.ts'
import type { RepositoryName } from '../../oci/reference.ts'
import type { ContentIndex } from '../../storage/index/content-index.ts'
import type { RepositoryIndex } from '../../storage/repository-index.ts'
import type { Retention } from '../retention.ts'

export interface PinsDeps {
  readonly index: ContentIndex
  readonly repositories: RepositoryIndex
  readonly retention: Retention
}

export class Pins {
  readonly #deps: PinsDeps

  constructor(deps: PinsDeps) {
    this.#deps = deps
  }

  /** What is pinned at this moment, for one look through the content: each tag is read once at most. */
  now(): PinnedNow {
    return new PinnedNow(this.#deps)
  }
}

/** Says nothing of what pinned manifests name: whoever asks goes from the manifests down. */
export class PinnedNow {
  readonly #deps: PinsDeps
  /** What the pinned tags of a repository point to. */
  readonly #tagged = new Map<RepositoryName, Promise<ReadonlySet<Digest>>>()

  constructor(deps: PinsDeps) {
    this.#deps = deps
  }

  /** Whether a repository that holds this has it pinned. */
  async isPinned(digest: Digest, isManifest: boolean): Promise<boolean> {
    const { index, retention } = this.#deps
    if (!retention.hasPins) return false
    for (const { repository } of index.linksOf(digest)) {
      if (retention.isPinned(repository)) return true
      if (isManifest && (await this.isTagPinned(repository, digest))) return true
    }
    return false
  }

  /** Whether a pinned tag of the repository points to this manifest. */
  async isTagPinned(repository: RepositoryName, manifest: Digest): Promise<boolean> {
    if (!this.#deps.retention.mayPinTags(repository)) return false
    let tagged = this.#tagged.get(repository)
    if (!tagged) {
      tagged = this.#readTags(repository)
      this.#tagged.set(repository, tagged)
    }
    return (await tagged).has(manifest)
  }

  async #readTags(repository: RepositoryName): Promise<ReadonlySet<Digest>> {
    const { repositories, retention } = this.#deps
    const digests = new Set<Digest>()
    for (const tag of await repositories.listTags(repository)) {
      if (!retention.isTagPinned(repository, tag)) continue
      const digest = await repositories.readTag(repository, tag)
      if (digest) digests.add(digest)
    }
    return digests
  }
}
