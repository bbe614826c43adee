// At most one running call per key; whoever asks meanwhile shares its outcome. Shared work is nobody's to
// cancel, so callers pass no signal: one that leaves just stops waiting.

export interface Shared<Value> {
  readonly value: Promise<Value>
  /** Whether somebody else had started the call. */
  readonly isJoined: boolean
}

export class InFlight<Key, Value> {
  readonly #running = new Map<Key, Promise<Value>>()

  /**
   * @param start looks into the cache again before it goes upstream: a call for the same key may have
   *   ended between the caller's look and this one
   */
  run(key: Key, start: () => Promise<Value>): Shared<Value> {
    const joined = this.#running.get(key)
    if (joined) return { value: joined, isJoined: true }
    const value = start().finally(() => this.#running.delete(key))
    this.#running.set(key, value)
    return { value, isJoined: false }
  }
}
