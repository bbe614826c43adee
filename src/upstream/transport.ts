// One request to an upstream, to the headers of its final answer: redirects followed by hand, transient
// failures tried again, everything within the call's budget. Knows nothing of registries or tokens.
// Invariant: `authorization` leaves for the origin that was asked, and for no other, however we are sent on.

import type { IncomingHttpHeaders } from 'node:http'
import type { Readable } from 'node:stream'
import type { Logger } from 'pino'
import { delay, type Clock } from '../clock.ts'
import { AddressGuard, type AddressGuardDeps, type AddressGuardOptions } from './address-guard.ts'
import { leaveOnAbort, type CallBudget } from './call-budget.ts'
import { Egress, type ConnectionOptions, type EnvironmentProxy } from './egress.ts'
import { onlyIf } from './last-look.ts'
import { retryAfterMsOf } from './answer-headers.ts'
import { RequestPace } from './request-pace.ts'
import { discard, drop } from './response-body.ts'
import { connectionError, UpstreamError } from './upstream-error.ts'

export type RequestKind = 'manifest' | 'blob' | 'tags' | 'referrers' | 'ping' | 'token' | 'redirect'

/** One request on the wire, told when its headers are in (or when it failed: no status). */
export interface RequestObservation {
  readonly method: 'GET' | 'HEAD' | 'POST'
  readonly kind: RequestKind
  readonly status: number | undefined
  readonly durationMs: number
}

/** Decides when a request with a login may go; told when it has an answer. */
export interface Passage {
  /**
   * Waits; `leave` must follow.
   *
   * @throws {LoginWithdrawn} when it must not go any more; the reason of `signal`. Then there is nothing to leave
   */
  enter(signal: AbortSignal): Promise<void>
  /** Asked when there is a connection, which may be long after: false to enter anew. */
  mayGo(): boolean
  /** @param status undefined if there was no answer, or if it did not go */
  leave(status: number | undefined): void
}

export interface TransportRequest {
  readonly kind: RequestKind
  /** A POST must be one that may be sent twice: it is, when there is no answer. */
  readonly method: 'GET' | 'HEAD' | 'POST'
  readonly url: URL
  readonly headers: Readonly<Record<string, string>>
  readonly authorization: string | undefined
  /** Default: it may go at any time. */
  readonly passage?: Passage | undefined
  /** The body of a POST. It may be a secret: such a request must not follow redirects. */
  readonly content?: string | undefined
  readonly followRedirects: boolean
}

export interface TransportResponse {
  readonly status: number
  readonly headers: IncomingHttpHeaders
  /** Must be consumed or destroyed, whatever the status. */
  readonly body: Readable
  /** Where the answer came from. */
  readonly url: URL
  /** Whether a redirect led away from the origin that was asked. */
  readonly leftOrigin: boolean
}

export interface TransportDeps extends AddressGuardDeps {
  readonly clock: Clock
  readonly onRequest?: ((observation: RequestObservation) => void) | undefined
  /** For the jitter of retries: [0, 1). */
  readonly random?: (() => number) | undefined
}

export interface TransportOptions {
  readonly name: string
  readonly userAgent: string
  readonly environmentProxy: EnvironmentProxy
  readonly addresses: Omit<AddressGuardOptions, 'name'>
  /** Of the upstream. */
  readonly ownOrigin: string
  readonly connection?: ConnectionOptions | undefined
  /** Undefined: as fast as connections allow. */
  readonly requestsPerSecond?: number | undefined
}

interface Exchange {
  readonly status: number
  readonly headers: IncomingHttpHeaders
  readonly body: Readable
}

/** Clients give up after 30 s without headers; a second try must still fit the call's budget. */
const HEADERS_TIMEOUT_MS = 20_000

/**
 * Without a byte. Clients hang up after 30 s of that, and undici's timers are a second or so late.
 * Does not run while the reader pauses the body, so slow readers are safe.
 */
const BODY_IDLE_TIMEOUT_MS = 25_000

/** Read ahead of a slow reader; larger means fewer pauses of the socket. */
const BODY_BUFFER_BYTES = 256 * 1024

