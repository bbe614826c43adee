// Blobs: from memory or disk when they are stored, else from the one download that all who ask share. Bytes go
// by digest, rights by repository: nobody joins a download, or is served a stored blob, under a name that is
// not known to hold it.

import { LRUCache } from 'lru-cache'
import type { Logger } from 'pino'
import type { Clock } from '../clock.ts'
import type { Digest } from '../oci/digest.ts'
import { SMALL_BLOB_MAX_BYTES, type BlobFile, type BlobStore } from '../storage/blob-store.ts'
import type { DescriptorCache } from '../storage/descriptor-cache.ts'
import type { Spool } from '../storage/spool.ts'
import type { SpoolDirectory } from '../storage/spool-directory.ts'
import type { Metrics } from '../telemetry/metrics.ts'
import type { BlobAnswer, BlobInfoAnswer, Freshness } from './answer.ts'
import { BlobFill, type BlobFillOptions } from './blob-fill.ts'
import type { ContentMemory, HotContent } from './content-memory.ts'
import { clientError, isAbsence } from './failure.ts'
import { InFlight } from './in-flight.ts'
import type { Membership } from './membership.ts'
import type { Repository } from './repositories.ts'
import type { Retention } from './retention.ts'
import type { StorageGuard } from './storage-guard.ts'
import { FAR_AHEAD_BYTES, TailSource } from './tail-source.ts'

/** Blobs that a manifest misdescribes are rare; hashing one for each request would be work for the asking. */
const VERIFIED_MAX = 1_000

export interface BlobCacheDeps {
  readonly clock: Clock
  readonly logger: Logger
  readonly metrics: Metrics
  readonly blobs: BlobStore
  readonly descriptors: DescriptorCache
  readonly memory: ContentMemory
  readonly membership: Membership
  readonly retention: Retention
  readonly spools: SpoolDirectory
  readonly storage: StorageGuard
}

interface RunningFill {
  readonly fill: BlobFill
  /** Who may have a link when the bytes are stored. */
  readonly repositories: Map<string, Repository>
}

export class BlobCache {
  readonly #deps: BlobCacheDeps
  readonly #fills = new Map<Digest, RunningFill>()
  /** Downloads for one client each, beside one that can't be joined. */
  readonly #unshared = new Set<BlobFill>()
  readonly #verifying = new InFlight<Digest, boolean>()
  /** Right, whatever a manifest says of their size. */
  readonly #verified = new LRUCache<Digest, true>({ max: VERIFIED_MAX })
  readonly #questions = new InFlight<string, { sizeBytes: number | undefined }>()

  constructor(deps: BlobCacheDeps) {
    this.#deps = deps
  }

  /**
   * @returns without a promise when memory has it
   * @throws {RegistryError} BLOB_UNKNOWN, UNAVAILABLE
   */
  get(repository: Repository, digest: Digest): BlobAnswer | Promise<BlobAnswer> {
    return this.#fromMemory(repository, digest) ?? this.#find(repository, digest)
  }

  /** The size alone, without a download. @throws {RegistryError} BLOB_UNKNOWN, UNAVAILABLE */
  info(repository: Repository, digest: Digest): BlobInfoAnswer | Promise<BlobInfoAnswer> {
    return this.#fromMemory(repository, digest) ?? this.#describe(repository, digest)
  }

