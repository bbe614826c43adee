// When each link was last used: what expiry goes by. A cache of what the directory tree says, plus times; an
// index that is lost, torn or from another version is thrown away and rebuilt by scanning, while serving.
// The engine is lmdb: transactions survive `kill -9`, and opening a million entries takes milliseconds.

import { parseDigest, type Digest } from '../oci/digest.ts'
import { parseRepositoryName, type RepositoryName } from '../oci/reference.ts'
import { StorageError } from './filesystem.ts'
import type { LinkKind } from './repository-index.ts'
import {
  COMPLETE_KEY,
  FORMAT,
  openUsageDatabase,
  type StoredValue,
  type UsageDatabase,
  type UsageDatabaseDeps,
} from './usage-database.ts'

export interface UsageEntry {
  readonly digest: Digest
  /** Undefined: bytes that no repository links. */
  readonly repository: RepositoryName | undefined
  readonly kind: LinkKind
  readonly lastUsedMs: number
}

/** First and last key that can be an entry's: digests start with `sha`. */
const FIRST_KEY = 's'
const END_KEY = 't'
/** Entries looked at between two turns of the event loop. */
const CHUNK_ENTRIES = 2_000

export class UsageIndex {
  readonly #deps: UsageDatabaseDeps
  #database: UsageDatabase | undefined
  #opening: Promise<UsageDatabase> | undefined
  #hasFailed = false

  private constructor(deps: UsageDatabaseDeps) {
    this.#deps = deps
  }

  /**
   * Opens the index. On a full disk it knows nothing for the time being, and takes what it is told as soon as
   * there is room: a cache starts on a full disk too.
   */
  static async open(deps: UsageDatabaseDeps): Promise<UsageIndex> {
    const index = new UsageIndex(deps)
    try {
      await index.#ready()
    } catch (error) {
      if (!(error instanceof StorageError)) throw error
      deps.logger.error(
        { err: error },
        'no index of last uses: nothing expires until there is room',
      )
    }
    return index
  }

  /** Whether the index has everything that is on disk. */
  get isComplete(): boolean {
    return this.#database?.get(COMPLETE_KEY) === FORMAT
  }

  /** @throws {StorageError} */
  async markComplete(isComplete: boolean): Promise<void> {
    const database = await this.#ready()
    await this.#commit(
      isComplete ? database.put(COMPLETE_KEY, FORMAT) : database.remove(COMPLETE_KEY),
    )
  }

  get(digest: Digest, repository: RepositoryName | undefined): UsageEntry | undefined {
    const key = keyOf(digest, repository)
    return entryOf(key, this.#database?.get(key))
  }

  /**
   * Adds or replaces. The result of a batch is all or nothing, and survives a crash once it resolves.
   *
   * @throws {StorageError} nothing of it is kept
   */
  async put(entries: readonly UsageEntry[]): Promise<void> {
    const database = await this.#ready()
    const write = (): void => {
      for (const { digest, kind, lastUsedMs, repository } of entries) {
        const value: StoredValue = [kind === 'blob' ? 0 : 1, lastUsedMs]
        // The batch tells whether all of it succeeded.
        database.put(keyOf(digest, repository), value).catch(() => undefined)
      }
    }
    await this.#commit(database.batch(write))
  }

  /** @throws {StorageError} */
  async remove(digest: Digest, repository: RepositoryName | undefined): Promise<void> {
    const database = await this.#ready()
    await this.#commit(database.remove(keyOf(digest, repository)))
  }

  /** Entries of one digest: who still links it. */
  ofDigest(digest: Digest): UsageEntry[] {
    const range = this.#database?.getRange({ start: `${digest} `, end: `${digest}!` }) ?? []
    return [...range].flatMap(({ key, value }) => entryOf(key, value) ?? [])
  }

  /** Every entry, in the order of digests; gives way to other work now and then. */
  async *entries(): AsyncGenerator<UsageEntry> {
    if (this.#database) yield* entriesIn(this.#database)
  }

  /** After a write that failed there is nothing to flush, and lmdb would wait for it for ever. */
  async close(): Promise<void> {
    if (this.#hasFailed) return
    await this.#database?.flushed
    await this.#database?.close()
  }

  /** @throws {StorageError} there is no room for it */
  async #ready(): Promise<UsageDatabase> {
    if (this.#database) return this.#database
    this.#opening ??= openUsageDatabase(this.#deps, readThrough).finally(() => {
      this.#opening = undefined
    })
    this.#database = await this.#opening
    return this.#database
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
      throw new StorageError('write', this.#deps.paths.index, error)
    }
  }
}

async function* entriesIn(database: UsageDatabase): AsyncGenerator<UsageEntry> {
  for (let start = FIRST_KEY; ;) {
    const chunk = [...database.getRange({ start, end: END_KEY, limit: CHUNK_ENTRIES })]
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

async function readThrough(database: UsageDatabase): Promise<void> {
  for await (const entry of entriesIn(database)) void entry
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
