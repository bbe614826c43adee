// What each tag pointed to when its upstream was last asked, and how long that is taken for granted. The
// disk remembers the digest, memory remembers the time: after a restart every tag is asked about once.

import { LRUCache } from 'lru-cache'
import type { Clock } from '../clock.ts'
import type { Digest } from '../oci/digest.ts'
import type { RepositoryName, Tag } from '../oci/reference.ts'
import type { RepositoryIndex } from '../storage/repository-index.ts'
import type { UpstreamError } from '../upstream/upstream-error.ts'
import type { DiskBudget } from './disk-budget.ts'
import type { Inventory } from './inventory.ts'
import type { Repository } from './repositories.ts'
import type { StorageGuard } from './storage-guard.ts'

const TAGS_MAX = 50_000
const ABSENT_MAX = 10_000
/** A client that is told "not there" often asks again at once (dockerd: HEAD, then GET). */
const ABSENT_TTL_MAX_MS = 10_000

export interface TagState {
  readonly digest: Digest
  /** Undefined: not since this process started. */
  readonly checkedAtMs: number | undefined
  /** How long it is taken for granted; Infinity: for ever. */
  readonly ttlMs: number
  /** Whether the disk has it; one that was full is told again at the next check. */
  readonly isStored: boolean
}

export class TagTable {
  readonly #clock: Clock
  readonly #index: RepositoryIndex
  readonly #budget: DiskBudget
  readonly #inventory: Inventory
  readonly #storage: StorageGuard
  readonly #tags = new LRUCache<string, TagState>({ max: TAGS_MAX })
  /** By the monotonic clock: one that is set back must not make "not there" last for a day. */
  readonly #absent = new LRUCache<string, { untilMs: number; error: UpstreamError }>({
    max: ABSENT_MAX,
  })

  constructor(deps: {
    clock: Clock
    index: RepositoryIndex
    inventory: Inventory
    budget: DiskBudget
    storage: StorageGuard
  }) {
    this.#clock = deps.clock
    this.#index = deps.index
    this.#inventory = deps.inventory
    this.#budget = deps.budget
    this.#storage = deps.storage
  }

  /** What memory knows. */
  peek(repository: Repository, tag: Tag): TagState | undefined {
    return this.#tags.get(keyOf(repository.storedName, tag))
  }

  /** What memory or the disk knows. */
  async read(repository: Repository, tag: Tag): Promise<TagState | undefined> {
    const known = this.peek(repository, tag)
    if (known) return known
    const read = (): Promise<Digest | undefined> => this.#index.readTag(repository.storedName, tag)
    const digest = await this.#storage.attempt(read)
    const ttlMs = repository.upstream.ttlMsOfTag(tag)
    return digest && { digest, checkedAtMs: undefined, ttlMs, isStored: true }
  }

  isFresh(state: TagState): boolean {
    return this.#clock.now() < this.freshUntilMs(state) && !this.#isFromTheFuture(state)
  }

  /** -Infinity when the upstream has not been asked yet, and the tag may have moved. */
  freshUntilMs({ checkedAtMs, ttlMs }: TagState): number {
    if (ttlMs === Number.POSITIVE_INFINITY) return ttlMs
    return checkedAtMs === undefined ? Number.NEGATIVE_INFINITY : checkedAtMs + ttlMs
  }

  /**
   * The upstream has just said that the tag points to `digest`. The disk is told only when it moved.
   *
   * @param options.isKept whether the disk has the manifest: it must not have a tag without one. Asked again when
   *   room for the tag has been made
   */
  async confirm(
    repository: Repository,
    tag: Tag,
    digest: Digest,
    { isKept }: { isKept: () => boolean },
  ): Promise<TagState> {
    const key = keyOf(repository.storedName, tag)
    const before = await this.read(repository, tag)
    const isKnown = before?.digest === digest && before.isStored
    const checkedAtMs = this.#clock.now()
    const ttlMs = repository.upstream.ttlMsOfTag(tag)
    this.#absent.delete(key)
    // Nobody is told before the disk is: what a client was told, a crash does not take back.
    const isStored = isKnown || (isKept() && (await this.#write(repository, tag, digest, isKept)))
    const state: TagState = { digest, checkedAtMs, ttlMs, isStored }
    this.#tags.set(key, state)
    return state
  }

  /** @returns false when there was no room, or the disk refused */
  async #write(
    { storedName }: Repository,
    tag: Tag,
    digest: Digest,
    isKept: () => boolean,
  ): Promise<boolean> {
    const write = async (): Promise<boolean> => {
      if (!isKept()) return false
      await this.#index.setTag(storedName, tag, digest)
      this.#inventory.addTag(storedName, tag, digest)
      return true
    }
    const keep = (): Promise<boolean | undefined> =>
      this.#budget.keep(this.#inventory.tagBytes, write)
    return (await this.#storage.attempt(keep)) === true
  }

  /**
   * The upstream has just said that there is no such tag. What the disk has is kept: it is served again
   * only if the upstream can't be asked.
   */
  noteAbsent(repository: Repository, tag: Tag, error: UpstreamError): void {
    const key = keyOf(repository.storedName, tag)
    this.#tags.delete(key)
    const ttlMs = Math.min(repository.upstream.ttlMsOfTag(tag), ABSENT_TTL_MAX_MS)
    const untilMs = this.#clock.monotonic() + ttlMs
    this.#absent.set(key, { untilMs, error })
  }

  /** @returns the upstream's answer, if it said a moment ago that there is no such tag */
  recentAbsence(repository: Repository, tag: Tag): UpstreamError | undefined {
    const absence = this.#absent.get(keyOf(repository.storedName, tag))
    return absence && this.#clock.monotonic() < absence.untilMs ? absence.error : undefined
  }

  /** Forgets every tag of a repository that points to `digest`. */
  forget(storedName: RepositoryName, digest: Digest): void {
    for (const [key, state] of this.#tags.entries()) {
      if (state.digest === digest && key.startsWith(`${storedName}:`)) this.#tags.delete(key)
    }
  }

  /** The disk is not what it was: each tag is asked about, and then written again. */
  forgetStored(): void {
    // Setting one makes it the newest. Without a ttl not even those are fresh that never move.
    for (const [key, { digest }] of [...this.#tags.entries()].toReversed()) {
      this.#tags.set(key, { digest, checkedAtMs: undefined, ttlMs: 0, isStored: false })
    }
  }

  /** The clock was set back: an old answer must not stay fresh until it catches up. */
  #isFromTheFuture({ checkedAtMs, ttlMs }: TagState): boolean {
    if (ttlMs === Number.POSITIVE_INFINITY) return false
    return checkedAtMs !== undefined && checkedAtMs > this.#clock.now()
  }
}

function keyOf(storedName: RepositoryName, tag: Tag): string {
  return `${storedName}:${tag}`
}
