// When each link was last used: what expiry goes by. A cache of what the directory tree says, plus times; an
// index that is lost, torn or from another version is thrown away and rebuilt by scanning, while serving.
// The engine is lmdb: transactions survive `kill -9`, and opening a million entries takes milliseconds.

import path from 'node:path'
import { open, type RootDatabase } from 'lmdb'
import type { Logger } from 'pino'
import { parseDigest, type Digest } from '../oci/digest.ts'
import { parseRepositoryName, type RepositoryName } from '../oci/reference.ts'
import {
  StorageError,
  ensureDirectory,
  readSmallFile,
  removeFile,
  removeTree,
} from './filesystem.ts'
import type { FileWriter } from './file-writer.ts'
import { isLmdbFileSound } from './lmdb-file.ts'
import type { StoragePaths } from './paths.ts'
import type { LinkKind } from './repository-index.ts'

export interface UsageEntry {
  readonly digest: Digest
  /** Undefined: bytes that no repository links. */
  readonly repository: RepositoryName | undefined
  readonly kind: LinkKind
  readonly lastUsedMs: number
}

type StoredValue = readonly [kind: 0 | 1, lastUsedMs: number]

/** Another meaning of the stored values gets another number, and old ones are rebuilt. */
const FORMAT = 1
/** Says that a scan has seen the whole tree. Sorts before every digest. */
const COMPLETE_KEY = '!complete'
/** First and last key that can be an entry's: digests start with `sha`. */
const FIRST_KEY = 's'
const END_KEY = 't'
/** Entries looked at between two turns of the event loop. */
const CHUNK_ENTRIES = 2_000

export interface UsageIndexDeps {
  readonly paths: StoragePaths
  readonly writer: FileWriter
  readonly logger: Logger
}

export class UsageIndex {
  readonly #database: RootDatabase<StoredValue | number, string>
  readonly #file: string
  #hasFailed = false

  private constructor(file: string) {
    this.#file = file
    this.#database = open<StoredValue | number, string>({ path: file })
    const format = this.#database.get(COMPLETE_KEY)
    if (format !== undefined && format !== FORMAT) {
      void this.#database.close()
      throw new Error(`its format is ${String(format)}, expected ${FORMAT}`)
    }
  }

  /**
   * Opens the index. What cannot be read is discarded. A damaged map can end the whole process without an
   * exception; a marker file tells that this has happened, so that it happens once at most.
   */
  static async open(deps: UsageIndexDeps): Promise<UsageIndex> {
    const { logger, paths, writer } = deps
    const marker = path.join(paths.index, 'opening')
    const startOver = async (reason: unknown): Promise<void> => {
      logger.warn({ err: reason }, 'the index of last uses cannot be read; it is rebuilt')
      await removeTree(paths.index)
      await ensureDirectory(paths.index)
    }
    const crashed = await readSmallFile(marker).then(
      (bytes) => bytes !== undefined,
      () => true,
    )
    if (crashed) await startOver(new Error('the last attempt to read it ended the process'))
    await ensureDirectory(paths.index).catch(startOver)
    const file = fileIn(paths)
    if (!(await isLmdbFileSound(file))) await startOver(new Error(`${file} is damaged`))
    // A full disk must not stop the start; without the marker a crash is met by the check above alone.
    await writer
      .write(marker, 'removed when the index has been read once\n')
      .catch((error: unknown) => {
        logger.warn({ err: error }, 'could not note that the index is being opened')
      })
    let index: UsageIndex
    try {
      index = new UsageIndex(file)
      for await (const entry of index.entries()) void entry
    } catch (error) {
      await startOver(error)
      index = new UsageIndex(file)
    }
    await removeFile(marker)
    return index
  }

  /** Whether the index has everything that is on disk. */
  get isComplete(): boolean {
    return this.#database.get(COMPLETE_KEY) === FORMAT
  }

  async markComplete(isComplete: boolean): Promise<void> {
    const database = this.#database
    await this.#commit(
      isComplete ? database.put(COMPLETE_KEY, FORMAT) : database.remove(COMPLETE_KEY),
    )
  }

  get(digest: Digest, repository: RepositoryName | undefined): UsageEntry | undefined {
    const key = keyOf(digest, repository)
    return entryOf(key, this.#database.get(key))
  }

  /** Adds or replaces. The result of a batch is all or nothing, and survives a crash once it resolves. */
  async put(entries: readonly UsageEntry[]): Promise<void> {
    const write = (): void => {
      for (const { digest, kind, lastUsedMs, repository } of entries) {
        const value: StoredValue = [kind === 'blob' ? 0 : 1, lastUsedMs]
        // The batch tells whether all of it succeeded.
        this.#database.put(keyOf(digest, repository), value).catch(() => undefined)
      }
    }
    await this.#commit(this.#database.batch(write))
  }

  async remove(digest: Digest, repository: RepositoryName | undefined): Promise<void> {
    await this.#commit(this.#database.remove(keyOf(digest, repository)))
  }

  /** Entries of one digest: who still links it. */
  ofDigest(digest: Digest): UsageEntry[] {
    const range = this.#database.getRange({ start: `${digest} `, end: `${digest}!` })
    return [...range].flatMap(({ key, value }) => entryOf(key, value) ?? [])
  }

  /** Every entry, in the order of digests; gives way to other work now and then. */
  async *entries(): AsyncGenerator<UsageEntry> {
    for (let start = FIRST_KEY; ;) {
      const chunk = [...this.#database.getRange({ start, end: END_KEY, limit: CHUNK_ENTRIES })]
      for (const { key, value } of chunk) {
        const entry = entryOf(key, value)
        if (entry) yield entry
      }
      const last = chunk.at(-1)
      if (!last || chunk.length < CHUNK_ENTRIES) return
      // The smallest key after the last one.
      start = `${last.key}\u0001`
      await new Promise((resolve) => {
        setImmediate(resolve)
      })
    }
  }

  /** After a write that failed there is nothing to flush, and lmdb would wait for it for ever. */
  async close(): Promise<void> {
    if (this.#hasFailed) return
    await this.#database.flushed
    await this.#database.close()
  }

  async #commit(change: Promise<unknown>): Promise<void> {
    try {
      await change
      this.#hasFailed = false
    } catch (error) {
      this.#hasFailed = true
      // lmdb tells the reason by a promise of its own, which nobody may have asked for.
      const reason =
        error instanceof Error && 'commitError' in error ? error.commitError : undefined
      if (reason instanceof Promise) reason.catch(() => undefined)
      throw new StorageError('write', this.#file, error)
    }
  }
}

function fileIn(paths: StoragePaths): string {
  return path.join(paths.index, 'usage.mdb')
}

function keyOf(digest: Digest, repository: RepositoryName | undefined): string {
  return `${digest} ${repository ?? ''}`
}

/** @returns undefined for what is not an entry, whatever put it there */
function entryOf(key: string, value: unknown): UsageEntry | undefined {
  if (!Array.isArray(value)) return undefined
  const [code, lastUsedMs] = value as readonly unknown[]
  const separator = key.indexOf(' ')
  const digest = parseDigest(key.slice(0, separator))
  const name = key.slice(separator + 1)
  const repository = name === '' ? undefined : parseRepositoryName(name)
  if (!digest || typeof lastUsedMs !== 'number' || (name !== '' && !repository)) return undefined
  return { digest, repository, kind: code === 0 ? 'blob' : 'manifest', lastUsedMs }
}
