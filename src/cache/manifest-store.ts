// Manifests by digest: from memory, from disk, or from the upstream, and kept. Content goes by digest, rights by
// repository: what is stored is served under a name only when it is known to be there.

import { LRUCache } from 'lru-cache'
import type { Clock } from '../clock.ts'
import { digestOf, matchesDigest, type Digest } from '../oci/digest.ts'
import {
  MANIFEST_SIZE_MAX_BYTES,
  ManifestInvalidError,
  isCheckedType,
  readManifest,
  type ManifestContent,
} from '../oci/manifest.ts'
import type { BlobStore } from '../storage/blob-store.ts'
import type { Metrics } from '../telemetry/metrics.ts'
import type { UpstreamManifest } from '../upstream/remote-registry.ts'
import { manifestMismatch, UpstreamError } from '../upstream/upstream-error.ts'
import type { Freshness, ManifestAnswer } from './answer.ts'
import type { ContentMemory, HotContent } from './content-memory.ts'
import type { DiskBudget } from './disk-budget.ts'
import { InFlight } from './in-flight.ts'
import type { Inventory } from './inventory.ts'
import type { Membership } from './membership.ts'
import { sharedKey, type Repository } from './repositories.ts'
import type { StorageGuard } from './storage-guard.ts'

export interface ManifestStoreDeps {
  readonly clock: Clock
  readonly metrics: Metrics
  readonly blobs: BlobStore
  readonly budget: DiskBudget
  readonly memory: ContentMemory
  readonly inventory: Inventory
  readonly membership: Membership
  readonly storage: StorageGuard
}

/** Oddities: no registry has many. */
const UNCHECKED_MAX = 10_000

export class ManifestStore {
  readonly #deps: ManifestStoreDeps
  readonly #fetches = new InFlight<string, ManifestAnswer>()
  /** Manifests that their registry has under a type that it does not look into, though their bytes are of one. */
  readonly #unchecked = new LRUCache<string, true>({ max: UNCHECKED_MAX })

  constructor(deps: ManifestStoreDeps) {
    this.#deps = deps
  }

  /** What memory has, and may be served under this repository. */
  fromMemory(repository: Repository, digest: Digest): ManifestAnswer | undefined {
    const { inventory, membership, memory } = this.#deps
    const hot = memory.get(digest)
    if (!hot?.manifest || !membership.isLinked(repository, digest, 'manifest')) return undefined
    inventory.touch({ repository: repository.storedName, digest, kind: 'manifest' })
    return answerOf(digest, hot, { outcome: 'hit', asOfMs: hot.storedAtMs })
  }

  /**
   * What is stored and may be served under this repository. Stored bytes that the repository is not known to
   * hold cost one HEAD under its name.
   *
   * @throws {UpstreamError} the upstream was asked and did not confirm
   */
  async load(
    repository: Repository,
    digest: Digest,
    deadlineMs: number,
  ): Promise<ManifestAnswer | undefined> {
    const { blobs, inventory, membership, memory, storage } = this.#deps
    let hot = memory.get(digest)
    if (!hot?.manifest) {
      if (inventory.isAbsent(digest)) return undefined
      const read = (): Promise<Buffer | undefined> =>
        blobs.readWhole(digest, MANIFEST_SIZE_MAX_BYTES)
      const bytes = await storage.attempt(read)
      const content = bytes && this.#parseStored(bytes)
      if (!bytes || !content) return undefined
      const info = await storage.attempt(() => blobs.stat(digest))
      hot = hotContent(bytes, content, info?.storedAtMs ?? this.#deps.clock.now())
    }
    const { bytes } = hot
    // As what it was pushed is not known after a restart: then its own word counts, and links do without it.
    let isTypeKnown = hot.manifest?.declaresType === true
    if (!membership.isLinked(repository, digest, 'manifest')) {
      // A disk that was full when it came may not have it.
      const store = async (): Promise<boolean> =>
        (await blobs.stat(digest)) !== undefined || this.#put(digest, bytes)
      const isStored = (await storage.attempt(store)) === true
      const ask = async (): Promise<void> => {
        await this.#confirm(repository, digest, deadlineMs)
        isTypeKnown = true
      }
      await membership.prove(repository, digest, 'manifest', ask, { isStored })
    }
    const isChecked = isTypeKnown && !this.#unchecked.has(keyOf(repository, digest))
    this.#remember(repository, digest, hot, { isChecked })
    inventory.touch({ repository: repository.storedName, digest, kind: 'manifest' })
    return answerOf(digest, hot, { outcome: 'hit', asOfMs: hot.storedAtMs })
  }

  /** @throws {UpstreamError} */
  async fetchByDigest(
    repository: Repository,
    digest: Digest,
    deadlineMs: number,
  ): Promise<ManifestAnswer> {
    const fetch = this.#fetches.run(sharedKey(repository, digest), () =>
      this.fetch(repository, digest, { expected: digest, deadlineMs }),
    )
    const answer = await fetch.value
    return fetch.isJoined ? joined(answer) : answer
  }

