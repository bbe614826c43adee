// Which bytes a purge may take: those that no stored manifest names which stays. Made of all manifests that lose their
// last link, before anything goes. What an index that stays names stays itself, and so does what that names in turn.

import type { Digest } from '../../oci/digest.ts'
import type { ContentIndex } from '../../storage/index/content-index.ts'
import { DigestTable } from './digest-table.ts'

export class PurgePlan {
  readonly #index: ContentIndex
  /** Goes whatever names it: an operator has given its digest. */
  readonly #forced: Digest | undefined
  /** By how many manifests that stay each is named, of what is named by one that goes. */
  readonly #namedBy = new DigestTable()
  /** 1: a manifest that goes. */
  readonly #going = new DigestTable()
  /** Manifests that lose their last link, and stay as long as something that stays names them. */
  readonly #waiting = new Set<Digest>()

  constructor(index: ContentIndex, forced: Digest | undefined) {
    this.#index = index
    this.#forced = forced
  }

  /** Whether something else may stay or go with it; else it need not be added. */
  concerns(digest: Digest): boolean {
    return this.#index.namesOf(digest).length > 0
  }

  /** It loses its last link. In any order. */
  add(digest: Digest): void {
    if (this.#going.get(digest) !== undefined) return
    if (this.goes(digest)) this.#letGo(digest)
    else this.#waiting.add(digest)
  }

  /** Whether nothing that stays names it. True only of what loses its last link, when all that does was added. */
  goes(digest: Digest): boolean {
    if (digest === this.#forced) return true
    // What has gone by now names nothing in the index any more.
    return (this.#namedBy.get(digest) ?? this.#index.blob(digest)?.namedBy ?? 0) === 0
  }

  /** Somebody uses it: it stays after all, with what it names, as far as that has not gone yet. */
  keep(digest: Digest): void {
    const pending = [digest]
    for (let next = pending.pop(); next; next = pending.pop()) {
      if (this.#going.get(next) !== 1) continue
      this.#going.set(next, 0)
      for (const child of this.#index.namesOf(next)) {
        this.#namedBy.set(child, (this.#namedBy.get(child) ?? 0) + 1)
        pending.push(child)
      }
    }
  }

  #letGo(digest: Digest): void {
    const pending = [digest]
    for (let next = pending.pop(); next; next = pending.pop()) {
      this.#going.set(next, 1)
      for (const child of this.#index.namesOf(next)) {
        const before = this.#namedBy.get(child) ?? this.#index.blob(child)?.namedBy
        // It is not stored.
        if (before === undefined) continue
        const left = Math.max(0, before - 1)
        this.#namedBy.set(child, left)
        if (left === 0 && this.#waiting.delete(child)) pending.push(child)
      }
    }
  }
}
