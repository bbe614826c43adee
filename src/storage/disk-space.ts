// What the file system has room for, and what things cost on it.

import { randomUUID } from 'node:crypto'
import { mkdir, rmdir, stat, statfs } from 'node:fs/promises'
import path from 'node:path'
import { StorageError, isAbsent, listDirectory } from './filesystem.ts'
import type { StoragePaths } from './paths.ts'

export interface DiskSpace {
  readonly totalBytes: number
  /** For users that are not root. */
  readonly freeBytes: number
}

/** What files cost beside their bytes. */
export interface FileCosts {
  /** Files take whole blocks. */
  readonly blockBytes: number
  /** Of a directory with one entry: 0 where directories live in their inodes. */
  readonly directoryBytes: number
}

/** Larger blocks than these are not what a small file costs: network file systems name their transfer size. */
const BLOCK_MAX_BYTES = 64 * 1024
/** stat counts in these, whatever the file system's own blocks are. */
const STAT_BLOCK_BYTES = 512

/** @throws {StorageError} */
export async function diskSpace({ root }: StoragePaths): Promise<DiskSpace> {
  try {
    const { bavail, blocks, bsize } = await statfs(root)
    return { totalBytes: blocks * bsize, freeBytes: bavail * bsize }
  } catch (error) {
    throw new StorageError('measure', root, error)
  }
}

/** Tries it out. @throws {StorageError} */
export async function fileCosts(paths: StoragePaths): Promise<FileCosts> {
  const probe = path.join(paths.temporary, randomUUID())
  try {
    const { bsize } = await statfs(paths.root)
    await mkdir(probe)
    const { blocks } = await stat(probe)
    await rmdir(probe)
    return {
      blockBytes: Math.min(bsize, BLOCK_MAX_BYTES),
      directoryBytes: blocks * STAT_BLOCK_BYTES,
    }
  } catch (error) {
    throw new StorageError('measure', paths.temporary, error)
  }
}

export function allocatedBytes({ blocks }: { readonly blocks: number }): number {
  return blocks * STAT_BLOCK_BYTES
}

/** What is not content, but part of what the cache may have: index, quarantine, and the directories of all of it. */
export class OwnBytes {
  readonly #paths: StoragePaths
  readonly #indexBytes: () => number
  #bytes = 0
  /** Since the last measuring began. */
  #addedBytes = 0

  /** @param deps.indexBytes of the files in the index, which grows by leaps, and knows itself how large it is */
  constructor(deps: { paths: StoragePaths; indexBytes: () => number }) {
    this.#paths = deps.paths
    this.#indexBytes = deps.indexBytes
  }

  /** The index now, the rest when it was last measured. */
  get bytes(): number {
    return this.#bytes + this.#indexBytes()
  }

  /** What has come here is counted at once. */
  add(bytes: number): void {
    this.#bytes += bytes
    this.#addedBytes += bytes
  }

  /** @throws {StorageError} */
  async measure(): Promise<void> {
    this.#addedBytes = 0
    const { blobs, index, quarantine, repositories, root, schedulerState, spool, temporary } =
      this.#paths
    let sum = (await allocated(schedulerState)) + (await allocatedBytesIn(quarantine))
    const leaves = [index, quarantine, spool, temporary, blobs, repositories]
    for (const directory of withParents(leaves, root)) sum += await allocated(directory)
    // What came meanwhile may have been seen or not.
    this.#bytes = sum + this.#addedBytes
  }
}

/** Of all files in a directory. @throws {StorageError} */
export async function allocatedBytesIn(directory: string): Promise<number> {
  let sum = 0
  for (const { name } of await listDirectory(directory)) {
    sum += await allocated(path.join(directory, name))
  }
  return sum
}

/** Up to `root`, each once. */
function withParents(directories: readonly string[], root: string): Set<string> {
  const all = new Set([root])
  for (const directory of directories) {
    for (let each = directory; each !== root; each = path.dirname(each)) all.add(each)
  }
  return all
}

async function allocated(file: string): Promise<number> {
  try {
    return allocatedBytes(await stat(file))
  } catch (error) {
    if (isAbsent(error)) return 0
    throw new StorageError('stat', file, error)
  }
}
