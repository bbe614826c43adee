// The opened database behind the content index: whoever reads or writes it goes through here. lmdb maps the file
// into memory and never lets go of a page that was read, so that reading all of it once makes all of it count as the
// process's own. Only closing unmaps; so when much is mapped it is closed, and opened again at once.
//
// Invariant: nobody meets a closed database, and takes what is there for absent. When all is written down, lmdb closes
// within the turn of the event loop in which it is told to, and in that turn nothing else runs; writes wait. Were
// somebody to read meanwhile nevertheless, lmdb would throw.

import { statSync } from 'node:fs'
import { setImmediate as nextTurn } from 'node:timers/promises'
import type { Logger } from 'pino'
import { StorageError } from '../filesystem.ts'
import { openTables, type IndexDatabase, type IndexTables } from './index-database.ts'
import { mappedBytes } from './mapped-bytes.ts'

/** Mapped since it was last opened, up to which it is left open. A million blobs take 320 MB. */
const MAPPED_MAX_BYTES = 32 * 1024 ** 2
/** Entries looked at between two turns of the event loop. */
const CHUNK_ENTRIES = 2_000

/** Given by tests only. */
export interface IndexHandleOptions {
  /** Of all mapped files. */
  readonly mappedBytes?: () => number
  readonly reopen?: (file: string) => IndexDatabase
}

export interface IndexHandleDeps extends IndexHandleOptions {
  readonly file: string
  readonly logger: Logger
  /** lmdb has found something in the file that it would never have written. */
  readonly onDamage: () => void
}

export class IndexHandle {
  readonly #deps: Required<IndexHandleDeps>
  readonly #identity: string | undefined
  /** Undefined: closed, or it could not be opened again. */
  #opened: IndexDatabase | undefined
  #mappedBefore: number
  #commits = 0
  /** Being closed and opened again: commits wait for it. */
  #lettingGo: Promise<void> | undefined
  #isLost = false
  #hasFailed = false
  #isDamaged = false
  /** Iterators under way, which would read a closed database. */
  #iterators = 0

  constructor(deps: IndexHandleDeps, database: IndexDatabase) {
    this.#deps = { mappedBytes, reopen: openTables, ...deps }
    this.#opened = database
    this.#identity = identityOf(deps.file)
    this.#mappedBefore = this.#deps.mappedBytes()
  }

  /** Whether there is anything to be found in it. */
  get isOpen(): boolean {
    return this.#opened !== undefined
  }

  /** To be used before anything is awaited, and not kept. */
  get database(): IndexDatabase | undefined {
    return this.#opened
  }

