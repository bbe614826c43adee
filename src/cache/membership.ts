// Rights: which repository is known to hold which content. Bytes are shared by digest, rights are not: a
// private layer must not become readable through another repository's name. Known is what stands on disk as
// a link, what its upstream confirms when asked, or what one of the repository's own manifests names (as far as
// registries check that, see oci/manifest.ts). A registry checks that against what it has itself, so the last
// counts only for bytes that have come from the same upstream: what another one has brought, it may name at will.

import { LRUCache } from 'lru-cache'
import type { Digest } from '../oci/digest.ts'
import type { Descriptor, ManifestContent } from '../oci/manifest.ts'
import type { RepositoryName } from '../oci/reference.ts'
import type { BlobStore } from '../storage/blob-store.ts'
import type { FileContent } from '../storage/filesystem.ts'
import type { Link, LinkKind, RepositoryIndex } from '../storage/repository-index.ts'
import type { DiskBudget } from './disk-budget.ts'
import { InFlight } from './in-flight.ts'
import type { Inventory } from './inventory.ts'
import { sharedKey, type Repository } from './repositories.ts'
import type { StorageGuard } from './storage-guard.ts'
import type { Upstreams } from './upstreams.ts'

/** About 10 MB; what is forgotten is read from disk again. */
const REMEMBERED_MAX = 50_000

interface Knowledge {
  /** Stands on disk. */
  readonly isLinked: boolean
  /** By a link, or by the upstream. */
  readonly isProven: boolean
  /** By a manifest of this repository that its registry would not have taken without it. */
  readonly isNamed: boolean
  /** According to the manifest. */
  readonly sizeBytes: number | undefined
}

export class Membership {
  readonly #blobs: BlobStore
  readonly #index: RepositoryIndex
  readonly #inventory: Inventory
  readonly #budget: DiskBudget
  readonly #storage: StorageGuard
  readonly #upstreams: Pick<Upstreams, 'nameAt'>
  readonly #known = new LRUCache<string, Knowledge>({ max: REMEMBERED_MAX })
  readonly #proving = new InFlight<string, void>()

  constructor(deps: {
    blobs: BlobStore
    index: RepositoryIndex
    inventory: Inventory
    budget: DiskBudget
    storage: StorageGuard
    upstreams: Pick<Upstreams, 'nameAt'>
  }) {
    this.#blobs = deps.blobs
    this.#index = deps.index
    this.#budget = deps.budget
    this.#inventory = deps.inventory
    this.#storage = deps.storage
    this.#upstreams = deps.upstreams
  }

  /** Whether a link is known to stand on disk: no need to look, nor to write it. */
  isLinked(repository: Repository, digest: Digest, kind: LinkKind): boolean {
    return this.#known.get(keyOf(repository.storedName, digest, kind))?.isLinked === true
  }

  /**
   * Whether the disk, the upstream or a manifest seen before proves it.
   *
   * @param options.isArriving the bytes are on their way from the repository's own upstream
   */
  async isProven(
    repository: Repository,
    digest: Digest,
    kind: LinkKind,
    { isArriving }: { isArriving: boolean },
  ): Promise<boolean> {
    const isKnown = this.#isKnown(repository, digest, kind, { isArriving })
    return isKnown || this.#hasLink(repository, digest, kind)
  }

  /**
   * Makes sure that the repository holds the digest, and that a link says so.
   *
   * @param askUpstream asks under this repository's name; called only when nothing here proves it
   * @param options.isStored false: the disk does not take the bytes, and must not have a link to nothing
   * @throws what `askUpstream` throws: the content must not be served then
   */
  async prove(
    repository: Repository,
    digest: Digest,
    kind: LinkKind,
    askUpstream: () => Promise<unknown>,
    { isStored = true }: { isStored?: boolean } = {},
  ): Promise<void> {
    const proof = this.#proving.run(sharedKey(repository, `${kind} ${digest}`), async () => {
      // The disk first: a manifest may have named what was linked before the last start.
      if (this.isLinked(repository, digest, kind)) return
      if (await this.#hasLink(repository, digest, kind)) return
      if (!this.#isKnown(repository, digest, kind)) await askUpstream()
      if (isStored) await this.link(repository, digest, kind)
      else this.#note(repository, digest, kind, { isLinked: false })
    })
    await proof.value
  }

