// Lists: the tags of a repository and the referrers of a manifest come from the upstream and are remembered
// for as long as a tag is; the catalog is what is stored here. When the upstream fails, tags are those that
// are stored, and referrers those that were seen last.

import { LRUCache } from 'lru-cache'
import type { Clock } from '../clock.ts'
import type { Digest } from '../oci/digest.ts'
import { sortKeyOf, type RepositoryName } from '../oci/reference.ts'
import type { RepositoryIndex } from '../storage/repository-index.ts'
import { UpstreamError } from '../upstream/upstream-error.ts'
import type { Freshness } from './answer.ts'
import { clientError, isAbsence } from './failure.ts'
import { InFlight } from './in-flight.ts'
import { sharedKey, type Repository } from './repositories.ts'
import type { StorageGuard } from './storage-guard.ts'

const REMEMBERED_MAX_BYTES = 16 * 1024 * 1024
/** Rough cost of a tag in memory. */
const TAG_BYTES = 64
/** Walking a large tree takes a while; a list that is a moment old is good enough for people. */
const CATALOG_TTL_MS = 5_000

export interface Page {
  /** The most names to return; undefined: all. */
  readonly count: number | undefined
  /** Names up to and including this one are left out; it need not exist. */
  readonly last: string | undefined
}

export interface TagsAnswer {
  readonly tags: readonly string[]
  /** The page after this one; undefined when this is the last. */
  readonly next: Page | undefined
  readonly freshness: Freshness
}

export interface ReferrersAnswer {
  /** An image index, as the upstream sent it. */
  readonly bytes: Buffer
  readonly filtersApplied: string | undefined
  /** Opaque; undefined when this is the last page. */
  readonly nextPage: string | undefined
  readonly freshness: Freshness
}

export interface CatalogAnswer {
  readonly repositories: readonly string[]
  readonly next: Page | undefined
}

interface Remembered<Answer> {
  readonly answer: Answer
  readonly asOfMs: number
}

export interface ListingCacheDeps {
  readonly clock: Clock
  readonly index: RepositoryIndex
  readonly storage: StorageGuard
}

export class ListingCache {
  readonly #deps: ListingCacheDeps
  readonly #tags = new Listings<TagsAnswer>((answer) => answer.tags.length * TAG_BYTES)
  readonly #referrers = new Listings<ReferrersAnswer>((answer) => answer.bytes.length)
  readonly #catalogs = new InFlight<'catalog', RepositoryName[]>()
  #catalog: Remembered<RepositoryName[]> | undefined

  constructor(deps: ListingCacheDeps) {
    this.#deps = deps
  }

