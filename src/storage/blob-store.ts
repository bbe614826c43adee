// Bytes by digest, in registry:2's layout. A path under `blobs/` exists only if its bytes hash to its name:
// what comes in was verified by whoever brings it, and arrives by rename, after the disk has it.

import path from 'node:path'
import {
  DIGEST_ALGORITHMS,
  algorithmOf,
  hexOf,
  matchesDigest,
  parseDigest,
  type Digest,
  type DigestAlgorithm,
} from '../oci/digest.ts'
import { openBlobFile, statBlobFile, type BlobFile, type BlobInfo } from './blob-file.ts'
import {
  StorageError,
  isAbsent,
  listDirectory,
  moveInto,
  pruneEmptyDirectories,
  removeFile,
  type FileContent,
} from './filesystem.ts'
import type { DigestRun, Digester } from './digester.ts'
import type { FileWriter, WriteOptions } from './file-writer.ts'
import type { StoragePaths } from './paths.ts'

/** Up to this size a blob is kept in memory while it is used, and verified each time it is read from disk. */
export const SMALL_BLOB_MAX_BYTES = 64 * 1024

/** What shares a directory. */
export interface Shard {
  readonly algorithm: DigestAlgorithm
  /** Two digits. */
  readonly hexPrefix: string
  readonly digests: ReadonlySet<Digest>
}

const SHARDS = 256

/** @returns takes one off again */
function count(counts: Map<Digest, number>, digest: Digest): () => void {
  counts.set(digest, (counts.get(digest) ?? 0) + 1)
  return () => {
    const left = (counts.get(digest) ?? 1) - 1
    if (left > 0) counts.set(digest, left)
    else counts.delete(digest)
  }
}

export class BlobStore {
  readonly #paths: StoragePaths
  readonly #writer: FileWriter
  readonly #digester: Digester
  /** How many are reading each. */
  readonly #held = new Map<Digest, number>()
  /** Whoever stores the same again meanwhile must come after it. */
  readonly #removing = new Map<Digest, Promise<boolean>>()
  /** How many are storing each. */
  readonly #arriving = new Map<Digest, number>()
  /** Called when wrong bytes have been set aside, before anybody can have stored right ones in their place. */
  onSetAside: (digest: Digest, file: BlobInfo) => void = () => undefined

  constructor(deps: { paths: StoragePaths; writer: FileWriter; digester: Digester }) {
    this.#digester = deps.digester
    this.#paths = deps.paths
    this.#writer = deps.writer
  }

  /** Whether anybody has it open, or is storing it: its room on disk would not be free before they are done. */
  isBeingRead(digest: Digest): boolean {
    return this.#held.has(digest)
  }

