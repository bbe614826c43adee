// Every request goes through here, once: it gets an id, is answered by the registry's routes or by the app,
// and is accounted for when its answer is over. The only place that logs and counts requests, and the only
// one that turns errors of the registry's routes into answers.

import { randomUUID } from 'node:crypto'
import type { IncomingMessage, ServerResponse } from 'node:http'
import { isIP } from 'node:net'
import type { Logger } from 'pino'
import type { Clock } from '../clock.ts'
import { RegistryError } from '../oci/registry-error.ts'
import type { AccessLog } from '../telemetry/access-log.ts'
import type { Metrics } from '../telemetry/metrics.ts'
import { errorResponse, type ErrorResponseOptions } from './error-response.ts'
import { Exchange, type HeaderList } from './exchange.ts'
import type { RegistryRoutes } from './registry-routes.ts'

/** In log and metrics, as nginx has it: the client left, or was cut off, before there was an answer. */
const STATUS_UNANSWERED = 499

export interface RequestHandlerDeps {
  readonly clock: Clock
  readonly logger: Logger
  readonly metrics: Metrics
  /** Undefined: `log.accesslog.disabled`. */
  readonly accessLog: AccessLog | undefined
  readonly registry: RegistryRoutes
  /** What answers everything that is not the registry's. */
  readonly app: (request: IncomingMessage, response: ServerResponse) => unknown
}

export interface RequestHandlerOptions extends ErrorResponseOptions {
  /** `http.headers`: added to every answer of the registry that does not have them of its own. */
  readonly headers: Readonly<Record<string, readonly string[]>>
}

export class RequestHandler {
  readonly #deps: RequestHandlerDeps
  readonly #options: RequestHandlerOptions
  readonly #configuredHeaders: HeaderList

  constructor(deps: RequestHandlerDeps, options: RequestHandlerOptions) {
    this.#options = options
    this.#deps = deps
    this.#configuredHeaders = Object.entries(options.headers).flatMap(([name, values]) =>
      values.flatMap((value) => [name, value]),
    )
  }

  /** @param boundUpstream that of the listener, if it has one */
  handle(request: IncomingMessage, response: ServerResponse, boundUpstream?: string): void {
    const { app, metrics, registry } = this.#deps
    if (!registry.matches(request.url ?? '')) {
      app(request, response)
      return
    }
    const exchange = new Exchange(
      { clock: this.#deps.clock, configuredHeaders: this.#configuredHeaders },
      {
        request,
        response,
        requestId: randomUUID(),
        remoteAddress: remoteAddress(request),
        boundUpstream,
      },
    )
    metrics.httpInFlight.inc()
    response.on('close', () => this.#account(exchange))
    try {
      const pending = registry.handle(exchange)
      if (pending) pending.catch((error: unknown) => this.#fail(exchange, error))
    } catch (error) {
      this.#fail(exchange, error)
    }
  }

  #fail(exchange: Exchange, error: unknown): void {
    const { response } = exchange
    const { body, headers, isExpected, status } = errorResponse(error, this.#options)
    exchange.failure = causeOf(error) ?? detailOf(body.errors[0]?.detail) ?? messageOf(error)
    if (response.headersSent) {
      // Too late for an error answer: an end short of the announced length is the only truth left.
      response.destroy()
      return
    }
    // An error is no outcome of the cache, whatever there was to be sent before it.
    exchange.freshness = undefined
    exchange.sendJson(status, headers, body)
    const { requestId } = exchange
    if (!isExpected)
      this.#deps.logger.error({ err: error, isBug: true, requestId }, 'a request failed')
  }

  #account(exchange: Exchange): void {
    const { accessLog, clock, metrics } = this.#deps
    const { freshness, handler, request, response } = exchange
    const durationMs = clock.monotonic() - exchange.startedMs
    const method = request.method ?? ''
    const isAnswered = response.headersSent
    const status = isAnswered ? response.statusCode : STATUS_UNANSWERED
    metrics.httpInFlight.dec()
    metrics.httpRequests.inc({ handler, code: status, method: method.toLowerCase() })
    metrics.httpDuration.observe({ handler, method: method.toLowerCase() }, durationMs / 1000)
    if (handler === 'blob' || handler === 'manifest') this.#countContent(exchange, handler)
    accessLog?.write({
      timeMs: clock.now(),
      requestId: exchange.requestId,
      remoteAddress: exchange.remoteAddress,
      method,
      uri: request.url ?? '',
      httpVersion: request.httpVersion,
      status,
      sentBytes: exchange.sentBytes,
      referer: request.headers.referer,
      userAgent: request.headers['user-agent'],
      durationMs,
      ttfbMs:
        exchange.headersSentMs === undefined
          ? undefined
          : exchange.headersSentMs - exchange.startedMs,
      cache: freshness?.outcome,
      upstream: exchange.upstream,
      repository: exchange.repository,
      reference: exchange.reference,
      digest: exchange.digest,
      isAborted: !response.writableFinished,
      error:
        exchange.failure ??
        (isAnswered ? undefined : 'the connection ended before there was an answer'),
    })
  }

  #countContent(
    { freshness, sentBytes, upstreamLabel: upstream = '' }: Exchange,
    type: 'blob' | 'manifest',
  ): void {
    const { metrics } = this.#deps
    metrics.proxyRequests.inc({ type })
    if (!freshness) return
    const { outcome } = freshness
    const isMiss = outcome === 'miss' || outcome === 'coalesced' || outcome === 'bypass'
    const counter = isMiss ? metrics.proxyMisses : metrics.proxyHits
    counter.inc({ type })
    metrics.cacheRequests.inc({ upstream, type, outcome })
    metrics.proxyPushedBytes.inc({ type }, sentBytes)
  }
}

/** The address that a proxy in front tells is for the log alone; nothing is decided by it. */
function remoteAddress(request: IncomingMessage): string {
  const forwarded = request.headers['x-forwarded-for']
  if (forwarded !== undefined) {
    const [first = ''] = String(forwarded).split(',')
    if (isIP(first.trim())) return first.trim()
  }
  // An IPv4 client of a socket that takes both kinds.
  return request.socket.remoteAddress?.replace(/^::ffff:(?=\d+\.)/, '') ?? '-'
}

/** What an upstream has said: more than clients are told. */
function causeOf(error: unknown): string | undefined {
  if (!(error instanceof RegistryError)) return undefined
  return error.cause instanceof Error ? error.cause.message : undefined
}

function messageOf(error: unknown): string {
  return error instanceof Error ? error.message : String(error)
}

function detailOf(detail: unknown): string | undefined {
  if (typeof detail !== 'object' || detail === null || !('reason' in detail)) return undefined
  return String(detail.reason)
}
