// What goes with images when they are taken out of a repository: their manifests, configs, layers, signatures, as
// far as no image that stays has them too.

import type { Digest } from '../../oci/digest.ts'
import type { RepositoryName, Tag } from '../../oci/reference.ts'
import type { ContentIndex } from '../../storage/index/content-index.ts'
import type { LinkKind, RepositoryIndex } from '../../storage/repository-index.ts'
import type { RepositoryTags } from './repository-tags.ts'

/** Looked at in one go; an image has some hundred parts. What is beyond is left to the rules for age. */
const PARTS_MAX = 100_000

export interface ImageParts {
  /** Links of the repository that go; a manifest comes before what it names. */
  readonly links: ReadonlyMap<Digest, LinkKind>
  /** Tags that go, those included that are named after a manifest that goes. */
  readonly tags: readonly Tag[]
}

export interface ImagePartsOptions {
  readonly repository: RepositoryName
  /** Of the images. */
  readonly roots: readonly Digest[]
  /** Those that go. Another tag of a root keeps it. */
  readonly chosen: ReadonlySet<Tag>
  /** What the repository has. */
  readonly tags: RepositoryTags
  /** The roots go whatever else names them. */
  readonly isByDigest: boolean
}

export async function imageParts(
  deps: { index: ContentIndex; repositories: RepositoryIndex },
  options: ImagePartsOptions,
): Promise<ImageParts> {
  const parts = new Parts(deps.index, options)
  for await (const { digest, kind } of deps.repositories.linksOf(options.repository)) {
    if (kind === 'manifest' && !parts.going.has(digest)) parts.keepPartsOf(digest)
  }
  return parts.result()
}

class Parts {
  readonly going: Set<Digest>
  readonly #index: ContentIndex
  readonly #options: ImagePartsOptions
  readonly #roots: ReadonlySet<Digest>

  constructor(index: ContentIndex, options: ImagePartsOptions) {
    this.#index = index
    this.#options = options
    this.#roots = new Set(options.roots)
    this.going = new Set(options.roots)
    for (const digest of this.going) {
      for (const part of this.#partsOf(digest)) {
        if (this.going.size < PARTS_MAX) this.going.add(part)
      }
    }
    this.#keepTagged()
  }

  /** Something that stays has these. */
  keepPartsOf(manifest: Digest): void {
    for (const part of this.#partsOf(manifest)) this.#keep(part)
  }

  result(): ImageParts {
    const { chosen, repository, tags } = this.#options
    const links = new Map<Digest, LinkKind>()
    const gone = new Set(chosen)
    for (const digest of this.going) {
      const link = this.#index.link(digest, repository)
      if (link) links.set(digest, link.kind)
      for (const tag of tags.companionsOf(digest)) gone.add(tag)
    }
    return { links, tags: [...gone] }
  }

  /** A tag that is not chosen keeps what it points to, unless it is there for the sake of what goes. */
  #keepTagged(): void {
    const { chosen, tags } = this.#options
    const along = new Set([...this.going].flatMap((digest) => tags.companionsOf(digest)))
    for (const tag of tags.all) {
      const digest = tags.digestOf(tag)
      if (digest && !chosen.has(tag) && !along.has(tag)) this.#keep(digest)
    }
  }

  #keep(digest: Digest): void {
    const pending = [digest]
    for (let next = pending.pop(); next; next = pending.pop()) {
      if (this.#options.isByDigest && this.#roots.has(next)) continue
      if (this.going.delete(next)) pending.push(...this.#partsOf(next))
    }
  }

  #partsOf(digest: Digest): Digest[] {
    const { tags } = this.#options
    const companions = tags.companionsOf(digest).flatMap((tag) => tags.digestOf(tag) ?? [])
    return [...this.#index.namesOf(digest), ...companions]
  }
}