  /** Ends all downloads; what they have received is kept for the next start. */
  async stop(): Promise<void> {
    const shared = [...this.#fills.values()].map(({ fill }) => fill)
    await Promise.all([...shared, ...this.#unshared].map((fill) => fill.stop()))
  }

  /** The bytes are gone from the disk. */
  forget(digest: Digest): void {
    this.#verified.delete(digest)
    this.#deps.memory.delete(digest)
    this.#deps.descriptors.delete(digest)
  }

  #fromMemory(repository: Repository, digest: Digest): BlobAnswer | undefined {
    const { membership, memory } = this.#deps
    const hot = memory.get(digest)
    if (!hot || !membership.isLinked(repository, digest, 'blob')) return undefined
    this.#touch(repository, digest)
    return answerFromMemory(hot)
  }

  async #find(repository: Repository, digest: Digest): Promise<BlobAnswer> {
    try {
      const stored = this.#fills.has(digest) ? undefined : await this.#open(repository, digest)
      return stored ?? (await this.#shareDownload(repository, digest))
    } catch (error) {
      throw clientError(error, repository.upstream.name, 'BLOB_UNKNOWN')
    }
  }

  /** @returns undefined when the blob is not stored */
  async #open(repository: Repository, digest: Digest): Promise<BlobAnswer | undefined> {
    const { blobs, descriptors, membership, storage } = this.#deps
    const file = await storage.attempt(() => blobs.open(digest))
    if (!file) {
      descriptors.delete(digest)
      return undefined
    }
    try {
      if (!membership.isLinked(repository, digest, 'blob')) await this.#prove(repository, digest)
      if (await this.#isCut(repository, digest, file)) {
        file.close()
        return undefined
      }
    } catch (error) {
      file.close()
      throw error
    }
    this.#touch(repository, digest)
    const isSmall = file.sizeBytes <= SMALL_BLOB_MAX_BYTES
    if (isSmall) file.close()
    const answer = isSmall ? await this.#warm(digest, file) : answerFromFile(file)
    if (answer) descriptors.set(digest, { sizeBytes: file.sizeBytes })
    return answer
  }

  /**
   * Whether a stored blob is not what it should be: a crash of an older registry leaves short files. A manifest
   * that names another size is a reason to look, not to believe it: the bytes decide.
   */
  async #isCut(repository: Repository, digest: Digest, file: BlobFile): Promise<boolean> {
    const { blobs, logger, membership, metrics, storage } = this.#deps
    const namedSizeBytes = membership.namedSizeBytes(repository, digest)
    if (namedSizeBytes === undefined || namedSizeBytes === file.sizeBytes) return false
    if (!this.#verified.has(digest)) {
      const verify = (): Promise<boolean> =>
        this.#verifying.run(digest, () => blobs.verify(digest, file)).value
      if (await storage.attempt(verify)) this.#verified.set(digest, true)
    }
    // What was hashed may be another file than ours: somebody else has just fetched it again.
    const current = await storage.attempt(() => blobs.stat(digest))
    if (this.#verified.has(digest) && current?.sizeBytes === file.sizeBytes) return false
    metrics.mismatches.inc({ type: 'blob' })
    logger.error(
      { digest, sizeBytes: file.sizeBytes },
      'a stored blob was cut short; it is fetched again',
    )
    return true
  }

  /** Joins the download that is running, or starts it. */
  async #shareDownload(repository: Repository, digest: Digest): Promise<BlobAnswer> {
    const running = this.#fills.get(digest)
    if (!running) return this.#answerFromFill(repository, this.#start(repository, digest), 'miss')
    if (!running.repositories.has(repository.storedName)) {
      if (!(await this.#deps.membership.isProven(repository, digest, 'blob'))) {
        await this.#ask(repository, digest)
      }
      running.repositories.set(repository.storedName, repository)
    }
    return this.#join(repository, running.fill)
  }

  async #join(repository: Repository, fill: BlobFill): Promise<BlobAnswer> {
    try {
      return await this.#answerFromFill(repository, fill, 'coalesced')
    } catch (error) {
      const isOthers = fill.repository.storedName !== repository.storedName
      if (!isOthers || !isAbsence(error)) throw error
      // Nothing is there under the name that the download was begun under; under this one there is.
      await fill.ended
      return this.#find(repository, fill.digest)
    }
  }

