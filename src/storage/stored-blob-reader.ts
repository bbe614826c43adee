// One answer's view of a stored blob: its bytes at its own pace, the last one not before they are verified, and
// word to whom it concerns when the disk cannot read them.

import type { BlobFile } from './blob-file.ts'
import type { ByteSource } from './byte-source.ts'
import { StorageError } from './filesystem.ts'

/** Held back until the digest is known. */
const HELD_BYTES = 1

export interface ReaderCheck {
  /** Everything before this position has been read. */
  reached(position: number): void
  /** @throws the bytes are wrong, or cannot be verified */
  finish(): Promise<void>
  /** Called once, with the end of the reading. */
  leave(): void
}

export interface StoredBlobReaderDeps {
  readonly onUnreadable: (error: StorageError) => void
  /** Undefined: nothing is to be verified. */
  readonly check: ReaderCheck | undefined
}

export class StoredBlobReader implements ByteSource {
  readonly #file: BlobFile
  readonly #deps: StoredBlobReaderDeps
  #closed = false

  constructor(file: BlobFile, deps: StoredBlobReaderDeps) {
    this.#file = file
    this.#deps = deps
  }

  async read(position: number, scratch: Buffer): Promise<Buffer> {
    const { check } = this.#deps
    try {
      if (!check) return await this.#file.read(position, scratch)
      const freeBytes = this.#file.sizeBytes - HELD_BYTES - position
      if (freeBytes <= 0) {
        await check.finish()
        return await this.#file.read(position, scratch)
      }
      const bytes = await this.#file.read(position, scratch.subarray(0, freeBytes))
      check.reached(position + bytes.length)
      return bytes
    } catch (error) {
      // A reader that was closed can read nothing: that says nothing of the disk.
      if (error instanceof StorageError && !this.#closed) this.#deps.onUnreadable(error)
      throw error
    }
  }

  close(): void {
    if (this.#closed) return
    this.#closed = true
    this.#deps.check?.leave()
    this.#file.close()
  }
}
