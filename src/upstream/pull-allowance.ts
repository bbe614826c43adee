// How many pulls an upstream still lets us have. Docker Hub counts GET of manifests over six hours and says in
// each answer what is left; HEAD is free and works to the end. When little is left it is kept for what nobody
// has yet: tags that are cached are answered with what they pointed to.
// @see https://docs.docker.com/docker-hub/usage/pulls/

import type { IncomingHttpHeaders } from 'node:http'
import type { Logger } from 'pino'
import type { Clock } from '../clock.ts'
import { UpstreamError } from './upstream-error.ts'

export interface RateLimit {
  /** Undefined: not said. */
  readonly limit: number | undefined
  readonly remaining: number
  /** The time over which is counted. */
  readonly windowMs: number
  /** Whom it is counted for: an address, or an account's id. */
  readonly source: string | undefined
}

/** Registries that do not say over what time they count do so by the minute. */
const WINDOW_DEFAULT_MS = 60_000

/** Of the limit: worth a word to the operator. */
const LOW_FRACTION = 0.2
/** Of the limit: kept for what is not cached. */
const RESERVE_FRACTION = 0.05
/** Where the limit is not said. */
const LIMIT_DEFAULT = 100
/** A level that was reached is left at twice its mark only: the log must not flicker. */
const HYSTERESIS = 2

/** How long a number is believed where asking for a new one may cost a pull. */
const BELIEF_FRACTION = 0.05
const BELIEF_MIN_MS = 60_000
/** As long as a call takes at most, and a little more: by then the one who asks has an answer. */
const PROBE_MS = 30_000

type Level = 'ample' | 'low' | 'nearly spent'

/** @returns undefined when the answer says nothing, or nothing that can be understood */
export function rateLimitOf(headers: IncomingHttpHeaders): RateLimit | undefined {
  const remaining = countOf(headers['ratelimit-remaining'])
  if (remaining?.count === undefined) return undefined
  const limit = countOf(headers['ratelimit-limit'])
  const source = headers['docker-ratelimit-source']
  return {
    limit: limit?.count,
    remaining: remaining.count,
    windowMs: remaining.windowMs ?? limit?.windowMs ?? WINDOW_DEFAULT_MS,
    source: typeof source === 'string' ? source.slice(0, 100) : undefined,
  }
}

/** `100;w=21600`, of which either part may be missing. */
function countOf(
  value: string | string[] | undefined,
): { count: number | undefined; windowMs: number | undefined } | undefined {
  if (typeof value !== 'string') return undefined
  const match = /^\s*(\d{1,9})?\s*(?:;\s*w=(\d{1,7})\s*)?$/.exec(value)
  if (!match) return undefined
  const [count, windowS] = match.slice(1).map((digits) => (digits ? Number(digits) : undefined))
  return { count, windowMs: windowS === undefined ? undefined : windowS * 1000 }
}

export interface PullAllowanceDeps {
  readonly clock: Clock
  readonly logger: Logger
  readonly onRateLimit: (rateLimit: RateLimit) => void
}

export interface PullAllowanceOptions {
  /** The upstream's. */
  readonly name: string
  readonly isDockerHub: boolean
  /** Without credentials there is a way to have more. */
  readonly isAnonymous: boolean
}

export class PullAllowance {
  readonly #deps: PullAllowanceDeps
  readonly #options: PullAllowanceOptions
  #current: RateLimit | undefined
  #believedUntilMs = Number.NEGATIVE_INFINITY
  #level: Level = 'ample'

  constructor(deps: PullAllowanceDeps, options: PullAllowanceOptions) {
    this.#deps = deps
    this.#options = options
  }

  /** @param headers of any answer of the upstream: some count more than manifests, and all that say so know */
  note(headers: IncomingHttpHeaders): void {
    const rateLimit = rateLimitOf(headers)
    if (!rateLimit) return
    this.#current = rateLimit
    const beliefMs = Math.max(rateLimit.windowMs * BELIEF_FRACTION, BELIEF_MIN_MS)
    this.#believedUntilMs = this.#deps.clock.monotonic() + beliefMs
    this.#deps.onRateLimit(rateLimit)
    this.#tell(rateLimit)
  }

  /**
   * Why what is cached had better be served as it is. Where asking costs nothing, that is asked all the same;
   * else one caller is let through now and then, to learn what is left.
   *
   * @returns undefined when the caller may ask
   */
  reluctance(method: 'GET' | 'HEAD'): UpstreamError | undefined {
    const current = this.#current
    if (!current || current.remaining > marksOf(current).reserve) return undefined
    if (method === 'HEAD' && this.#isHeadFree(current)) return undefined
    const nowMs = this.#deps.clock.monotonic()
    if (nowMs >= this.#believedUntilMs) {
      this.#believedUntilMs = nowMs + PROBE_MS
      return undefined
    }
    const message = `${this.#sentence(current)}; they are kept for what is not cached`
    return new UpstreamError('rate-limited', message)
  }

  /** For whoever asks how this cache is doing; undefined when all is well. */
  get problem(): string | undefined {
    return this.#current && this.#level !== 'ample' ? this.#sentence(this.#current) : undefined
  }

  /** So it is on Docker Hub, also where another host passes its answers on. */
  #isHeadFree({ source }: RateLimit): boolean {
    return this.#options.isDockerHub || source !== undefined
  }

  #tell(current: RateLimit): void {
    const level = nextLevel(this.#level, current)
    if (level === this.#level) return
    const isWorse = level === 'nearly spent' || this.#level === 'ample'
    this.#level = level
    const { isAnonymous, name } = this.#options
    const { logger } = this.#deps
    const hint = isAnonymous ? '; credentials give more' : ''
    const kept = level === 'nearly spent' ? '; they are kept for what is not cached' : ''
    const fields = { upstream: name, ...current }
    if (isWorse) logger.warn(fields, `${this.#sentence(current)}${kept}${hint}`)
    else logger.info(fields, this.#sentence(current))
  }

  #sentence({ limit, remaining, windowMs }: RateLimit): string {
    const of = limit === undefined ? '' : ` of ${limit}`
    const hours = windowMs / 3_600_000
    const over =
      hours >= 1 ? `${Math.round(hours * 10) / 10} h` : `${Math.round(windowMs / 1000)} s`
    return `${this.#options.name} lets us have ${remaining}${of} pulls in ${over}`
  }
}

function marksOf({ limit = LIMIT_DEFAULT }: RateLimit): { low: number; reserve: number } {
  return {
    low: Math.floor(limit * LOW_FRACTION),
    reserve: Math.max(1, Math.floor(limit * RESERVE_FRACTION)),
  }
}

function nextLevel(before: Level, current: RateLimit): Level {
  const { low, reserve } = marksOf(current)
  const isUnder = (mark: number, isReached: boolean): boolean =>
    current.remaining <= mark * (isReached ? HYSTERESIS : 1)
  if (isUnder(reserve, before === 'nearly spent')) return 'nearly spent'
  return isUnder(low, before !== 'ample') ? 'low' : 'ample'
}
