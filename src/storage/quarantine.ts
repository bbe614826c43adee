// Bytes that did not match their name, kept for an operator to look at, for a while and within bounds.

import { stat } from 'node:fs/promises'
import path from 'node:path'
import type { Clock } from '../clock.ts'
import { isAbsent, listDirectory, removeTree, StorageError } from './filesystem.ts'
import type { StoragePaths } from './paths.ts'

const AGE_MAX_MS = 7 * 24 * 3_600_000
/** Of all that is kept; a single larger file is not kept at all. */
const TOTAL_MAX_BYTES = 1024 ** 3

export class Quarantine {
  readonly #paths: StoragePaths
  readonly #clock: Clock

  constructor(deps: { paths: StoragePaths; clock: Clock }) {
    this.#paths = deps.paths
    this.#clock = deps.clock
  }

  /**
   * Removes what is old, and the oldest of what is too much.
   *
   * @param sizeMaxBytes of all that is kept; never more than a gibibyte
   * @throws {StorageError}
   */
  async purge(sizeMaxBytes = TOTAL_MAX_BYTES): Promise<void> {
    const totalMaxBytes = Math.min(sizeMaxBytes, TOTAL_MAX_BYTES)
    const files = await this.#files()
    // The newest first: they are what is looked for.
    files.sort((a, b) => b.changedAtMs - a.changedAtMs)
    let keptBytes = 0
    for (const { changedAtMs, file, sizeBytes } of files) {
      const isOld = this.#clock.now() - changedAtMs > AGE_MAX_MS
      if (isOld || keptBytes + sizeBytes > totalMaxBytes) await removeTree(file)
      else keptBytes += sizeBytes
    }
  }

  async #files(): Promise<{ file: string; sizeBytes: number; changedAtMs: number }[]> {
    const files = []
    for (const { name } of await listDirectory(this.#paths.quarantine)) {
      const file = path.join(this.#paths.quarantine, name)
      try {
        // Its bytes are as old as they were; since the rename it is here.
        const { ctimeMs, size } = await stat(file)
        files.push({ file, sizeBytes: size, changedAtMs: ctimeMs })
      } catch (error) {
        if (!isAbsent(error)) throw new StorageError('stat', file, error)
      }
    }
    return files
  }
}
