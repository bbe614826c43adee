// The spool files of one root: which downloads were left unfinished (by a crash, a restart, an upstream that
// went away), so that the next request for the same digest goes on where they stopped.

import { stat } from 'node:fs/promises'
import path from 'node:path'
import type { Clock } from '../clock.ts'
import { parseDigest, type Digest } from '../oci/digest.ts'
import type { Digester } from './digester.ts'
import {
  discardFile,
  ensureOwnDirectory,
  isAbsent,
  listDirectory,
  removeFile,
  removeTree,
  type StorageError,
} from './filesystem.ts'
import type { StoragePaths } from './paths.ts'
import { Spool } from './spool.ts'

const PART_FILE = /^(\w+)-([0-9a-f]+)\.part$/

export interface SpoolDirectoryDeps {
  readonly paths: StoragePaths
  readonly digester: Digester
  readonly clock: Clock
  /** Called when the disk refuses bytes of a download, which goes on without it. */
  readonly onStorageFailure: (error: StorageError) => void
}

interface OpenOptions {
  readonly sizeBytes: number | undefined
  readonly resumedBytes: number
  readonly isKept: boolean
}

export class SpoolDirectory {
  readonly #deps: SpoolDirectoryDeps
  /** Bytes in each part file that no spool is using now. */
  readonly #partBytes = new Map<Digest, number>()

  constructor(deps: SpoolDirectoryDeps) {
    this.#deps = deps
  }

  /** Makes the directories, finds what was left unfinished, and sweeps what a crash left behind. */
  async start(): Promise<void> {
    const { paths } = this.#deps
    await ensureOwnDirectory(paths.spool)
    await ensureOwnDirectory(paths.temporary)
    for (const { name } of await listDirectory(paths.temporary)) {
      await removeTree(path.join(paths.temporary, name))
    }
    for (const entry of await listDirectory(paths.spool)) {
      const digest = entry.isFile() ? digestOfPart(entry.name) : undefined
      const sizeBytes = digest && (await this.#sizeOf(paths.spoolFile(digest)))
      if (digest && sizeBytes) this.#partBytes.set(digest, sizeBytes)
      else await removeTree(path.join(paths.spool, entry.name))
    }
  }

  /** @returns how many bytes of this blob an earlier attempt has left; 0 when none */
  partBytes(digest: Digest): number {
    return this.#partBytes.get(digest) ?? 0
  }

  /**
   * @param options.resumedBytes what to keep of the part file: 0, or `partBytes(digest)`
   * @param options.isKept false for a download beside another one of the same digest: it has no file
   */
  async open(digest: Digest, options: OpenOptions): Promise<Spool> {
    const { clock, digester, onStorageFailure, paths } = this.#deps
    const { isKept, resumedBytes, sizeBytes } = options
    const deps = { clock, digester, onStorageFailure }
    if (!isKept) return Spool.open(deps, { digest, sizeBytes, file: undefined, resumedBytes: 0 })
    if (resumedBytes === 0) await this.#drop(digest)
    this.#partBytes.delete(digest)
    return Spool.open(deps, { digest, sizeBytes, file: paths.spoolFile(digest), resumedBytes })
  }

  /** Keeps what an unsuccessful spool has received for the next attempt, or removes it. */
  async giveBack(spool: Spool): Promise<void> {
    const { digest } = spool
    if (spool.isResumable) {
      const sizeBytes = await this.#sizeOf(this.#deps.paths.spoolFile(digest))
      if (sizeBytes) this.#partBytes.set(digest, sizeBytes)
    } else await removeFile(this.#deps.paths.spoolFile(digest))
  }

  /** Removes part files that nobody has asked for again for `ageMs`. @returns how many */
  async purge(ageMs: number): Promise<number> {
    const { clock, paths } = this.#deps
    let count = 0
    for (const digest of this.#partBytes.keys()) {
      const modifiedAtMs = await this.#modifiedAtMs(paths.spoolFile(digest))
      // Look again: a download may have taken the file over meanwhile.
      if (clock.now() - modifiedAtMs < ageMs || !this.#partBytes.has(digest)) continue
      await this.#drop(digest)
      count++
    }
    return count
  }

  async #drop(digest: Digest): Promise<void> {
    const { paths } = this.#deps
    // A new download may want the name before a large file is gone.
    if (this.#partBytes.delete(digest)) await discardFile(paths.spoolFile(digest), paths.temporary)
  }

  async #sizeOf(file: string): Promise<number> {
    return (await this.#stat(file))?.size ?? 0
  }

  async #modifiedAtMs(file: string): Promise<number> {
    return (await this.#stat(file))?.mtimeMs ?? 0
  }

  async #stat(file: string): Promise<{ size: number; mtimeMs: number } | undefined> {
    try {
      return await stat(file)
    } catch (error) {
      if (isAbsent(error)) return undefined
      throw error
    }
  }
}

function digestOfPart(name: string): Digest | undefined {
  const match = PART_FILE.exec(name)
  return match ? parseDigest(`${match[1]}:${match[2]}`) : undefined
}
