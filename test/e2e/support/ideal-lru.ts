// The cache that others are measured by: it forgets what was least recently used, object by object, at the moment
// that it needs the room, and nothing of it takes any time.

export class IdealLru {
  readonly #capacityBytes: number
  /** In the order of last use. */
  readonly #costs = new Map<string, number>()
  #bytes = 0

  constructor(capacityBytes: number) {
    this.#capacityBytes = capacityBytes
  }

  /** As an operator does who wants it gone. */
  forget(key: string): void {
    this.#bytes -= this.#costs.get(key) ?? 0
    this.#costs.delete(key)
  }

  /** @returns whether it was there */
  use(key: string, costBytes: number): boolean {
    const isHit = this.#costs.delete(key)
    this.#costs.set(key, costBytes)
    if (!isHit) this.#bytes += costBytes
    for (const [oldest, bytes] of this.#costs) {
      if (this.#bytes <= this.#capacityBytes) break
      this.#costs.delete(oldest)
      this.#bytes -= bytes
    }
    return isHit
  }
}

/** What was asked for, and how much of it was there. */
export class HitRatio {
  #objects = 0
  #hitObjects = 0
  #bytes = 0
  #hitBytes = 0

  /** @param hits of so many uses of one object */
  add(sizeBytes: number, uses: number, hits: number): void {
    this.#objects += uses
    this.#bytes += uses * sizeBytes
    this.#hitObjects += hits
    this.#hitBytes += hits * sizeBytes
  }

  get ofObjects(): number {
    return this.#hitObjects / this.#objects
  }

  get ofBytes(): number {
    return this.#hitBytes / this.#bytes
  }
}
