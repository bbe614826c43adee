// Replaces small files: links, tags, manifests and small blobs. The work is done in the storage thread.

import { StorageError, type FileContent } from './filesystem.ts'
import type { StoragePaths } from './paths.ts'
import type { StorageThread } from './storage-thread.ts'

export interface WriteOptions {
  /** Whether all others may go before it: nobody's next step depends on it. */
  readonly isPatient?: boolean
}

export class FileWriter {
  readonly #thread: StorageThread
  readonly #temporaryDirectory: string

  constructor(deps: { thread: StorageThread; paths: StoragePaths }) {
    this.#thread = deps.thread
    this.#temporaryDirectory = deps.paths.temporary
  }

  /**
   * Replaces a file, making its directory: readers see the old bytes or the new ones, also when the process is
   * killed. A power failure may leave a file without its bytes: whoever reads it checks them.
   *
   * @throws {StorageError} the old file, if any, is still there
   */
  write(file: string, bytes: Uint8Array | string): Promise<void> {
    return this.writeAll([{ file, bytes }])
  }

  /** Of patient writes: what those that are not done take in memory. */
  get patientBytes(): number {
    return this.#thread.patientBytes
  }

  /** Resolves when no patient write has to wait for its turn. Never rejects. */
  caughtUp(): Promise<void> {
    return this.#thread.caughtUp()
  }

  /**
   * Replaces several, one after the other, in one go.
   *
   * @throws {StorageError} for the first that could not be written; none after it is
   */
  async writeAll(
    files: readonly FileContent[],
    { isPatient = false }: WriteOptions = {},
  ): Promise<void> {
    const [first] = files
    if (!first) return
    const id = this.#thread.nextId()
    const done = this.#thread.reply(id)
    const temporaryDirectory = this.#temporaryDirectory
    const request = { kind: 'write', id, files, temporaryDirectory } as const
    if (isPatient) this.#thread.sendPatiently(request)
    else this.#thread.send(request)
    try {
      await done
    } catch (error) {
      throw new StorageError('write', first.file, error)
    }
  }
}
