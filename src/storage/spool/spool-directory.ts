// The spool files of one root: which downloads were left unfinished (by a crash, a restart, an upstream that
// went away), so that the next request for the same digest goes on where they stopped. Nothing of a part is
// verified: it goes on from the upstream that sent it, and there is one for each digest at most.

import { stat } from 'node:fs/promises'
import path from 'node:path'
import type { Clock } from '../../clock.ts'
import { parseDigest, type Digest } from '../../oci/digest.ts'
import type { Digester } from '../digester.ts'
import {
  discardFile,
  ensureOwnDirectory,
  isAbsent,
  listDirectory,
  modifiedAtMs,
  removeFile,
  removeTree,
  StorageError,
} from '../filesystem.ts'
import type { SenderId, StoragePaths } from '../paths.ts'
import { LagAllowance } from './lag-allowance.ts'
import { Spool } from './spool.ts'

/** Those of older versions do not tell who sent them: they are swept with what is oddly named. */
const PART_FILE = /^(\w+)-([0-9a-f]+)-([0-9a-f]{32})\.part$/

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
  readonly sender: SenderId
  readonly sizeBytes: number
  readonly lastUsedMs: number
}

interface OpenOptions {
  readonly sender: SenderId
  readonly sizeBytes: number | undefined
  readonly resumedBytes: number
  readonly isKept: boolean
}

export class SpoolDirectory {
  readonly #deps: SpoolDirectoryDeps
  readonly #lag = new LagAllowance()
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
      const part = entry.isFile() ? parsePart(entry.name) : undefined
      const isPart = part && !this.#parts.has(part.digest) && (await this.#note(part))
      if (!isPart) await removeTree(path.join(paths.spool, entry.name))
    }
  }

  /** @returns how many bytes of this blob an earlier attempt has left; 0 when none */
  partBytes(digest: Digest): number {
    return this.#parts.get(digest)?.sizeBytes ?? 0
  }

  /**
   * The same for a download that goes on with them: until `open` or `unclaim` nobody removes them. What another
   * upstream has sent is none of its business.
   */
  claim(digest: Digest, sender: SenderId): number {
    const part = this.#parts.get(digest)
    if (part?.sender !== sender) return 0
    this.#claimed.add(digest)
    return part.sizeBytes
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
   * @param options.resumedBytes what to keep of the part file: at most what `claim` has told; 0: it is removed
   * @param options.isKept false for a download beside another one of the same digest: it has no file
   */
  async open(digest: Digest, options: OpenOptions): Promise<Spool> {
    const { clock, digester, onStorageFailure, paths } = this.#deps
    const { isKept, resumedBytes, sender, sizeBytes } = options
    const deps = { clock, digester, lag: this.#lag, onStorageFailure }
    if (!isKept) return Spool.open(deps, { digest, sizeBytes, file: undefined, resumedBytes: 0 })
    this.unclaim(digest)
    if (resumedBytes === 0) await this.#drop(digest)
    this.#parts.delete(digest)
    await this.#dropping.get(digest)
    const file = paths.spoolFile(digest, sender)
    return Spool.open(deps, { digest, sizeBytes, file, resumedBytes })
  }

  /**
   * Keeps what an unsuccessful spool has received for the next attempt, or removes it.
   *
   * @param options.sender as for `open`
   * @param options.isDoubtful it is known to be of no use, though it cannot be told from the spool
   */
  async giveBack(
    spool: Spool,
    { isDoubtful = false, sender }: { sender: SenderId; isDoubtful?: boolean },
  ): Promise<void> {
    const { digest } = spool
    const { clock, paths } = this.#deps
    const isKept = spool.isResumable && !isDoubtful
    if (isKept) await this.#note({ digest, sender }, clock.now())
    else await removeFile(paths.spoolFile(digest, sender))
  }

  /** Removes part files that nobody has asked for again for `ageMs`. @returns how many */
  async purge(ageMs: number): Promise<number> {
    const { clock, paths } = this.#deps
    let count = 0
    for (const { digest, sender } of this.parts()) {
      // Somebody may have removed it.
      const atMs = (await modifiedAtMs(paths.spoolFile(digest, sender))) ?? 0
      if (clock.now() - atMs < ageMs) continue
      if ((await this.remove(digest)) > 0) count++
    }
    return count
  }

  async #drop(digest: Digest): Promise<void> {
    const { paths } = this.#deps
    const part = this.#parts.get(digest)
    if (!part) return
    const { sender, sizeBytes } = part
    this.#parts.delete(digest)
    this.#droppingBytes += sizeBytes
    const dropping = discardFile(paths.spoolFile(digest, sender), paths.temporary)
    this.#dropping.set(digest, dropping)
    try {
      await dropping
    } finally {
      this.#droppingBytes -= sizeBytes
      this.#dropping.delete(digest)
    }
  }

  /** @param atMs when it was written last, if the file need not tell. @returns false when there is nothing in it */
  async #note(
    { digest, sender }: Pick<PartFile, 'digest' | 'sender'>,
    atMs?: number,
  ): Promise<boolean> {
    const file = this.#deps.paths.spoolFile(digest, sender)
    try {
      const { mtimeMs, size } = await stat(file)
      const part = { digest, sender, sizeBytes: size, lastUsedMs: atMs ?? mtimeMs }
      if (size > 0) this.#parts.set(digest, part)
      return size > 0
    } catch (error) {
      if (isAbsent(error)) return false
      throw new StorageError('stat', file, error)
    }
  }
}

function parsePart(name: string): Pick<PartFile, 'digest' | 'sender'> | undefined {
  const [, algorithm, hex, sender] = PART_FILE.exec(name) ?? []
  const digest = parseDigest(`${algorithm}:${hex}`)
  return digest && { digest, sender: sender as SenderId }
}
