// What is remembered of refused logins where upstreams come and go (clients name registries below a domain): one that
// is forgotten and made again must not try what the registry has refused a moment ago.

import { LRUCache } from 'lru-cache'

export interface Refusal {
  /** Of the login. */
  readonly key: string
  /** Of this login. */
  readonly times: number
  /** Of any login, since one was accepted. */
  readonly timesInARow: number
  readonly atMs: number
  /** Since the epoch: the first in a row. */
  readonly sinceMs: number
  readonly reason: string
}

/** Of one upstream. */
export interface LoginMemory {
  refusal?: Refusal | undefined
  /** The login of which the operator was told. */
  toldKey?: string | undefined
}

/** A few hundred bytes each. Clients choose the names. */
const MEMORIES_MAX = 10_000

export class LoginMemories {
  readonly #memories = new LRUCache<string, LoginMemory>({ max: MEMORIES_MAX })

  /** @param host of the upstream */
  of(host: string): LoginMemory {
    const known = this.#memories.get(host)
    if (known) return known
    const memory: LoginMemory = {}
    this.#memories.set(host, memory)
    return memory
  }
}