const REDIRECTS_MAX = 5
const REDIRECT_STATUSES: ReadonlySet<number> = new Set([301, 302, 303, 307, 308])

const RETRY_STATUSES: ReadonlySet<number> = new Set([408, 500, 502, 503, 504])
/** One for each retry. More would only add load where there is trouble already. */
const BACKOFF_MS = [200, 800] as const
/** Who asks for more has no trouble of a moment: another cache asks for 5 s, and has tried again itself. */
const RETRY_AFTER_WAIT_MAX_MS = 4_000

export class Transport {
  readonly #clock: Clock
  readonly #logger: Logger
  readonly #onRequest: ((observation: RequestObservation) => void) | undefined
  readonly #random: () => number
  readonly #name: string
  readonly #userAgent: string
  readonly #egress: Egress
  readonly #pace: RequestPace | undefined

  constructor(
    { clock, logger, lookup, onRequest, random = Math.random, scopeOf }: TransportDeps,
    options: TransportOptions,
  ) {
    const { connection, environmentProxy, name, ownOrigin, requestsPerSecond, userAgent } = options
    this.#clock = clock
    this.#logger = logger
    this.#onRequest = onRequest
    this.#random = random
    this.#name = name
    this.#userAgent = userAgent
    const guard = new AddressGuard({ logger, lookup, scopeOf }, { name, ...options.addresses })
    this.#egress = new Egress({ ...connection, environmentProxy, ownOrigin }, guard)
    this.#pace =
      requestsPerSecond === undefined
        ? undefined
        : new RequestPace(clock, { name, perSecond: requestsPerSecond })
  }

  /**
   * Any status is an answer, also one that was still an error after the last try. Each try starts at
   * `request.url`: where a redirect led is never used twice, since such URLs expire.
   *
   * @throws {UpstreamError} unreachable, timeout or bad-response (including bad redirects)
   * @throws {LoginWithdrawn} if the passage does: the last try has not gone
   * @throws the reason of `budget.signal`, once that is aborted
   */
  async send(request: TransportRequest, budget: CallBudget): Promise<TransportResponse> {
    for (;;) {
      const outcome = await this.#followRedirects(request, budget).catch(asUpstreamError)
      const waitMs = this.#retryDelayMs(outcome, budget.retries)
      if (waitMs === undefined || budget.signal.aborted || !budget.takeRetry(waitMs)) {
        if (outcome instanceof UpstreamError) throw outcome
        return outcome
      }
      const isError = outcome instanceof UpstreamError
      if (!isError) discard(outcome.body, this.#clock)
      const failure = isError ? outcome.message : `status ${outcome.status}`
      this.#logger.debug({ upstream: this.#name, kind: request.kind, failure, waitMs }, 'retrying')
      await delay(this.#clock, waitMs, { signal: budget.signal })
    }
  }

  close(): Promise<void> {
    return this.#egress.close()
  }

  /** @returns undefined if trying again is not the answer */
  #retryDelayMs(outcome: TransportResponse | UpstreamError, retries: number): number | undefined {
    const baseMs = BACKOFF_MS[retries]
    if (baseMs === undefined) return undefined
    const backoffMs = baseMs * (0.5 + this.#random())
    if (outcome instanceof UpstreamError) {
      return outcome.kind === 'bad-response' ? undefined : backoffMs
    }
    if (!RETRY_STATUSES.has(outcome.status)) return undefined
    const retryAfterMs = retryAfterMsOf(outcome.headers, this.#clock) ?? 0
    return retryAfterMs > RETRY_AFTER_WAIT_MAX_MS ? undefined : Math.max(backoffMs, retryAfterMs)
  }

  async #followRedirects(
    request: TransportRequest,
    budget: CallBudget,
  ): Promise<TransportResponse> {
    let { url, authorization, kind } = request
    const visited = new Set<string>()
    for (;;) {
      visited.add(url.href)
      const hop = { ...request, url, authorization, kind }
      const response = await this.#exchange(hop, budget)
      const leftOrigin = url.origin !== request.url.origin
      if (!request.followRedirects || !REDIRECT_STATUSES.has(response.status)) {
        return { ...response, url, leftOrigin }
      }
      discard(response.body, this.#clock)
      url = this.#redirectTarget(response.headers.location, url, request.url)
      if (visited.has(url.href)) throw this.#badRedirect('goes in circles')
      if (visited.size > REDIRECTS_MAX)
        throw this.#badRedirect(`goes on after ${REDIRECTS_MAX} hops`)
      // Once away, always a stranger: a foreign host must not send us back to where we are trusted.
      if (url.origin !== request.url.origin) authorization = undefined
      kind = 'redirect'
      this.#logger.debug({ upstream: this.#name, host: url.host }, 'following a redirect')
    }
  }

  #redirectTarget(location: string | undefined, from: URL, asked: URL): URL {
    if (location === undefined || !URL.canParse(location, from.href)) {
      throw this.#badRedirect('has no usable Location')
    }
    const target = new URL(location, from)
    target.hash = ''
    const isWeb = target.protocol === 'https:' || target.protocol === 'http:'
    if (!isWeb || target.username !== '' || target.password !== '') {
      throw this.#badRedirect('has no usable Location')
    }
    if (target.protocol === 'http:' && asked.protocol === 'https:') {
      throw this.#badRedirect(`leads from https to http (${target.host})`)
    }
    return target
  }

  #badRedirect(reason: string): UpstreamError {
    return new UpstreamError('bad-response', `${this.#name} sent a redirect that ${reason}`)
  }

  async #exchange(request: TransportRequest, { signal }: CallBudget): Promise<Exchange> {
    const passage = request.authorization === undefined ? undefined : request.passage
    for (;;) {
      if (signal.aborted) throw signal.reason
      await passage?.enter(signal)
      let status: number | undefined
      try {
        await this.#pace?.take(signal)
        const answer = await this.#ask(request, passage, signal)
        status = answer?.status
        if (answer) return answer
      } finally {
        passage?.leave(status)
      }
    }
  }