  #start(repository: Repository, digest: Digest): BlobFill {
    const repositories = new Map([[repository.storedName, repository]])
    const fill = new BlobFill(
      { ...this.#deps, onStored: (spool) => this.#keep(digest, spool, repositories) },
      { ...this.#fillOptions(repository, digest), isKept: true },
    )
    this.#fills.set(digest, { fill, repositories })
    void fill.ended.then(() => this.#fills.delete(digest))
    return fill
  }

  #fillOptions(repository: Repository, digest: Digest): Omit<BlobFillOptions, 'isKept'> {
    const expectedSizeBytes = this.#deps.membership.namedSizeBytes(repository, digest)
    return { repository, digest, expectedSizeBytes }
  }

  async #answerFromFill(
    repository: Repository,
    fill: BlobFill,
    outcome: Freshness['outcome'],
  ): Promise<BlobAnswer> {
    const spool = await fill.opened
    const reader = spool.reader()
    if (reader) {
      return {
        sizeBytes: spool.sizeBytes ?? 0,
        freshness: { outcome, asOfMs: this.#deps.clock.now() },
        open: (position) => {
          const isFar = position - spool.receivedBytes >= FAR_AHEAD_BYTES
          if (!isFar || !spool.isKept) return reader
          reader.close()
          return new TailSource({ join: () => spool.reader() }, { repository, digest: fill.digest })
        },
        discard: () => reader.close(),
      }
    }
    // Over already: the blob is stored by now, or another attempt begins.
    if (spool.isOver) {
      await fill.ended
      return this.#find(repository, fill.digest)
    }
    // The disk failed, and what this client needs first is no longer in memory: it gets a download of its own.
    const options = { ...this.#fillOptions(repository, fill.digest), isKept: false }
    const own = new BlobFill({ ...this.#deps, onStored: async () => undefined }, options)
    this.#unshared.add(own)
    void own.ended.then(() => this.#unshared.delete(own))
    return this.#answerFromFill(repository, own, 'bypass')
  }

  /** Reads a small blob into memory; from now on it is answered from there. */
  async #warm(digest: Digest, file: BlobFile): Promise<BlobAnswer | undefined> {
    const { blobs, memory, storage } = this.#deps
    const bytes = await storage.attempt(() => blobs.readWhole(digest, SMALL_BLOB_MAX_BYTES))
    if (!bytes) return undefined
    const hot: HotContent = { bytes, storedAtMs: file.storedAtMs }
    memory.set(digest, hot)
    return answerFromMemory(hot)
  }

  async #keep(digest: Digest, spool: Spool, repositories: Map<string, Repository>): Promise<void> {
    const { clock, descriptors, membership, memory } = this.#deps
    const bytes = spool.wholeInMemory()
    if (bytes && bytes.length <= SMALL_BLOB_MAX_BYTES)
      memory.set(digest, { bytes, storedAtMs: clock.now() })
    descriptors.set(digest, { sizeBytes: spool.sizeBytes ?? 0 })
    for (const repository of repositories.values())
      await membership.link(repository, digest, 'blob')
  }

  async #describe(repository: Repository, digest: Digest): Promise<BlobInfoAnswer> {
    const { clock, membership } = this.#deps
    try {
      const stored = await this.#describeStored(repository, digest)
      if (stored) {
        if (!membership.isLinked(repository, digest, 'blob')) await this.#prove(repository, digest)
        this.#touch(repository, digest)
        return stored
      }
      const { sizeBytes } = await this.#ask(repository, digest)
      if (sizeBytes !== undefined)
        return { sizeBytes, freshness: { outcome: 'miss', asOfMs: clock.now() } }
    } catch (error) {
      throw clientError(error, repository.upstream.name, 'BLOB_UNKNOWN')
    }
    // An upstream that does not tell the size tells it with the bytes.
    const answer = await this.#find(repository, digest)
    answer.discard()
    return { sizeBytes: answer.sizeBytes, freshness: answer.freshness }
  }

  async #describeStored(
    repository: Repository,
    digest: Digest,
  ): Promise<BlobInfoAnswer | undefined> {
    const { blobs, clock, descriptors, membership, storage } = this.#deps
    // A hint may come from another cache: it saves the look at the disk, never the question of rights.
    const isLinked = membership.isLinked(repository, digest, 'blob')
    const known = isLinked ? await descriptors.get(digest) : undefined
    if (known) return { ...known, freshness: { outcome: 'hit', asOfMs: clock.now() } }
    const stat = await storage.attempt(() => blobs.stat(digest))
    if (!stat) return undefined
    descriptors.set(digest, { sizeBytes: stat.sizeBytes })
    return { sizeBytes: stat.sizeBytes, freshness: { outcome: 'hit', asOfMs: stat.storedAtMs } }
  }

  #prove(repository: Repository, digest: Digest): Promise<void> {
    return this.#deps.membership.prove(repository, digest, 'blob', () =>
      this.#ask(repository, digest),
    )
  }

  /** Whether the upstream has the blob under this repository's name. @throws {UpstreamError} */
  #ask(repository: Repository, digest: Digest): Promise<{ sizeBytes: number | undefined }> {
    const key = `${repository.storedName}@${digest}`
    return this.#questions.run(key, () => repository.upstream.headBlob(repository.name, digest))
      .value
  }

  #touch(repository: Repository, digest: Digest): void {
    this.#deps.retention.touch({ repository: repository.storedName, digest, kind: 'blob' })
  }
}

function answerFromFile(file: BlobFile): BlobAnswer {
  return {
    sizeBytes: file.sizeBytes,
    freshness: { outcome: 'hit', asOfMs: file.storedAtMs },
    open: () => file,
    discard: () => file.close(),
  }
}

function answerFromMemory({ bytes, storedAtMs }: HotContent): BlobAnswer {
  return {
    sizeBytes: bytes.length,
    freshness: { outcome: 'hit', asOfMs: storedAtMs },
    open: () => bytes,
    discard: () => undefined,
  }
}
