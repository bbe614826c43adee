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
  modifiedAtMs,
  removeFile,
  removeTree,
  StorageError,
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

/** What a broken download has left. */
export interface PartFile {
  readonly digest: Digest
  readonly sizeBytes: number
  readonly lastUsedMs: number
}

interface OpenOptions {
  readonly sizeBytes: number | undefined
  readonly resumedBytes: number
  readonly isKept: boolean
}

export class SpoolDirectory {
  readonly #deps: SpoolDirectoryDeps
  /** The part files that no spool is using now. */
  readonly #parts = new Map<Digest, PartFile>()
  /** Those among them with which a download is about to go on. */
  readonly #claimed = new Set<Digest>()
  /** Being removed: who wants the name again comes after that. */
  readonly #dropping = new Map<Digest, Promise<void>>()
  /** They take room until they are gone. */
  #droppingBytes = 0

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
      const isPart = digest && (await this.#note(digest))
      if (!isPart) await removeTree(path.join(paths.spool, entry.name))
    }
  }

  /** @returns how many bytes of this blob an earlier attempt has left; 0 when none */
  partBytes(digest: Digest): number {
    return this.#parts.get(digest)?.sizeBytes ?? 0
  }

  /** The same for a download that goes on with them: until `open` or `unclaim` nobody removes them. */
  claim(digest: Digest): number {
    const sizeBytes = this.partBytes(digest)
    if (sizeBytes > 0) this.#claimed.add(digest)
    return sizeBytes
  }

  /** Idempotent. */
  unclaim(digest: Digest): void {
    this.#claimed.delete(digest)
  }

  /** What all of them take on disk. */
  get partBytesTotal(): number {
    let sum = this.#droppingBytes
    for (const { sizeBytes } of this.#parts.values()) sum += sizeBytes
    return sum
  }

  /** Those that may be removed, in no order. */
  parts(): PartFile[] {
    return [...this.#parts.values()].filter(({ digest }) => !this.#claimed.has(digest))
  }

  /** Removes a part file. @returns how many bytes that freed: 0 when it is gone, or wanted again */
  async remove(digest: Digest): Promise<number> {
    if (this.#claimed.has(digest)) return 0
    const sizeBytes = this.partBytes(digest)
    await this.#drop(digest)
    return sizeBytes
  }

  /**
   * @param options.resumedBytes what to keep of the part file: at most `partBytes(digest)`
   * @param options.isKept false for a download beside another one of the same digest: it has no file
   */
  async open(digest: Digest, options: OpenOptions): Promise<Spool> {
    const { clock, digester, onStorageFailure, paths } = this.#deps
    const { isKept, resumedBytes, sizeBytes } = options
    const deps = { clock, digester, onStorageFailure }
    if (!isKept) return Spool.open(deps, { digest, sizeBytes, file: undefined, resumedBytes: 0 })
    this.unclaim(digest)
    if (resumedBytes === 0) await this.#drop(digest)
    this.#parts.delete(digest)
    await this.#dropping.get(digest)
    return Spool.open(deps, { digest, sizeBytes, file: paths.spoolFile(digest), resumedBytes })
  }

  /** Keeps what an unsuccessful spool has received for the next attempt, or removes it. */
  async giveBack(spool: Spool): Promise<void> {
    const { digest } = spool
    if (spool.isResumable) await this.#note(digest, this.#deps.clock.now())
    else await removeFile(this.#deps.paths.spoolFile(digest))
  }

  /** Removes part files that nobody has asked for again for `ageMs`. @returns how many */
  async purge(ageMs: number): Promise<number> {
    const { clock, paths } = this.#deps
    let count = 0
    for (const { digest } of this.parts()) {
      // Somebody may have removed it.
      const atMs = (await modifiedAtMs(paths.spoolFile(digest))) ?? 0
      if (clock.now() - atMs < ageMs) continue
      if ((await this.remove(digest)) > 0) count++
    }
    return count
  }

  async #drop(digest: Digest): Promise<void> {
    const { paths } = this.#deps
    const sizeBytes = this.partBytes(digest)
    if (!this.#parts.delete(digest)) return
    this.#droppingBytes += sizeBytes
    const dropping = discardFile(paths.spoolFile(digest), paths.temporary)
    this.#dropping.set(digest, dropping)
    try {
      await dropping
    } finally {
      this.#droppingBytes -= sizeBytes
      this.#dropping.delete(digest)
    }
  }

  /** @param atMs when it was written last, if the file need not tell. @returns false when there is nothing in it */
  async #note(digest: Digest, atMs?: number): Promise<boolean> {
    const file = this.#deps.paths.spoolFile(digest)
    try {
      const { mtimeMs, size } = await stat(file)
      if (size > 0)
        this.#parts.set(digest, { digest, sizeBytes: size, lastUsedMs: atMs ?? mtimeMs })
      return size > 0
    } catch (error) {
      if (isAbsent(error)) return false
      throw new StorageError('stat', file, error)
    }
  }
}

function digestOfPart(name: string): Digest | undefined {
  const match = PART_FILE.exec(name)
  return match ? parseDigest(`${match[1]}:${match[2]}`) : undefined
}