  /** Counts as being read until the function that is returned has been called, once. */
  hold(digest: Digest): () => void {
    return count(this.#held, digest)
  }

  /** Of blobs that are put patiently: what those that are not stored yet take in memory. */
  get patientBytes(): number {
    return this.#writer.patientBytes
  }

  /** Resolves when none of them has to wait for its turn. Never rejects. */
  caughtUp(): Promise<void> {
    return this.#writer.caughtUp()
  }

  /** @returns undefined when the blob is not stored */
  open(digest: Digest): Promise<BlobFile | undefined> {
    return openBlobFile(this.#paths.blobData(digest), () => this.hold(digest))
  }

  /** @returns undefined when the blob is not stored */
  stat(digest: Digest): Promise<BlobInfo | undefined> {
    return statBlobFile(this.#paths.blobData(digest))
  }

  /**
   * Reads a small blob whole, and checks it: bytes that do not match are set aside, and count as absent.
   *
   * @param sizeMaxBytes a longer blob counts as absent too: it cannot be what the caller takes it for
   */
  async readWhole(digest: Digest, sizeMaxBytes: number): Promise<Buffer | undefined> {
    const file = await this.open(digest)
    if (!file) return undefined
    try {
      if (file.sizeBytes > sizeMaxBytes) return undefined
      const bytes = Buffer.allocUnsafe(file.sizeBytes)
      for (let position = 0; position < bytes.length;) {
        position += (await file.read(position, bytes.subarray(position))).length
      }
      if (matchesDigest(bytes, digest)) return bytes
      await this.quarantine(digest, file)
    } finally {
      file.close()
    }
    return undefined
  }

  /**
   * Stores small content. It does not wait for the disk: what is small is read whole, and checked, so that a
   * power failure costs a download at most.
   *
   * @param verifiedBytes at most SMALL_BLOB_MAX_BYTES, or a manifest
   * @param links written after the bytes: never a link to nothing
   * @param options of both
   * @returns whether the links are written; the bytes are in any case
   * @throws {StorageError} nothing is stored then
   */
  async put(
    digest: Digest,
    verifiedBytes: Uint8Array,
    links: readonly FileContent[] = [],
    options: WriteOptions = {},
  ): Promise<boolean> {
    const data = { file: this.#paths.blobData(digest), bytes: verifiedBytes }
    return this.#arrive(digest, async () => {
      if (await this.#writeLinks([data, ...links], options)) return true
      await this.#writer.writeAll([data], options)
      return false
    })
  }

  /**
   * Takes over a verified file that the disk has already.
   *
   * @param links as for `put`
   * @returns whether the links are written; the bytes are in their place in any case
   * @throws {StorageError} the file stays where it was
   */
  async adopt(
    digest: Digest,
    verifiedFile: string,
    links: readonly FileContent[] = [],
  ): Promise<boolean> {
    return this.#arrive(digest, async () => {
      await moveInto(verifiedFile, this.#paths.blobData(digest))
      return this.#writeLinks(links)
    })
  }

  /**
   * After a removal that is under way, and in nobody's way to the next one: whoever removes what is just being
   * stored would count it as gone.
   */
  async #arrive(digest: Digest, store: () => Promise<boolean>): Promise<boolean> {
    const letGo = this.hold(digest)
    try {
      await this.#removing.get(digest)?.catch(() => undefined)
      const arrived = count(this.#arriving, digest)
      return await store().finally(arrived)
    } finally {
      letGo()
    }
  }

  /** @returns false when the disk refused; whoever uses the blob next tries again */
  async #writeLinks(links: readonly FileContent[], options?: WriteOptions): Promise<boolean> {
    try {
      await this.#writer.writeAll(links, options)
      return true
    } catch (error) {
      if (error instanceof StorageError) return false
      throw error
    }
  }

  /** @returns false when it was not stored */
  async remove(digest: Digest): Promise<boolean> {
    const removal = this.#remove(digest)
    this.#removing.set(digest, removal)
    try {
      return await removal
    } finally {
      this.#removing.delete(digest)
    }
  }

  /** Removes the directory of a blob that has no bytes. Those that come meanwhile stay. */
  async prune(digest: Digest): Promise<void> {
    await pruneEmptyDirectories(path.dirname(this.#paths.blobData(digest)), this.#paths.blobs)
  }

  /** Whether there is nothing yet. */
  async isEmpty(): Promise<boolean> {
    return (await listDirectory(this.#paths.blobs)).length === 0
  }

  async #remove(digest: Digest): Promise<boolean> {
    const file = this.#paths.blobData(digest)
    const removed = await removeFile(file)
    await pruneEmptyDirectories(path.dirname(file), this.#paths.blobs)
    return removed
  }

  /**
   * Begins to hash what stands in a blob's place, as far as the run is told to. That may be another file than
   * one opened before: see `holds`.
   */
  hash(digest: Digest): DigestRun {
    return this.#digester.open(this.#paths.blobData(digest), algorithmOf(digest))
  }

  /** Hashes a stored blob, of any size. Bytes that do not match are set aside. @returns whether they match */
  async verify(digest: Digest, info: BlobInfo): Promise<boolean> {
    const run = this.hash(digest)
    run.advance(info.sizeBytes)
    const actual = await run.finish().catch((error: unknown) => {
      throw new StorageError('read', this.#paths.blobData(digest), error)
    })
    const matches = actual === hexOf(digest)
    if (!matches) await this.quarantine(digest, info)
    return matches
  }

  /** Whether this very file still stands in the blob's place. An inode that is open is not given away. */
  async holds(digest: Digest, { inode }: BlobInfo): Promise<boolean> {
    return (await this.stat(digest))?.inode === inode
  }

  /**
   * Sets wrong bytes aside, where nobody is served from but an operator can look at them.
   *
   * @param file the wrong one: what has taken its place meanwhile stays, or is about to
   * @returns whether it was set aside now
   * @throws {StorageError} it stays where it is
   */
  async quarantine(digest: Digest, file: BlobInfo): Promise<boolean> {
    if (this.#arriving.has(digest) || this.#removing.has(digest)) return false
    const moving = this.#setAside(digest, file)
    this.#removing.set(digest, moving)
    try {
      return await moving
    } finally {
      this.#removing.delete(digest)
    }
  }

  async #setAside(digest: Digest, file: BlobInfo): Promise<boolean> {
    if (!(await this.holds(digest, file))) return false
    const from = this.#paths.blobData(digest)
    try {
      await moveInto(from, this.#paths.quarantined(digest))
    } catch (error) {
      // Somebody else has removed it.
      if (isAbsent(error)) return false
      throw error
    }
    this.onSetAside(digest, file)
    await pruneEmptyDirectories(path.dirname(from), this.#paths.blobs)
    return true
  }

  /**
   * Everything that looks stored, a directory at a time, in the order of digests. What changes meanwhile may be
   * missed.
   */
  async *shards(): AsyncGenerator<Shard> {
    for (const algorithm of DIGEST_ALGORITHMS) {
      for (let number = 0; number < SHARDS; number++) {
        const name = number.toString(16).padStart(2, '0')
        const entries = await listDirectory(path.join(this.#paths.blobs, algorithm, name))
        const digests = entries.flatMap((entry) => parseDigest(`${algorithm}:${entry.name}`) ?? [])
        yield { algorithm, hexPrefix: name, digests: new Set(digests) }
      }
    }
  }
}