  /** @throws {RegistryError} NAME_UNKNOWN, UNAVAILABLE */
  async tags(repository: Repository, page: Page): Promise<TagsAnswer> {
    const key = JSON.stringify([repository.storedName, page.count, page.last])
    const { name, registry, upstream } = repository
    const ask = async (): Promise<TagsAnswer> => {
      const { count, last } = page
      const { next, tags } = await registry.listTags(name, {
        ...(count === undefined ? {} : { count }),
        ...(last === undefined ? {} : { last }),
      })
      return { tags, next, freshness: this.#fresh(repository, 'miss') }
    }
    try {
      return await this.#answer(repository, this.#tags, key, ask)
    } catch (error) {
      const stored = isAbsence(error) ? undefined : await this.#storedTags(repository, page, error)
      if (stored) return stored
      throw clientError(error, upstream.name, 'NAME_UNKNOWN')
    }
  }

  /**
   * @param options.page what `nextPage` of an earlier answer said
   * @throws {RegistryError} MANIFEST_UNKNOWN (also when the upstream has no such API: clients then look for
   *   the referrers tag), UNAVAILABLE
   */
  async referrers(
    repository: Repository,
    digest: Digest,
    options: { artifactType: string | undefined; page: string | undefined },
  ): Promise<ReferrersAnswer> {
    const { artifactType } = options
    const page = options.page === '' ? undefined : options.page
    const { name, registry, upstream } = repository
    const key = JSON.stringify([repository.storedName, digest, artifactType, page])
    const ask = async (): Promise<ReferrersAnswer> => ({
      ...(await registry.getReferrers(name, digest, {
        ...(artifactType === undefined ? {} : { artifactType }),
        ...(page === undefined ? {} : { page }),
      })),
      freshness: this.#fresh(repository, 'miss'),
    })
    try {
      return await this.#answer(repository, this.#referrers, key, ask)
    } catch (error) {
      const last = isAbsence(error) ? undefined : this.#referrers.peek(key)
      if (last && error instanceof UpstreamError) return stale(last.answer, last.asOfMs, error)
      throw clientError(error, upstream.name, 'MANIFEST_UNKNOWN')
    }
  }

  /**
   * What is stored, whatever the upstreams have.
   *
   * @param nameOf what the client knows a stored repository by; undefined leaves it out
   */
  async catalog(
    { count, last }: Page,
    nameOf: (storedName: RepositoryName) => string | undefined = (name) => name,
  ): Promise<CatalogAnswer> {
    const stored = await this.#repositories()
    const names = stored.flatMap((name) => nameOf(name) ?? [])
    const { items, next } = pageOf(names, { count, last })
    return { repositories: items, next }
  }

  async #repositories(): Promise<RepositoryName[]> {
    const nowMs = this.#deps.clock.monotonic()
    if (this.#catalog && nowMs - this.#catalog.asOfMs < CATALOG_TTL_MS) return this.#catalog.answer
    const walk = this.#catalogs.run('catalog', () => this.#deps.index.listRepositories())
    const answer = await walk.value
    this.#catalog = { answer, asOfMs: nowMs }
    return answer
  }

  async #answer<Answer extends { freshness: Freshness }>(
    repository: Repository,
    listings: Listings<Answer>,
    key: string,
    ask: () => Promise<Answer>,
  ): Promise<Answer> {
    const known = listings.peek(key)
    const nowMs = this.#deps.clock.now()
    if (known && known.asOfMs <= nowMs && nowMs - known.asOfMs < repository.upstream.tagTtlMs) {
      return { ...known.answer, freshness: this.#fresh(repository, 'hit', known.asOfMs) }
    }
    const { isJoined, value } = listings.asking.run(sharedKey(repository, key), ask)
    const answer = await value
    if (isJoined) return { ...answer, freshness: this.#fresh(repository, 'coalesced') }
    listings.remember(key, { answer, asOfMs: this.#deps.clock.now() })
    return answer
  }

  #fresh(
    { upstream }: Repository,
    outcome: Freshness['outcome'],
    asOfMs = this.#deps.clock.now(),
  ): Freshness {
    return {
      outcome,
      asOfMs,
      isStored: outcome === 'miss',
      freshUntilMs: asOfMs + upstream.tagTtlMs,
    }
  }

  /** @returns undefined when there are none */
  async #storedTags(
    repository: Repository,
    page: Page,
    error: unknown,
  ): Promise<TagsAnswer | undefined> {
    if (!(error instanceof UpstreamError)) return undefined
    const { clock, index, storage } = this.#deps
    const stored = await storage.attempt(() => index.listTags(repository.storedName))
    if (!stored || stored.length === 0) return undefined
    const { items, next } = pageOf(stored, page)
    return stale(
      { tags: items, next, freshness: this.#fresh(repository, 'stale') },
      clock.now(),
      error,
    )
  }
}

/** Answers of one kind: remembered, and asked for once at a time. */
class Listings<Answer> {
  readonly asking = new InFlight<string, Answer>()
  readonly #remembered: LRUCache<string, Remembered<Answer>>

  constructor(sizeOf: (answer: Answer) => number) {
    this.#remembered = new LRUCache({
      maxSize: REMEMBERED_MAX_BYTES,
      sizeCalculation: ({ answer }, key) => sizeOf(answer) + key.length + TAG_BYTES,
    })
  }

  peek(key: string): Remembered<Answer> | undefined {
    return this.#remembered.get(key)
  }

  remember(key: string, remembered: Remembered<Answer>): void {
    this.#remembered.set(key, remembered)
  }
}

function stale<Answer extends { freshness: Freshness }>(
  answer: Answer,
  asOfMs: number,
  error: UpstreamError,
): Answer {
  return { ...answer, freshness: { outcome: 'stale', asOfMs, staleReason: error.message } }
}

/** Cuts a page out of a complete list. `last` is exclusive, as in the distribution-spec. */
function pageOf<Name extends string>(
  names: readonly Name[],
  { count, last }: Page,
): { items: Name[]; next: Page | undefined } {
  const start = last === undefined ? 0 : indexAfter(names, last)
  const items = names.slice(start, count === undefined ? undefined : start + count)
  const isCut = count !== undefined && count > 0 && start + count < names.length
  return { items, next: isCut ? { count, last: items.at(-1) } : undefined }
}

function indexAfter(names: readonly string[], last: string): number {
  const at = names.indexOf(last)
  if (at >= 0) return at + 1
  const order = sortKeyOf(last)
  const next = names.findIndex((name) => sortKeyOf(name) > order)
  return next < 0 ? names.length : next
}