  /** @returns undefined if the passage was closed by the time there was a connection */
  async #ask(
    { kind, method, url, headers, authorization, content }: TransportRequest,
    passage: Passage | undefined,
    signal: AbortSignal,
  ): Promise<Exchange | undefined> {
    const startedMs = this.#clock.monotonic()
    let status: number | undefined
    let hasGone = true
    try {
      const route = this.#egress.dispatcherFor(url)
      const mayGo = (): boolean => (hasGone = passage?.mayGo() ?? true)
      const asked = (passage ? route.compose(onlyIf(mayGo)) : route).request({
        origin: url.origin,
        path: url.pathname + url.search,
        method,
        body: content ?? null,
        headers: {
          'user-agent': this.#userAgent,
          ...headers,
          // Digests and sizes are those of the content; a gzipped answer would have neither.
          'accept-encoding': 'identity',
          ...(authorization === undefined ? {} : { authorization }),
        },
        signal,
        // Else undici hangs up after each HEAD: a TLS handshake for every tag that is checked.
        reset: false,
        headersTimeout: HEADERS_TIMEOUT_MS,
        bodyTimeout: BODY_IDLE_TIMEOUT_MS,
        highWaterMark: BODY_BUFFER_BYTES,
      })
      // A request that waits for a connection hears of the signal only when its turn comes.
      const response = await leaveOnAbort(asked, signal).catch((error: unknown) => {
        asked.then(({ body }) => drop(body)).catch(() => undefined)
        throw error
      })
      status = response.statusCode
      return { status, headers: response.headers, body: response.body }
    } catch (error) {
      if (!hasGone && !signal.aborted) return undefined
      // The reason says more than undici's "aborted".
      if (signal.aborted) throw signal.reason
      throw connectionError(error, url.host)
    } finally {
      const durationMs = this.#clock.monotonic() - startedMs
      if (hasGone) this.#onRequest?.({ method, kind, status, durationMs })
    }
  }
}

function asUpstreamError(error: unknown): UpstreamError {
  if (error instanceof UpstreamError) return error
  throw error
}
