// Chooses what goes when room is needed: the least recently used first, and images whole. An image's manifest goes
// with what only it names; what is pinned, being read or part of something kept stays. What a broken download has
// left is content too, as old as the download.

import type { Logger } from 'pino'
import type { Clock } from '../../clock.ts'
import type { Digest } from '../../oci/digest.ts'
import type { BlobStore } from '../../storage/blob-store.ts'
import { StorageError } from '../../storage/filesystem.ts'
import type { BlobEntry, ContentIndex } from '../../storage/index/content-index.ts'
import type { PartFile, SpoolDirectory } from '../../storage/spool/spool-directory.ts'
import type { Metrics } from '../../telemetry/metrics.ts'
import type { Inventory } from '../inventory.ts'
import type { PinnedNow, Pins } from './pins.ts'
import type { Remover } from './remover.ts'

/** What one image's parts are pulled within: a part used later than that was wanted for itself. */
const PULL_MS = 10 * 60_000
/** Plans that turned out to free less than thought, since somebody began to use their content. */
const ROUNDS_MAX = 3

export interface EvictorDeps {
  readonly clock: Clock
  readonly logger: Logger
  readonly metrics: Metrics
  readonly blobs: BlobStore
  readonly index: ContentIndex
  readonly inventory: Inventory
  readonly pins: Pins
  readonly remover: Remover
  readonly spools: SpoolDirectory
}

interface Freed {
  count: number
  bytes: number
}

export class Evictor {
  readonly #deps: EvictorDeps

  constructor(deps: EvictorDeps) {
    this.#deps = deps
  }

  /**
   * Removes the oldest content until so many bytes are free.
   *
   * @returns how many that were; 0 when it could not be enough: then nothing was removed
   */
  async makeRoom(neededBytes: number): Promise<number> {
    const { inventory, logger, metrics } = this.#deps
    // What belongs together is not known before.
    if (!inventory.isCounted) return 0
    const freed: Freed = { count: 0, bytes: 0 }
    for (let round = 0; round < ROUNDS_MAX && freed.bytes < neededBytes; round++) {
      // The order must know of the last uses.
      await this.#attempt(() => inventory.flush())
      const plan = await this.#plan(neededBytes - freed.bytes)
      if (!plan) break
      await this.#carryOut(plan, freed)
    }
    if (freed.bytes === 0) return 0
    // Only now it counts as free.
    await this.#attempt(() => inventory.flush())
    metrics.evictedBlobs.inc(freed.count)
    metrics.evictedBytes.inc(freed.bytes)
    logger.debug({ ...freed }, 'removed the least recently used content')
    return freed.bytes
  }

  /** What to remove, in order. @returns undefined when there is not enough that may go */
  async #plan(neededBytes: number): Promise<Plan | undefined> {
    const { clock, index, pins } = this.#deps
    const plan = new Plan(this.#deps, pins.now(), neededBytes)
    for await (const entry of index.oldestFirst()) {
      plan.addPartsUntil(entry.lastUsedMs)
      if (plan.isEnough) break
      await plan.consider(entry)
    }
    plan.addPartsUntil(Infinity)
    if (!plan.isEnough) return undefined
    // To the end of the line, so that the next one need not look at them again.
    const atMs = clock.now()
    await this.#attempt(() =>
      index.write(plan.kept.map((digest) => ({ change: 'renew', digest, atMs }))),
    )
    return plan
  }

  /** Ends early where something is in use after all: what the plan says of the rest may not hold. */
  async #carryOut({ groups, parts }: Plan, freed: Freed): Promise<void> {
    const { spools } = this.#deps
    const remover = this.#deps.remover.batch()
    for (const part of parts) freed.bytes += await spools.remove(part.digest)
    for (const group of groups) {
      for (const digest of group) {
        const bytes = await remover.remove(digest)
        if (bytes === undefined && digest === group[0]) return
        if (bytes === undefined) continue
        freed.bytes += bytes
        freed.count++
      }
    }
  }

  /** A full disk takes no notes; what is removed from it makes room for them. */
  async #attempt(write: () => Promise<void>): Promise<void> {
    try {
      await write()
    } catch (error) {
      if (!(error instanceof StorageError)) throw error
      this.#deps.logger.error({ err: error }, 'could not write down what is removed to make room')
    }
  }
}

/** A manifest and what goes with it, the manifest first; or a blob. */
type Group = readonly Digest[]

class Plan {
  readonly groups: Group[] = []
  readonly parts: PartFile[] = []
  /** Looked at, and old, but not to be removed. */
  readonly kept: Digest[] = []
  readonly #deps: EvictorDeps
  readonly #pinned: PinnedNow
  readonly #neededBytes: number
  #bytes = 0
  /** The oldest last. */
  readonly #partsLeft: PartFile[]
  readonly #chosen = new Set<Digest>()
  /** How many of those that name it are chosen. */
  readonly #released = new Map<Digest, number>()

  constructor(deps: EvictorDeps, pinned: PinnedNow, neededBytes: number) {
    this.#deps = deps
    this.#pinned = pinned
    this.#neededBytes = neededBytes
    this.#partsLeft = deps.spools.parts().sort((a, b) => b.lastUsedMs - a.lastUsedMs)
  }

  get isEnough(): boolean {
    return this.#bytes >= this.#neededBytes
  }

  /** Takes the broken downloads that are not younger. */
  addPartsUntil(lastUsedMs: number): void {
    for (;;) {
      const part = this.#partsLeft.at(-1)
      if (!part || part.lastUsedMs > lastUsedMs || this.isEnough) return
      this.#partsLeft.pop()
      this.parts.push(part)
      this.#bytes += part.sizeBytes
    }
  }

  /** Takes it with all that goes along, if it may go. */
  async consider(root: BlobEntry): Promise<void> {
    const { digest, isManifest, namedBy } = root
    if (this.#chosen.has(digest)) return
    // What names it was not chosen: it stays with that, or goes when that does.
    if (namedBy > this.#releasedOf(digest)) return
    const isKept =
      this.#deps.blobs.isBeingRead(digest) || (await this.#pinned.isPinned(digest, isManifest))
    if (isKept || !(await this.#take(root))) this.kept.push(digest)
  }

  /** @returns false when somebody is reading a part of it: then all of it stays */
  async #take(root: BlobEntry): Promise<boolean> {
    const { blobs, index, inventory } = this.#deps
    const group = [root]
    const members = new Set([root.digest])
    const released = new Map<Digest, number>()
    // An array goes on with what is added to it meanwhile.
    for (const { digest, isManifest } of group) {
      if (!isManifest) continue
      for (const child of index.namesOf(digest)) {
        const count = (released.get(child) ?? this.#releasedOf(child)) + 1
        released.set(child, count)
        const part = index.blob(child)
        if (!part || part.namedBy > count || part.lastUsedMs > root.lastUsedMs + PULL_MS) continue
        if (members.has(child) || this.#chosen.has(child)) continue
        if (blobs.isBeingRead(child)) return false
        if (await this.#pinned.isPinned(child, part.isManifest)) continue
        members.add(child)
        group.push(part)
      }
    }
    for (const part of group) {
      this.#chosen.add(part.digest)
      this.#bytes += inventory.freedBy(part)
    }
    for (const [digest, count] of released) this.#released.set(digest, count)
    this.groups.push([...members])
    return true
  }

  #releasedOf(digest: Digest): number {
    return this.#released.get(digest) ?? 0
  }
}
