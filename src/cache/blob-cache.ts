// Blobs: from memory or disk when they are stored, else from the one download that all who ask share. Bytes go
// by digest, rights by repository: nobody joins a download, or is served a stored blob, under a name that is
// not known to hold it.

import type { Logger } from 'pino'
import type { Clock } from '../clock.ts'
import { matchesDigest, type Digest } from '../oci/digest.ts'
import type { BlobFile } from '../storage/blob-file.ts'
import { SMALL_BLOB_MAX_BYTES, type BlobStore } from '../storage/blob-store.ts'
import type { DescriptorCache } from '../storage/descriptor-cache.ts'
import type { StorageError } from '../storage/filesystem.ts'
import type { Spool } from '../storage/spool/spool.ts'
import type { SpoolDirectory } from '../storage/spool/spool-directory.ts'
import { VerifiedBlobs } from '../storage/verified-blobs.ts'
import type { Metrics } from '../telemetry/metrics.ts'
import type { BlobAnswer, BlobInfoAnswer } from './answer.ts'
import { BlobFills, type Asked } from './blob-fills.ts'
import type { ContentMemory, HotContent } from './content-memory.ts'
import { untilDeadline } from './deadline.ts'
import type { DiskBudget } from './disk-budget.ts'
import { DiskPace } from './disk-pace.ts'
import { clientError } from './failure.ts'
import { InFlight } from './in-flight.ts'
import type { Inventory } from './inventory.ts'
import type { Membership } from './membership.ts'
import { sharedKey, type Repository } from './repositories.ts'
import type { StorageGuard } from './storage-guard.ts'

export interface BlobCacheDeps {
  readonly clock: Clock
  readonly logger: Logger
  readonly metrics: Metrics
  readonly blobs: BlobStore
  readonly budget: DiskBudget
  readonly descriptors: DescriptorCache
  readonly memory: ContentMemory
  readonly inventory: Inventory
  readonly membership: Membership
  readonly spools: SpoolDirectory
  readonly storage: StorageGuard
}

export class BlobCache {
  readonly #deps: BlobCacheDeps
  readonly #fills: BlobFills
  readonly #verified: VerifiedBlobs
  readonly #questions = new InFlight<string, { sizeBytes: number | undefined }>()

