// The file of one stored blob: what there is to know of it, and reading it in pieces.

import { close, fstat, open, read, type Stats } from 'node:fs'
import { stat } from 'node:fs/promises'
import type { ByteSource } from './byte-source.ts'
import { allocatedBytes } from './disk-space.ts'
import { READ, StorageError, isAbsent } from './filesystem.ts'

export interface BlobInfo {
  readonly sizeBytes: number
  readonly storedAtMs: number
  /** What it takes on disk. */
  readonly allocatedBytes: number
  /** With the size and the times: which file it is. One that is replaced or written to is another one. */
  readonly inode: number
  readonly changedAtMs: number
}

/** An open blob. Whoever holds it closes it; removing the blob meanwhile does not disturb the reader. */
export class BlobFile implements ByteSource, BlobInfo {
  readonly sizeBytes: number
  readonly storedAtMs: number
  readonly allocatedBytes: number
  readonly inode: number
  readonly changedAtMs: number
  readonly #fd: number
  readonly #path: string
  readonly #letGo: () => void
  #readsRunning = 0
  #closed = false

  /** @param letGo called when it is closed */
  constructor(fd: number, file: string, stats: Stats, letGo: () => void) {
    this.#fd = fd
    this.#path = file
    this.#letGo = letGo
    const info = infoOf(stats)
    this.sizeBytes = info.sizeBytes
    this.storedAtMs = info.storedAtMs
    this.allocatedBytes = info.allocatedBytes
    this.inode = info.inode
    this.changedAtMs = info.changedAtMs
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
    this.#letGo()
    this.#release()
  }

  /** The descriptor's number may be given to another file the moment it is closed: no read may be left. */
  #release(): void {
    if (this.#readsRunning === 0) close(this.#fd, ignoreFailure)
  }
}

/**
 * @param hold called once it is open; what it returns is called when it is closed
 * @returns undefined when there is none
 * @throws {StorageError}
 */
export function openBlobFile(file: string, hold: () => () => void): Promise<BlobFile | undefined> {
  return new Promise((resolve, reject) => {
    open(file, READ, (openError, fd) => {
      if (openError) {
        if (isAbsent(openError)) resolve(undefined)
        else reject(new StorageError('open', file, openError))
        return
      }
      fstat(fd, (statError, stats) => {
        const failure = statError ?? (stats.isFIFO() ? new Error('it is a pipe') : undefined)
        if (failure) {
          close(fd, ignoreFailure)
          reject(new StorageError('open', file, failure))
        } else resolve(new BlobFile(fd, file, stats, hold()))
      })
    })
  })
}

/** @returns undefined when there is none. @throws {StorageError} */
export async function statBlobFile(file: string): Promise<BlobInfo | undefined> {
  try {
    return infoOf(await stat(file))
  } catch (error) {
    if (isAbsent(error)) return undefined
    throw new StorageError('stat', file, error)
  }
}

function infoOf(stats: Stats): BlobInfo {
  const { ctimeMs, ino, mtimeMs, size } = stats
  return {
    sizeBytes: size,
    storedAtMs: mtimeMs,
    allocatedBytes: allocatedBytes(stats),
    inode: ino,
    changedAtMs: ctimeMs,
  }
}

/** What was only read has nothing to lose; without a callback Node would end the process. */
function ignoreFailure(): void {
  // Some network file systems report their troubles here.
}
