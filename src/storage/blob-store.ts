// Bytes by digest, in registry:2's layout. A path under `blobs/` exists only if its bytes hash to its name:
// what comes in was verified by whoever brings it, and arrives by rename, after the disk has it.

import { close, fstat, open, read, type Stats } from 'node:fs'
import { stat } from 'node:fs/promises'
import path from 'node:path'
import { algorithmOf, hexOf, matchesDigest, parseDigest, type Digest } from '../oci/digest.ts'
import type { ByteSource } from './byte-source.ts'
import {
  StorageError,
  isAbsent,
  listDirectory,
  moveInto,
  pruneEmptyDirectories,
  removeFile,
} from './filesystem.ts'
import type { Digester } from './digester.ts'
import type { FileWriter } from './file-writer.ts'
import type { StoragePaths } from './paths.ts'

/** Up to this size a blob is kept in memory while it is used, and verified each time it is read from disk. */
export const SMALL_BLOB_MAX_BYTES = 64 * 1024

export interface BlobInfo {
  readonly sizeBytes: number
  readonly storedAtMs: number
}

/** An open blob. Whoever holds it closes it; removing the blob meanwhile does not disturb the reader. */
export class BlobFile implements ByteSource, BlobInfo {
  readonly sizeBytes: number
  readonly storedAtMs: number
  readonly #fd: number
  readonly #path: string
  #readsRunning = 0
  #closed = false

  constructor(fd: number, file: string, stats: Stats) {
    this.#fd = fd
    this.#path = file
    this.sizeBytes = stats.size
    this.storedAtMs = stats.mtimeMs
  }

  read(position: number, scratch: Buffer): Promise<Buffer> {
    return new Promise((resolve, reject) => {
      if (this.#closed) {
        reject(new StorageError('read', this.#path, new Error('already closed')))
        return
      }
      this.#readsRunning++
      read(this.#fd, scratch, 0, scratch.length, position, (error, count) => {
        this.#readsRunning--
        if (this.#closed) this.#release()
        if (error) reject(new StorageError('read', this.#path, error))
        else if (count === 0) {
          // It was longer when it was opened: somebody truncates files under us.
          reject(new StorageError('read', this.#path, new Error(`ends at byte ${position}`)))
        } else resolve(scratch.subarray(0, count))
      })
    })
  }

  close(): void {
    if (this.#closed) return
    this.#closed = true
    this.#release()
  }

  /** The descriptor's number may be given to another file the moment it is closed: no read may be left. */
  #release(): void {
    if (this.#readsRunning === 0) close(this.#fd, ignoreFailure)
  }
}

/** What was only read has nothing to lose; without a callback Node would end the process. */
function ignoreFailure(): void {
  // Some network file systems report their troubles here.
}

export class BlobStore {
  readonly #paths: StoragePaths
  readonly #writer: FileWriter
  readonly #digester: Digester

  constructor(deps: { paths: StoragePaths; writer: FileWriter; digester: Digester }) {
    this.#digester = deps.digester
    this.#paths = deps.paths
    this.#writer = deps.writer
  }

  /** @returns undefined when the blob is not stored */
  open(digest: Digest): Promise<BlobFile | undefined> {
    const file = this.#paths.blobData(digest)
    return new Promise((resolve, reject) => {
      open(file, 'r', (openError, fd) => {
        if (openError) {
          if (isAbsent(openError)) resolve(undefined)
          else reject(new StorageError('open', file, openError))
          return
        }
        fstat(fd, (statError, stats) => {
          if (statError) {
            close(fd, ignoreFailure)
            reject(new StorageError('stat', file, statError))
          } else resolve(new BlobFile(fd, file, stats))
        })
      })
    })
  }

  /** @returns undefined when the blob is not stored */
  async stat(digest: Digest): Promise<BlobInfo | undefined> {
    const file = this.#paths.blobData(digest)
    try {
      const { size, mtimeMs } = await stat(file)
      return { sizeBytes: size, storedAtMs: mtimeMs }
    } catch (error) {
      if (isAbsent(error)) return undefined
      throw new StorageError('stat', file, error)
    }
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
    } finally {
      file.close()
    }
    await this.quarantine(digest)
    return undefined
  }

  /**
   * Stores small content. It does not wait for the disk: what is small is read whole, and checked, so that a
   * power failure costs a download at most.
   *
   * @param verifiedBytes at most SMALL_BLOB_MAX_BYTES, or a manifest
   * @throws {StorageError} nothing is stored then
   */
  async put(digest: Digest, verifiedBytes: Uint8Array): Promise<void> {
    const target = this.#paths.blobData(digest)
    await this.#writer.write(target, verifiedBytes)
  }

  /** Takes over a verified file that the disk has already. @throws {StorageError} it stays where it was */
  async adopt(digest: Digest, verifiedFile: string): Promise<void> {
    await moveInto(verifiedFile, this.#paths.blobData(digest))
  }

  /** @returns false when it was not stored */
  async remove(digest: Digest): Promise<boolean> {
    const file = this.#paths.blobData(digest)
    const removed = await removeFile(file)
    await pruneEmptyDirectories(path.dirname(file), this.#paths.blobs)
    return removed
  }

  /** Hashes a stored blob, of any size. Bytes that do not match are set aside. @returns whether they match */
  async verify(digest: Digest, { sizeBytes }: BlobInfo): Promise<boolean> {
    const file = this.#paths.blobData(digest)
    const run = this.#digester.open(file, algorithmOf(digest))
    run.advance(sizeBytes)
    const actual = await run.finish().catch((error: unknown) => {
      throw new StorageError('read', file, error)
    })
    const matches = actual === hexOf(digest)
    if (!matches) await this.quarantine(digest)
    return matches
  }

  /** Sets wrong bytes aside, where nobody is served from but an operator can look at them. */
  async quarantine(digest: Digest): Promise<void> {
    const file = this.#paths.blobData(digest)
    try {
      await moveInto(file, this.#paths.quarantined(digest))
    } catch (error) {
      // Somebody else found out, and was faster.
      if (!isAbsent(error)) throw error
    }
    await pruneEmptyDirectories(path.dirname(file), this.#paths.blobs)
  }

  /** Everything stored, in no order. Reads directories as it goes: what changes meanwhile may be missed. */
  async *list(): AsyncGenerator<Digest> {
    for (const algorithm of await listDirectory(this.#paths.blobs)) {
      const algorithmPath = path.join(this.#paths.blobs, algorithm.name)
      for (const shard of await listDirectory(algorithmPath)) {
        for (const blob of await listDirectory(path.join(algorithmPath, shard.name))) {
          const digest = parseDigest(`${algorithm.name}:${blob.name}`)
          if (digest) yield digest
        }
      }
    }
  }
}