  constructor(deps: BlobCacheDeps) {
    this.#deps = deps
    this.#verified = new VerifiedBlobs({
      clock: deps.clock,
      blobs: deps.blobs,
      onWrong: (digest, file) => this.#setAside(digest, file),
      onUnreadable: (digest, error) => this.#noteUnreadable(digest, error),
    })
    this.#fills = new BlobFills({
      ...deps,
      pace: new DiskPace(deps),
      ask: (asked) => this.#ask(asked),
      findAgain: (asked) => this.#find(asked),
      onStored: (digest, spool) => this.#noteStored(digest, spool),
    })
  }

  /**
   * @param deadlineMs on the monotonic clock: by when all questions to the upstream must be answered, and a
   *   download have begun
   * @returns without a promise when memory has it
   * @throws {RegistryError} BLOB_UNKNOWN, UNAVAILABLE
   */
  get(
    repository: Repository,
    digest: Digest,
    deadlineMs: number,
  ): BlobAnswer | Promise<BlobAnswer> {
    const hot = this.#fromMemory(repository, digest)
    if (hot) return hot
    const found = this.#find({ repository, digest, deadlineMs })
    return untilDeadline(this.#deps.clock, deadlineMs, found, (late) => late.discard())
  }

  /**
   * The size alone, without a download.
   *
   * @param deadlineMs as for `get`
   * @throws {RegistryError} BLOB_UNKNOWN, UNAVAILABLE
   */
  info(
    repository: Repository,
    digest: Digest,
    deadlineMs: number,
  ): BlobInfoAnswer | Promise<BlobInfoAnswer> {
    const hot = this.#fromMemory(repository, digest)
    if (hot) return hot
    const described = this.#describe({ repository, digest, deadlineMs })
    return untilDeadline(this.#deps.clock, deadlineMs, described)
  }

  /** Ends all downloads, and begins no more; what they have received is kept for the next start. */
  stop(): Promise<void> {
    return this.#fills.stop()
  }

  /** The bytes are gone from the disk. */
  forget(digest: Digest): void {
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

  async #find(asked: Asked): Promise<BlobAnswer> {
    try {
      const stored = this.#fills.has(asked.digest) ? undefined : await this.#open(asked)
      return stored ?? (await this.#fills.answer(asked))
    } catch (error) {
      throw clientError(error, asked.repository.upstream.name, 'BLOB_UNKNOWN')
    }
  }

  /** @returns undefined when the blob is not stored */
  async #open(asked: Asked): Promise<BlobAnswer | undefined> {
    const { digest, repository } = asked
    const { blobs, descriptors, inventory, membership, storage } = this.#deps
    if (inventory.isAbsent(digest)) return undefined
    const file = await storage.attempt(() => blobs.open(digest))
    if (!file) {
      descriptors.delete(digest)
      return undefined
    }
    try {
      if (!membership.isLinked(repository, digest, 'blob')) await this.#prove(asked)
      if (await this.#isDamaged(repository, digest, file)) {
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
    const answer = isSmall ? await this.#warm(digest, file) : this.#answerFromFile(digest, file)
    if (answer) descriptors.set(digest, { sizeBytes: file.sizeBytes })
    return answer
  }

  /**
   * Whether a stored blob is known to be useless, or is not what it should be: a crash of an older registry
   * leaves short files. A manifest that names another size is a reason to look, not to believe it: the bytes
   * decide.
   */
  async #isDamaged(repository: Repository, digest: Digest, file: BlobFile): Promise<boolean> {
    const { membership, storage } = this.#deps
    if (this.#verified.isBad(digest, file)) return true
    const namedSizeBytes = membership.namedSizeBytes(repository, digest)
    if (namedSizeBytes === undefined || namedSizeBytes === file.sizeBytes) return false
    return (await storage.attempt(() => this.#verified.verify(digest, file))) !== true
  }

  async #setAside(digest: Digest, file: BlobFile): Promise<void> {
    const { blobs, storage } = this.#deps
    await storage.attempt(() => blobs.quarantine(digest, file))
    // Also where it could not be moved.
    this.forget(digest)
  }

  #noteUnreadable(digest: Digest, error: StorageError): void {
    const { logger, metrics } = this.#deps
    metrics.storageErrors.inc()
    const { code, path } = error
    logger.error({ digest, code, path }, `${error.message}; it is fetched again: check the disk`)
    this.forget(digest)
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

  async #noteStored(digest: Digest, spool: Spool): Promise<void> {
    const { blobs, clock, descriptors, inventory, memory, storage } = this.#deps
    const sizeBytes = spool.sizeBytes ?? 0
    const bytes = spool.wholeInMemory()
    if (bytes && bytes.length <= SMALL_BLOB_MAX_BYTES)
      memory.set(digest, { bytes, storedAtMs: clock.now() })
    descriptors.set(digest, { sizeBytes })
    // They are stored, and have to be counted, whatever the disk says now.
    const info = bytes ? undefined : await storage.attempt(() => blobs.stat(digest))
    inventory.addStored(digest, sizeBytes, { isManifest: false, ...info })
    if (info) this.#verified.noteStored(digest, info)
  }

  #answerFromFile(digest: Digest, file: BlobFile): BlobAnswer {
    return {
      sizeBytes: file.sizeBytes,
      freshness: { outcome: 'hit', asOfMs: file.storedAtMs },
      open: (first, last) => {
        const isWhole = first === 0 && last === file.sizeBytes - 1
        return this.#verified.reader(digest, file, { isWhole })
      },
      discard: () => file.close(),
    }
  }

  async #describe(asked: Asked): Promise<BlobInfoAnswer> {
    const { digest, repository } = asked
    const { clock, membership } = this.#deps
    try {
      const stored = await this.#describeStored(repository, digest)
      if (stored) {
        if (!membership.isLinked(repository, digest, 'blob')) await this.#prove(asked)
        this.#touch(repository, digest)
        return stored
      }
      const told = await this.#ask(asked)
      const named = membership.namedSizeBytes(repository, digest)
      // Of a HEAD nothing can be verified; a manifest is at least what its digest says.
      const sizeBytes = [named, told.sizeBytes].find(
        (each) => each !== undefined && isPossible(each, digest),
      )
      if (sizeBytes !== undefined)
        return { sizeBytes, freshness: { outcome: 'miss', asOfMs: clock.now() } }
    } catch (error) {
      throw clientError(error, repository.upstream.name, 'BLOB_UNKNOWN')
    }
    // An upstream that does not tell the size tells it with the bytes.
    const answer = await this.#find(asked)
    answer.discard()
    return { sizeBytes: answer.sizeBytes, freshness: answer.freshness }
  }

  async #describeStored(
    repository: Repository,
    digest: Digest,
  ): Promise<BlobInfoAnswer | undefined> {
    const { blobs, clock, descriptors, inventory, membership, storage } = this.#deps
    // A hint may come from another cache: it saves the look at the disk, never the question of rights.
    const isLinked = membership.isLinked(repository, digest, 'blob')
    const known = isLinked ? await descriptors.get(digest) : undefined
    if (known) return { ...known, freshness: { outcome: 'hit', asOfMs: clock.now() } }
    if (inventory.isAbsent(digest)) return undefined
    const stat = await storage.attempt(() => blobs.stat(digest))
    if (!stat) return undefined
    descriptors.set(digest, { sizeBytes: stat.sizeBytes })
    return { sizeBytes: stat.sizeBytes, freshness: { outcome: 'hit', asOfMs: stat.storedAtMs } }
  }

  #prove(asked: Asked): Promise<void> {
    const { digest, repository } = asked
    return this.#deps.membership.prove(repository, digest, 'blob', () => this.#ask(asked))
  }

  /** Whether the upstream has the blob under this repository's name. @throws {UpstreamError} */
  #ask({ deadlineMs, digest, repository }: Asked): Promise<{ sizeBytes: number | undefined }> {
    const { name, registry } = repository
    const ask = (): Promise<{ sizeBytes: number | undefined }> =>
      registry.headBlob(name, digest, { deadlineMs })
    return this.#questions.run(sharedKey(repository, digest), ask).value
  }

  #touch(repository: Repository, digest: Digest): void {
    this.#deps.inventory.touch({ repository: repository.storedName, digest, kind: 'blob' })
  }
}

/** No bytes have one digest alone: of all others a length of 0 says that nobody knows it. */
function isPossible(sizeBytes: number, digest: Digest): boolean {
  return sizeBytes !== 0 || matchesDigest(Buffer.alloc(0), digest)
}

function answerFromMemory({ bytes, storedAtMs }: HotContent): BlobAnswer {
  return {
    sizeBytes: bytes.length,
    freshness: { outcome: 'hit', asOfMs: storedAtMs },
    open: () => bytes,
    discard: () => undefined,
  }
}
