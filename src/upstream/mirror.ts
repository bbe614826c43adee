// One mirror of a registry, and whether it is asked just now. One that is out of order is passed over for a while,
// longer each time, until it answers again. One that has sent wrong content is passed over for long, however well it
// answers meanwhile: most of what it has may be right.

import type { Logger } from 'pino'
import type { Clock } from '../clock.ts'
import type { OpenRegistry } from './remote-registry.ts'
import type { UpstreamError } from './upstream-error.ts'

/** How long a mirror that is out of order is passed over at first; twice as long each time it fails again. */
const PAUSE_FIRST_MS = 10_000
const PAUSE_MAX_MS = 300_000

/** A call that began: what becomes of it is news only of what was known of the mirror then. */
export interface MirrorCall {
  readonly pauses: number
  /** It had been passed over, and was asked because nobody else was left. */
  readonly isLastResort: boolean
}

export class Mirror {
  readonly registry: OpenRegistry
  readonly #clock: Clock
  readonly #logger: Logger
  readonly #upstream: string
  /** Monotonic, as the others. */
  #pausedUntilMs = Number.NEGATIVE_INFINITY
  #distrustedUntilMs = Number.NEGATIVE_INFINITY
  /** Of the next pause. */
  #pauseMs = PAUSE_FIRST_MS
  #pauses = 0

  /** @param options.upstream whose mirror it is, for the log */
  constructor(
    { clock, logger }: { clock: Clock; logger: Logger },
    { registry, upstream }: { registry: OpenRegistry; upstream: string },
  ) {
    this.registry = registry
    this.#clock = clock
    this.#logger = logger
    this.#upstream = upstream
  }

  get isPassedOver(): boolean {
    const nowMs = this.#clock.monotonic()
    return nowMs < this.#pausedUntilMs || nowMs < this.#distrustedUntilMs
  }

  begin(): MirrorCall {
    return { pauses: this.#pauses, isLastResort: this.isPassedOver }
  }

  noteAnswer({ pauses }: MirrorCall): void {
    if (pauses !== this.#pauses) return
    this.#pausedUntilMs = Number.NEGATIVE_INFINITY
    this.#pauseMs = PAUSE_FIRST_MS
  }

  /** It is out of order. Calls that fail together are one failure. */
  noteOutage({ pauses }: MirrorCall, { message, retryAfterMs = 0 }: UpstreamError): void {
    if (pauses !== this.#pauses) return
    const pauseMs = Math.min(Math.max(this.#pauseMs, retryAfterMs), PAUSE_MAX_MS)
    this.#pauses++
    this.#pausedUntilMs = this.#clock.monotonic() + pauseMs
    this.#pauseMs = Math.min(this.#pauseMs * 2, PAUSE_MAX_MS)
    this.#tell(pauseMs, message)
  }

  /** What it has sent is not what was asked for. */
  noteWrongContent({ message }: UpstreamError): void {
    const nowMs = this.#clock.monotonic()
    const isNews = nowMs >= this.#distrustedUntilMs
    this.#distrustedUntilMs = nowMs + PAUSE_MAX_MS
    if (isNews) this.#tell(PAUSE_MAX_MS, message)
  }

  #tell(pauseMs: number, reason: string): void {
    this.#logger.warn(
      { upstream: this.#upstream, mirror: this.registry.name, reason },
      `a mirror is passed over for ${Math.ceil(pauseMs / 1000)} s`,
    )
  }
}
