// How long content is kept: everything is due when it has not been used for `proxy.ttl`. Pure bookkeeping: a
// use is a note in memory, taken by the janitor in batches; nothing here waits or touches the disk.

import type { Logger } from 'pino'
import type { Clock } from '../clock.ts'
import type { Digest } from '../oci/digest.ts'
import type { Link } from '../storage/repository-index.ts'
import type { UsageEntry } from '../storage/usage-index.ts'

export class Retention {
  readonly #clock: Clock
  readonly #logger: Logger
  readonly #ttlMs: number
  readonly #ttlText: string
  #pending = new Map<string, UsageEntry>()

  /**
   * @param options.ttlMs since the last use; 0 keeps everything
   * @param options.ttlText the same for the log, as Go prints it: `168h0m0s`
   */
  constructor(deps: { clock: Clock; logger: Logger }, options: { ttlMs: number; ttlText: string }) {
    this.#clock = deps.clock
    this.#logger = deps.logger
    this.#ttlMs = options.ttlMs
    this.#ttlText = options.ttlText
  }

  get ttlMs(): number {
    return this.#ttlMs
  }

  /** Something new is kept. The line is the one that operators of registry:2 look for. */
  add(link: Link): void {
    this.touch(link)
    if (this.#ttlMs === 0) return
    const { digest, repository } = link
    this.#logger.info(
      `Adding new scheduler entry for ${repository}@${digest} with ttl=${this.#ttlText}`,
    )
  }

  /** Something was used. */
  touch({ digest, kind, repository }: Link): void {
    const entry = { digest, kind, repository, lastUsedMs: this.#clock.now() }
    this.#pending.set(keyOf(entry), entry)
  }

  /** Whether a use is noted that the index does not know of yet. */
  hasPending(entry: UsageEntry): boolean {
    return this.#pending.has(keyOf(entry))
  }

  /** Whether any repository has used this since the notes were taken last. */
  hasPendingOf(digest: Digest): boolean {
    for (const entry of this.#pending.values()) if (entry.digest === digest) return true
    return false
  }

  /** Takes notes back that could not be written down; newer ones stand. */
  restore(entries: readonly UsageEntry[]): void {
    for (const entry of entries) {
      const key = keyOf(entry)
      if (!this.#pending.has(key)) this.#pending.set(key, entry)
    }
  }

  /** Hands over the notes since the last time. */
  takePending(): UsageEntry[] {
    const taken = this.#pending
    this.#pending = new Map()
    return [...taken.values()]
  }

  isDue(entry: UsageEntry): boolean {
    return this.#ttlMs > 0 && this.#clock.now() - entry.lastUsedMs >= this.#ttlMs
  }

  /**
   * The last use to assume of something found on disk: between half a ttl ago and now, told by its digest.
   * A volume taken over so does not expire all at once, and nothing of it in the first days.
   *
   * @param expiresAtMs what registry's own file says, if it does: believed as far as it lies later
   */
  assumedLastUseMs(digest: string, expiresAtMs = Number.NEGATIVE_INFINITY): number {
    const nowMs = this.#clock.now()
    const fraction = Number.parseInt(digest.slice(-8), 16) / 2 ** 32
    const spreadMs = nowMs - Math.floor((fraction * this.#ttlMs) / 2)
    return Math.min(nowMs, Math.max(spreadMs, expiresAtMs - this.#ttlMs))
  }
}

function keyOf({ digest, repository }: Pick<UsageEntry, 'digest' | 'repository'>): string {
  return `${digest} ${repository ?? ''}`
}
