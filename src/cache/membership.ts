// Rights: which repository is known to hold which content. Bytes are shared by digest, rights are not: a
// private layer must not become readable through another repository's name. Known is what stands on disk as
// a link, what one of the repository's own manifests names, or what its upstream confirms when asked.

import { LRUCache } from 'lru-cache'
import type { Digest } from '../oci/digest.ts'
import type { Descriptor, ManifestContent } from '../oci/manifest.ts'
import type { RepositoryName } from '../oci/reference.ts'
import type { Link, LinkKind, RepositoryIndex } from '../storage/repository-index.ts'
import { InFlight } from './in-flight.ts'
import type { Repository } from './repositories.ts'
import type { Retention } from './retention.ts'
import type { StorageGuard } from './storage-guard.ts'

/** About 10 MB; what is forgotten is read from disk again. */
const REMEMBERED_MAX = 50_000

interface Proof {
  /** Stands on disk; else a manifest of this repository names it. */
  readonly isLinked: boolean
  /** According to the manifest. */
  readonly sizeBytes: number | undefined
}

export class Membership {
  readonly #index: RepositoryIndex
  readonly #retention: Retention
  readonly #storage: StorageGuard
  readonly #proofs = new LRUCache<string, Proof>({ max: REMEMBERED_MAX })
  readonly #proving = new InFlight<string, void>()

  constructor(deps: { index: RepositoryIndex; retention: Retention; storage: StorageGuard }) {
    this.#index = deps.index
    this.#retention = deps.retention
    this.#storage = deps.storage
  }

  /** Whether a link is known to stand on disk: no need to look, nor to write it. */
  isLinked(repository: Repository, digest: Digest, kind: LinkKind): boolean {
    return this.#proofs.get(keyOf(repository.storedName, digest, kind))?.isLinked === true
  }

  /** Whether the disk, or a manifest seen before, proves it. */
  async isProven(repository: Repository, digest: Digest, kind: LinkKind): Promise<boolean> {
    return this.#isNamed(repository, digest, kind) || this.#hasLink(repository, digest, kind)
  }

  /**
   * Makes sure that the repository holds the digest, and that a link says so.
   *
   * @param askUpstream asks under this repository's name; called only when nothing here proves it
   * @throws what `askUpstream` throws: the content must not be served then
   */
  async prove(
    repository: Repository,
    digest: Digest,
    kind: LinkKind,
    askUpstream: () => Promise<unknown>,
  ): Promise<void> {
    const proof = this.#proving.run(keyOf(repository.storedName, digest, kind), async () => {
      // The disk first: a manifest may have named what was linked before the last start.
      if (this.isLinked(repository, digest, kind)) return
      if (await this.#hasLink(repository, digest, kind)) return
      if (!this.#isNamed(repository, digest, kind)) await askUpstream()
      await this.link(repository, digest, kind)
    })
    await proof.value
  }

  /** Records that the repository holds stored content. A disk that refuses does not stop the serving. */
  async link(repository: Repository, digest: Digest, kind: LinkKind): Promise<void> {
    const link = { repository: repository.storedName, digest, kind }
    this.#noteLinked(repository, digest, kind)
    // Noted in any case: what has no link must not stay for ever.
    this.#retention.add(link)
    await this.#storage.attempt(() => this.#index.link(link))
  }

  /** What a manifest of the repository names, the repository holds. */
  noteNamed(repository: Repository, content: ManifestContent): void {
    for (const blob of content.blobs) this.#noteNamed(repository, blob, 'blob')
    for (const manifest of content.manifests) this.#noteNamed(repository, manifest, 'manifest')
  }

  /** How long a blob is, according to a manifest of this repository. */
  namedSizeBytes(repository: Repository, digest: Digest): number | undefined {
    return this.#proofs.get(keyOf(repository.storedName, digest, 'blob'))?.sizeBytes
  }

  forget({ repository, digest, kind }: Link): void {
    this.#proofs.delete(keyOf(repository, digest, kind))
  }

  /** By a manifest of the repository, if not by a link. */
  #isNamed(repository: Repository, digest: Digest, kind: LinkKind): boolean {
    return this.#proofs.has(keyOf(repository.storedName, digest, kind))
  }

  async #hasLink(repository: Repository, digest: Digest, kind: LinkKind): Promise<boolean> {
    const link = { repository: repository.storedName, digest, kind }
    const isThere = (await this.#storage.attempt(() => this.#index.has(link))) === true
    if (isThere) this.#noteLinked(repository, digest, kind)
    return isThere
  }

  #noteLinked(repository: Repository, digest: Digest, kind: LinkKind): void {
    const key = keyOf(repository.storedName, digest, kind)
    this.#proofs.set(key, { isLinked: true, sizeBytes: this.#proofs.get(key)?.sizeBytes })
  }

  #noteNamed(repository: Repository, { digest, sizeBytes }: Descriptor, kind: LinkKind): void {
    const key = keyOf(repository.storedName, digest, kind)
    if (!this.#proofs.has(key)) this.#proofs.set(key, { isLinked: false, sizeBytes })
  }
}

/** A blob's bytes must not be served as a manifest, nor the other way round: the kind belongs to the right. */
function keyOf(storedName: RepositoryName, digest: Digest, kind: LinkKind): string {
  return `${kind} ${storedName}@${digest}`
}