  /** The same for what is read one by one, as far as somebody wants to. */
  *iterate<T>(read: (database: IndexDatabase) => Iterable<T>): Generator<T> {
    if (!this.#opened) return
    this.#iterators++
    try {
      yield* read(this.#opened)
    } finally {
      this.#iterators--
    }
  }

  /**
   * The entries of a table in the order of their keys; gives way to other work after each chunk.
   *
   * @throws {StorageError} it was closed in the middle
   */
  async *chunksOf(
    name: keyof IndexTables,
    range: { start?: Buffer; end?: Buffer } = {},
  ): AsyncGenerator<{ key: Buffer; value: Buffer }[]> {
    if (!this.#opened) return
    let { start } = range
    for (;;) {
      const bounds = {
        ...(start ? { start } : {}),
        ...(range.end ? { end: range.end } : {}),
        limit: CHUNK_ENTRIES,
      }
      const table = this.#opened?.[name]
      if (!table) throw this.#error('read', new Error('it was closed meanwhile'))
      const chunk = [...table.getRange(bounds)]
      if (chunk.length > 0) yield chunk
      const last = chunk.at(-1)
      if (!last || chunk.length < CHUNK_ENTRIES) return
      // The smallest key after the last one.
      start = Buffer.concat([last.key, Buffer.alloc(1)])
      await this.letGo()
      await nextTurn()
    }
  }

  /**
   * @param change begins it, at once
   * @throws {StorageError} it is not made
   */
  async commit(change: (database: IndexDatabase) => Promise<unknown>): Promise<void> {
    while (this.#lettingGo) await this.#lettingGo
    if (this.#isLost) this.#openAgain()
    if (!this.#opened) throw this.#error('write', new Error('it is closed'))
    this.#commits++
    try {
      await change(this.#opened)
      this.#hasFailed = false
    } catch (error) {
      if (error instanceof Error && 'commitError' in error) {
        this.#hasFailed = true
        // lmdb tells the reason by a promise of its own, which nobody may have asked for.
        if (error.commitError instanceof Promise) {
          error.commitError.catch((reason: unknown) => this.#judge(reason))
        }
      }
      this.#judge(error)
      throw this.#error('write', error)
    } finally {
      this.#commits--
    }
  }

  /**
   * After a commit that failed there is nothing to flush, and lmdb would wait for it for ever.
   *
   * @returns whether all is written down, and it was closed
   */
  async close(): Promise<boolean> {
    await this.#lettingGo
    const root = this.#opened?.root
    if (this.#hasFailed || !root) return false
    // Nobody reads what is being closed.
    this.#opened = undefined
    await root.flushed
    await root.close()
    return true
  }

  /** Unmaps what was read, if that is much. Takes a millisecond, and until what was committed is on disk. */
  async letGo(): Promise<void> {
    if (this.#lettingGo || this.#commits > 0 || this.#iterators > 0) return
    // After a commit that failed there is nothing to flush, and lmdb would wait for it for ever.
    if (!this.#opened || this.#hasFailed) return
    if (this.#deps.mappedBytes() - this.#mappedBefore <= MAPPED_MAX_BYTES) return
    this.#lettingGo = this.#reopen(this.#opened).finally(() => {
      this.#lettingGo = undefined
    })
    await this.#lettingGo
  }

  async #reopen({ root }: IndexDatabase): Promise<void> {
    try {
      await root.flushed
    } catch {
      return
    }
    // A turn of its own: what was to be done in the last one is done.
    await nextTurn()
    if (this.#iterators > 0) return
    // If another file has its name by now, what is mapped is all that there is of this one.
    if (identityOf(this.#deps.file) !== this.#identity) return
    // If it fails it is closed nevertheless, or as good as that.
    await root.close().catch(() => undefined)
    this.#opened = undefined
    this.#openAgain()
  }

  /** If it fails, it is as if there were no index, until a write finds that it succeeds. */
  #openAgain(): void {
    const { file, logger, reopen } = this.#deps
    let database: IndexDatabase | undefined
    try {
      database = reopen(file)
      if (identityOf(file) !== this.#identity) throw new Error('another file has its name')
      this.#opened = database
      this.#mappedBefore = this.#deps.mappedBytes()
      if (this.#isLost) logger.info('the index of the content could be opened again')
      this.#isLost = false
    } catch (error) {
      database?.root.close().catch(() => undefined)
      const isKnown = this.#isLost
      this.#isLost = true
      if (isKnown) return
      logger.error(
        { err: this.#error('open', error) },
        'lost the index of the content: nothing expires until it can be opened again, or after a restart',
      )
    }
  }

  #judge(error: unknown): void {
    if (this.#isDamaged || !isDamage(error)) return
    this.#isDamaged = true
    this.#deps.onDamage()
    this.#deps.logger.error(
      { err: error },
      'the index of the content is damaged: nothing more is noted in it; restart the cache, which rebuilds it',
    )
  }

  #error(operation: string, cause: unknown): StorageError {
    return new StorageError(operation, this.#deps.file, cause)
  }
}

/** lmdb's own numbers are negative; the system's, of a disk that is full, are not. */
function isDamage(error: unknown): boolean {
  const code = error instanceof Error && 'code' in error ? error.code : undefined
  return typeof code === 'number' && code < 0
}

/** @returns undefined when there is no such file */
function identityOf(file: string): string | undefined {
  try {
    const { dev, ino } = statSync(file)
    return `${dev}:${ino}`
  } catch {
    return undefined
  }
}
