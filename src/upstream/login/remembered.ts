// Something that is read from elsewhere (a file, a helper's answer), kept for a while and read again. All who
// ask at once share one reading. A source that fails is left alone for a moment, and what it gave before
// stays in use: an identity provider that is down must not take a cache with it that could still pull.

import type { Logger } from 'pino'
import type { Clock } from '../../clock.ts'
import { CredentialsError } from './login.ts'

/** A source that failed is not asked for so long: requests come by the hundred, helpers take seconds. */
const SOURCE_PAUSE_MS = 10_000

export interface RememberedOptions<Value> {
  /** The upstream's, for the log. */
  readonly name: string
  /** How long a value is used before it is read again; 0: each time, Infinity: until it is forgotten. */
  readonly lifetimeMs: number
  /**
   * @returns undefined if the source has nothing for us
   * @throws {CredentialsError}
   */
  readonly read: (host: string, signal: AbortSignal) => Promise<Value | undefined>
}

interface Held<Value> {
  readonly host: string
  readonly value: Value | undefined
  readonly readAtMs: number
}

export class Remembered<Value> {
  readonly #clock: Clock
  readonly #logger: Logger
  readonly #options: RememberedOptions<Value>
  readonly #closing = new AbortController()
  #held: Held<Value> | undefined
  #reading: { readonly host: string; readonly value: Promise<Value | undefined> } | undefined
  #failure: { readonly error: CredentialsError; readonly atMs: number } | undefined
  /** So that the log says once what is wrong, not with each reading. */
  #told: string | undefined

  constructor(deps: { clock: Clock; logger: Logger }, options: RememberedOptions<Value>) {
    this.#clock = deps.clock
    this.#logger = deps.logger
    this.#options = options
  }

  /**
   * @param options.maxAgeMs if it is shorter than the value's lifetime, and than the pause after a failure
   * @throws {CredentialsError}
   */
  async current(host: string, { maxAgeMs = Infinity } = {}): Promise<Value | undefined> {
    if (this.#reading?.host === host) return this.#reading.value
    const nowMs = this.#clock.monotonic()
    const held = this.#held?.host === host ? this.#held : undefined
    if (held && nowMs - held.readAtMs < Math.min(this.#options.lifetimeMs, maxAgeMs))
      return held.value
    if (this.#failure && nowMs - this.#failure.atMs < Math.min(SOURCE_PAUSE_MS, maxAgeMs)) {
      if (held) return held.value
      throw this.#failure.error
    }
    const reading = { host, value: this.#read(host, held) }
    this.#reading = reading
    try {
      return await reading.value
    } finally {
      if (this.#reading === reading) this.#reading = undefined
    }
  }

  forget(): void {
    this.#held = undefined
  }

  /** Ends a reading that runs. */
  close(): void {
    this.#closing.abort(new CredentialsError('the cache is stopping'))
  }

  async #read(host: string, held: Held<Value> | undefined): Promise<Value | undefined> {
    try {
      const value = await this.#options.read(host, this.#closing.signal)
      this.#held = { host, value, readAtMs: this.#clock.monotonic() }
      this.#failure = undefined
      this.#tell(value ? undefined : 'there are no credentials for it; it is asked anonymously')
      return value
    } catch (error) {
      if (!(error instanceof CredentialsError)) throw error
      this.#failure = { error, atMs: this.#clock.monotonic() }
      // Forgotten while it was read again: then it is of no use any more.
      const isUsable = held !== undefined && this.#held === held
      const then = isUsable ? 'what was read before stays in use' : 'it cannot be logged in to'
      if (!this.#closing.signal.aborted) this.#tell(`${error.message}; ${then}`)
      if (isUsable) return held.value
      throw error
    }
  }

  /** @param problem undefined when all is well */
  #tell(problem: string | undefined): void {
    if (problem === this.#told) return
    const { name } = this.#options
    if (problem === undefined) this.#logger.info({ upstream: name }, `${name}: credentials found`)
    else this.#logger.warn({ upstream: name }, `${name}: ${problem}`)
    this.#told = problem
  }
}
