// How long content is kept, by the rules: what is pinned never goes, everything else is due when it has not been
// used for its ttl. Pure: what was used when, and what is on disk, is the inventory's.

import { LRUCache } from 'lru-cache'
import type { Clock } from '../clock.ts'
import type { Digest } from '../oci/digest.ts'
import { parseImagePattern, type ImagePattern } from '../oci/pattern.ts'
import type { RepositoryName, Tag } from '../oci/reference.ts'

/** One entry of `storage.retention`. */
export interface RetentionRule {
  /** As `parseImagePattern` reads it. */
  readonly match: string
  readonly isPinned: boolean
  /** Since the last use; 0: for ever; undefined: not this rule's business. */
  readonly ttlMs: number | undefined
}

export interface RetentionOptions {
  /** `proxy.ttl`, since the last use; 0 keeps everything. */
  readonly ttlMs: number
  /** Where it differs: by upstream, which the name begins with. */
  readonly ttlMsOf?: (repository: RepositoryName) => number | undefined
  /** What `ttlMsOf` can say. */
  readonly ttlsMs?: readonly number[]
  /** The first that matches counts, for pins and for ttl each. */
  readonly rules: readonly RetentionRule[]
  /** As Go prints it: `168h0m0s`. */
  readonly formatTtl: (ttlMs: number) => string
}

/** Repositories whose rules need not be looked up again. */
const REMEMBERED_MAX = 10_000

/** What the rules say of a repository. */
interface RepositoryRules {
  readonly ttlMs: number
  readonly isPinned: boolean
  readonly mayPinTags: boolean
}

export class Retention {
  readonly #clock: Clock
  readonly #options: RetentionOptions
  readonly #rules: readonly (Omit<RetentionRule, 'match'> & { readonly image: ImagePattern })[]
  readonly #remembered = new LRUCache<RepositoryName, RepositoryRules>({ max: REMEMBERED_MAX })

  /** @throws {TypeError} a rule's `match` is no pattern */
  constructor(deps: { clock: Clock }, options: RetentionOptions) {
    this.#clock = deps.clock
    this.#options = options
    this.#rules = options.rules.map(({ match, ...rule }) => {
      const image = parseImagePattern(match)
      if (!image) throw new TypeError(`${match} is no pattern for images`)
      return { image, ...rule }
    })
  }

  /** Of what a repository links; 0: for ever. Rules for tags have no say: a layer has none. */
  ttlMsOf(repository: RepositoryName): number {
    return this.#rulesOf(repository).ttlMs
  }

  /** The shortest that anything has; 0: nothing ever ends. */
  get ttlMinMs(): number {
    const { ttlMs, ttlsMs = [] } = this.#options
    const all = [ttlMs, ...ttlsMs, ...this.#rules.map((rule) => rule.ttlMs ?? 0)]
    const ending = all.filter((ttlMs) => ttlMs > 0)
    return ending.length === 0 ? 0 : Math.min(...ending)
  }

  /** @returns undefined when it never ends */
  ttlTextOf(repository: RepositoryName): string | undefined {
    const ttlMs = this.ttlMsOf(repository)
    return ttlMs === 0 ? undefined : this.#options.formatTtl(ttlMs)
  }

  isDue(repository: RepositoryName, lastUsedMs: number): boolean {
    const ttlMs = this.ttlMsOf(repository)
    return ttlMs > 0 && this.#clock.now() - lastUsedMs >= ttlMs
  }

  /** Of bytes that no repository links. */
  isDueUnlinked(lastUsedMs: number): boolean {
    const { ttlMs } = this.#options
    return ttlMs > 0 && this.#clock.now() - lastUsedMs >= ttlMs
  }

  get hasPins(): boolean {
    return this.#rules.some(({ isPinned }) => isPinned)
  }

  /** Whether everything of a repository is pinned, whatever its tags. */
  isPinned(repository: RepositoryName): boolean {
    return this.#rulesOf(repository).isPinned
  }

  /** Whether tags of this repository may be pinned: then it matters what they point to. */
  mayPinTags(repository: RepositoryName): boolean {
    return this.#rulesOf(repository).mayPinTags
  }

  isTagPinned(repository: RepositoryName, tag: Tag): boolean {
    return this.#rules.some(({ image, isPinned }) => {
      return isPinned && image.matchesRepository(repository) && image.matchesTag?.(tag)
    })
  }

  /** Of bytes found on disk, as long as no link, and no image that they are a part of, tells of a later use. */
  get oldestAssumedUseMs(): number {
    const { ttlMs } = this.#options
    return this.#clock.now() - (ttlMs === 0 ? ASSUMED_SPREAD_MS : ttlMs / 2)
  }

  /**
   * The last use to assume of something found on disk: between half a ttl ago and now, told by its digest.
   * A volume taken over so does not expire all at once, and nothing of it in the first days.
   *
   * @param expiresAtMs what registry's own file says, if it does: believed as far as it lies later
   */
  assumedLastUseMs(
    digest: Digest,
    repository: RepositoryName,
    expiresAtMs = Number.NEGATIVE_INFINITY,
  ): number {
    const nowMs = this.#clock.now()
    const ttlMs = this.ttlMsOf(repository)
    const spreadMs = ttlMs === 0 ? ASSUMED_SPREAD_MS : ttlMs / 2
    const fraction = Number.parseInt(digest.slice(-8), 16) / 2 ** 32
    const assumedMs = nowMs - Math.floor(fraction * spreadMs)
    return Math.min(nowMs, Math.max(assumedMs, expiresAtMs - ttlMs))
  }

  #rulesOf(repository: RepositoryName): RepositoryRules {
    const known = this.#remembered.get(repository)
    if (known) return known
    const { ttlMs, ttlMsOf } = this.#options
    const matching = this.#rules.filter(({ image }) => image.matchesRepository(repository))
    const whole = matching.filter(({ image }) => !image.matchesTag)
    const ruled = whole.find((rule) => rule.ttlMs !== undefined)
    const rules = {
      ttlMs: ruled?.ttlMs ?? ttlMsOf?.(repository) ?? ttlMs,
      isPinned: whole.some(({ isPinned }) => isPinned),
      mayPinTags: matching.some(({ image, isPinned }) => isPinned && image.matchesTag),
    }
    this.#remembered.set(repository, rules)
    return rules
  }
}

/** Where nothing expires, eviction still needs an order. */
const ASSUMED_SPREAD_MS = 24 * 3_600_000