  /**
   * Asks the upstream, and keeps what it sends.
   *
   * @param reference a tag or a digest
   * @param options.expected the digest that it must have
   * @throws {UpstreamError} bad-response when what came is not what was asked for
   */
  async fetch(
    repository: Repository,
    reference: string,
    { deadlineMs, expected }: { expected?: Digest; deadlineMs: number },
  ): Promise<ManifestAnswer> {
    const { clock, metrics } = this.#deps
    const { name, registry } = repository
    const fetched = await registry.getManifest(name, reference, { deadlineMs })
    const { bytes, digest: announced, mediaType: servedAs, sentBy } = fetched
    metrics.proxyPulledBytes.inc({ type: 'manifest' }, bytes.length)
    const digest = expected ?? announced ?? digestOf(bytes)
    if (!matchesDigest(bytes, digest)) {
      metrics.mismatches.inc({ type: 'manifest' })
      throw manifestMismatch(sentBy, name, digest)
    }
    const hot = hotContent(bytes, parseFetched(fetched, repository), clock.now())
    await this.#store(repository, digest, hot)
    const isChecked = this.#noteServedAs(repository, digest, servedAs)
    this.#remember(repository, digest, hot, { isChecked })
    const isStored = this.#deps.membership.isLinked(repository, digest, 'manifest')
    return answerOf(digest, hot, { outcome: 'miss', asOfMs: hot.storedAtMs, isStored })
  }

  /** A blob that is not a manifest may be asked for as one. */
  #parseStored(bytes: Buffer): ManifestContent | undefined {
    try {
      return readManifest(bytes)
    } catch (error) {
      if (error instanceof ManifestInvalidError) return undefined
      throw error
    }
  }

  /** Makes sure that the upstream has it under this repository's name. @throws {UpstreamError} */
  async #confirm(repository: Repository, digest: Digest, deadlineMs: number): Promise<void> {
    const { name, registry } = repository
    const ask = async (): Promise<{ mediaType: string | undefined }> => {
      try {
        return await registry.headManifest(name, digest, { deadlineMs })
      } catch (error) {
        if (!refusesHead(error)) throw error
        return registry.getManifest(name, digest, { deadlineMs })
      }
    }
    const { mediaType } = await ask()
    this.#noteServedAs(repository, digest, mediaType)
  }

  /** @returns whether what the manifest names was looked for when it was pushed */
  #noteServedAs(repository: Repository, digest: Digest, servedAs: string | undefined): boolean {
    const isChecked = isCheckedType(servedAs)
    if (isChecked) this.#unchecked.delete(keyOf(repository, digest))
    else this.#unchecked.set(keyOf(repository, digest), true)
    return isChecked
  }

  /** Bytes first, then the link that makes them visible: never a link to nothing. */
  async #store(repository: Repository, digest: Digest, { bytes }: HotContent): Promise<void> {
    await this.#deps.storage.attempt(() => this.#put(digest, bytes, repository))
  }

  /** @param repository gets a link with it. @returns false when there is no room for it */
  async #put(digest: Digest, bytes: Buffer, repository?: Repository): Promise<boolean> {
    const { blobs, budget, inventory, membership, metrics } = this.#deps
    const costBytes = inventory.costOf(bytes.length, repository?.storedName)
    const room = budget.tryReserve(costBytes) ?? (await budget.reserve(costBytes))
    if (!room) {
      metrics.notKept.inc({ type: 'manifest' })
      return false
    }
    try {
      const links = repository ? [membership.linkFile(repository, digest, 'manifest')] : []
      const areLinked = await blobs.put(digest, bytes, links)
      inventory.addStored(digest, bytes.length, { isManifest: true })
      if (repository && areLinked) membership.noteLinked(repository, digest, 'manifest')
      return true
    } finally {
      room.release()
    }
  }

  #remember(
    repository: Repository,
    digest: Digest,
    hot: HotContent,
    { isChecked }: { isChecked: boolean },
  ): void {
    const { inventory, membership, memory } = this.#deps
    memory.set(digest, hot)
    if (!hot.manifest) return
    membership.noteNamed(repository, hot.manifest, { isChecked })
    inventory.addNames(digest, hot.manifest)
  }
}

function keyOf({ storedName }: Repository, digest: Digest): string {
  return `${storedName}@${digest}`
}

/** Some registries refuse HEAD (405, 501) though they answer GET. */
export function refusesHead(error: unknown): boolean {
  return error instanceof UpstreamError && error.kind === 'bad-response'
}

/** The answer of a call that somebody else had started. */
export function joined(answer: ManifestAnswer): ManifestAnswer {
  if (answer.freshness.outcome !== 'miss') return answer
  return { ...answer, freshness: { ...answer.freshness, outcome: 'coalesced' } }
}

function answerOf(digest: Digest, hot: HotContent, freshness: Freshness): ManifestAnswer {
  return { digest, bytes: hot.bytes, mediaType: hot.manifest?.mediaType ?? '', freshness }
}

function hotContent(bytes: Buffer, content: ManifestContent, storedAtMs: number): HotContent {
  return { bytes, storedAtMs, manifest: content }
}

function parseFetched({ bytes, sentBy }: UpstreamManifest, { name }: Repository): ManifestContent {
  try {
    return readManifest(bytes)
  } catch (error) {
    const reason = error instanceof Error ? error.message : String(error)
    throw new UpstreamError('bad-response', `${sentBy}, ${name}: ${reason}`, {
      cause: error,
    })
  }
}
