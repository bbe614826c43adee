// A number for each of very many digests, in little memory: 25 MB for a million, where a map takes 140 MB. Digests are
// told apart by 64 of their bits. Of a million, two are taken for one with a chance of 1 in 30 million.

import type { Digest } from '../../oci/digest.ts'

/** A power of two. */
const SLOTS_MIN = 1024
/** Full beyond this part of the slots: then looking becomes slow. */
const LOAD_MAX = 0.7
/** Two words of 32 bits; and the number, one higher: 0 is an empty slot. */
const WORDS = 3

export class DigestTable {
  #slots = new Uint32Array(SLOTS_MIN * WORDS)
  #size = 0

  get(digest: Digest): number | undefined {
    const value = this.#slots[this.#find(wordsOf(digest)) + 2] ?? 0
    return value === 0 ? undefined : value - 1
  }

  /** @param value an integer from 0 to 2^32 - 2 */
  set(digest: Digest, value: number): void {
    const isNew = this.#put(wordsOf(digest), value + 1)
    if (!isNew) return
    this.#size++
    if (this.#size * WORDS > this.#slots.length * LOAD_MAX) this.#grow()
  }

  /** @returns whether the slot was empty */
  #put(words: Words, value: number): boolean {
    const at = this.#find(words)
    const isNew = this.#slots[at + 2] === 0
    this.#slots[at] = words[0]
    this.#slots[at + 1] = words[1]
    this.#slots[at + 2] = value
    return isNew
  }

  /** Where it is, or would be. */
  #find([high, low]: Words): number {
    const mask = this.#slots.length / WORDS - 1
    // The digest is as good as random itself.
    let slot = low & mask
    for (;;) {
      const at = slot * WORDS
      if (this.#slots[at + 2] === 0) return at
      if (this.#slots[at] === high && this.#slots[at + 1] === low) return at
      slot = (slot + 1) & mask
    }
  }

  #grow(): void {
    const before = this.#slots
    const slots = (before.length / WORDS) * 2
    this.#slots = new Uint32Array(slots * WORDS)
    for (let from = 0; from < before.length; from += WORDS) {
      const value = before[from + 2] ?? 0
      if (value > 0) this.#put([before[from] ?? 0, before[from + 1] ?? 0], value)
    }
  }
}

type Words = readonly [high: number, low: number]

function wordsOf(digest: Digest): Words {
  return [Number.parseInt(digest.slice(-16, -8), 16), Number.parseInt(digest.slice(-8), 16)]
}