  /**
   * Records that the repository holds stored content. A disk that refuses, or has no room, does not stop the
   * serving; it is asked again by the next use.
   */
  async link(repository: Repository, digest: Digest, kind: LinkKind): Promise<void> {
    // Now already: whoever asks meanwhile need not write it, too.
    this.#note(repository, digest, kind, { isLinked: true })
    const write = async (): Promise<true> => {
      await this.#index.link(linkOf(repository, digest, kind))
      this.#inventory.addLink(linkOf(repository, digest, kind))
      return true
    }
    const bytes = this.#inventory.costOfLink(repository.storedName)
    // What room is made for must not go for it.
    const letGo = this.#blobs.hold(digest)
    try {
      const isWritten = await this.#storage.attempt(() => this.#budget.keep(bytes, write))
      if (!isWritten) this.#note(repository, digest, kind, { isLinked: false })
    } finally {
      letGo()
    }
  }

  /** The link itself, for whoever writes it together with the bytes, and then says `noteLinked`. */
  linkFile(repository: Repository, digest: Digest, kind: LinkKind): FileContent {
    return this.#index.linkFile(linkOf(repository, digest, kind))
  }

  noteLinked(repository: Repository, digest: Digest, kind: LinkKind): void {
    this.#note(repository, digest, kind, { isLinked: true })
    this.#inventory.addLink(linkOf(repository, digest, kind))
  }

  /**
   * What a manifest of the repository proves to be there; the size of the rest is noted.
   *
   * @param options.isChecked whether its registry has, as far as is known, looked for what it names
   */
  noteNamed(
    repository: Repository,
    content: ManifestContent,
    { isChecked }: { isChecked: boolean },
  ): void {
    for (const blob of content.blobs) {
      this.#noteNamed(repository, isChecked ? blob : { ...blob, isProof: false })
    }
  }

  /** How long a blob is, according to a manifest of this repository. */
  namedSizeBytes(repository: Repository, digest: Digest): number | undefined {
    return this.#known.get(keyOf(repository.storedName, digest, 'blob'))?.sizeBytes
  }

  forget({ repository, digest, kind }: Link): void {
    this.#known.delete(keyOf(repository, digest, kind))
  }

  /** The disk is not what it was: what is used next is looked for there, and written again. */
  forgetLinks(): void {
    // Setting one makes it the newest.
    for (const [key, known] of [...this.#known.entries()].toReversed()) {
      this.#known.set(key, { ...known, isLinked: false })
    }
  }

  /** By a manifest of the repository or by its upstream, if not by a link. */
  #isKnown(
    repository: Repository,
    digest: Digest,
    kind: LinkKind,
    { isArriving = false } = {},
  ): boolean {
    const known = this.#known.get(keyOf(repository.storedName, digest, kind))
    if (!known?.isNamed) return known?.isProven === true
    return known.isProven || isArriving || this.#hasBrought(repository, digest)
  }

  /** Whether the repository's upstream has brought the bytes, under whatever name. */
  #hasBrought({ upstream }: Repository, digest: Digest): boolean {
    return this.#inventory.isHeldBy(digest, (holder) => {
      return this.#upstreams.nameAt(upstream, holder) !== undefined
    })
  }

  async #hasLink(repository: Repository, digest: Digest, kind: LinkKind): Promise<boolean> {
    const has = (): Promise<boolean> => this.#index.has(linkOf(repository, digest, kind))
    const isThere = (await this.#storage.attempt(has)) === true
    if (isThere) this.#note(repository, digest, kind, { isLinked: true })
    return isThere
  }

  #note(
    repository: Repository,
    digest: Digest,
    kind: LinkKind,
    { isLinked }: { isLinked: boolean },
  ): void {
    const key = keyOf(repository.storedName, digest, kind)
    const { isNamed = false, sizeBytes } = this.#known.get(key) ?? {}
    this.#known.set(key, { isLinked, isProven: true, isNamed, sizeBytes })
  }

  #noteNamed(repository: Repository, { digest, isProof, sizeBytes }: Descriptor): void {
    const key = keyOf(repository.storedName, digest, 'blob')
    const before = this.#known.get(key)
    if (before?.isNamed || (before && !isProof)) return
    const { isLinked = false, isProven = false } = before ?? {}
    this.#known.set(key, { isLinked, isProven, isNamed: isProof, sizeBytes })
  }
}

function linkOf({ storedName }: Repository, digest: Digest, kind: LinkKind): Link {
  return { repository: storedName, digest, kind }
}

/** A blob's bytes must not be served as a manifest, nor the other way round: the kind belongs to the right. */
function keyOf(storedName: RepositoryName, digest: Digest, kind: LinkKind): string {
  return `${kind} ${storedName}@${digest}`
}
