// One request being answered: Node's two objects, and what the access line will say of it. Answers are
// written straight to Node's response: header names keep the spelling that scripts grep for, HEAD never
// opens a body, and a stream that fails ends the connection instead of ending well.

import type { IncomingMessage, ServerResponse } from 'node:http'
import type { Freshness } from '../cache/answer.ts'
import type { Clock } from '../clock.ts'
import type { Digest } from '../oci/digest.ts'

/** Names and values in turn: what Node takes without looking at each again. */
export type HeaderList = string[]

const COMMON_HEADERS: Readonly<HeaderList> = ['Docker-Distribution-Api-Version', 'registry/2.0']

/** Up to this size a body goes out in one system call with the headers, if it is a string: a third cheaper. */
const JOINED_BODY_MAX_BYTES = 16 * 1024

/**
 * Clients give up after 30 s without headers (containerd). All that the upstream is asked for one request has to be
 * answered within this time, together.
 */
const ANSWER_LIMIT_MS = 25_000

export type HandlerName = 'base' | 'catalog' | 'manifest' | 'blob' | 'tags' | 'referrers' | 'other'

export class Exchange {
  readonly request: IncomingMessage
  readonly response: ServerResponse
  readonly requestId: string
  /** Taken while the connection is open: afterwards nobody knows it. */
  readonly remoteAddress: string
  readonly isHead: boolean
  /** Monotonic. */
  readonly startedMs: number
  /** Monotonic: by when it must be known what the answer is. */
  readonly deadlineMs: number
  /** The upstream that its listener is bound to. */
  readonly boundUpstream: string | undefined
  handler: HandlerName = 'other'
  /** By which the client knows the upstream; told in the answer. */
  namespace: string | undefined
  upstream: string | undefined
  /** The upstream, for metrics. */
  upstreamLabel: string | undefined
  repository: string | undefined
  reference: string | undefined
  digest: Digest | undefined
  freshness: Freshness | undefined
  /** Why the answer is an error; shown in the log. */
  failure: string | undefined
  /** Of the body. */
  sentBytes = 0
  /** Monotonic; undefined until the headers went out. */
  headersSentMs: number | undefined
  readonly #clock: Clock
  readonly #configuredHeaders: Readonly<HeaderList>

  constructor(
    deps: { clock: Clock; configuredHeaders: Readonly<HeaderList> },
    options: {
      request: IncomingMessage
      response: ServerResponse
      requestId: string
      remoteAddress: string
      boundUpstream: string | undefined
    },
  ) {
    const { remoteAddress, request, requestId, response } = options
    this.boundUpstream = options.boundUpstream
    this.#clock = deps.clock
    this.#configuredHeaders = deps.configuredHeaders
    this.request = request
    this.response = response
    this.requestId = requestId
    this.remoteAddress = remoteAddress
    this.isHead = request.method === 'HEAD'
    this.startedMs = deps.clock.monotonic()
    this.deadlineMs = this.startedMs + ANSWER_LIMIT_MS
  }

  /** Sends the status line and headers. The body, if any, is the caller's. */
  begin(status: number, headers: HeaderList): void {
    this.headersSentMs = this.#clock.monotonic()
    const all = COMMON_HEADERS.concat(headers)
    if (this.namespace !== undefined) all.push('OCI-Namespace', this.namespace)
    addMissing(all, this.#configuredHeaders)
    this.response.writeHead(status, all)
  }

  /**
   * Sends a whole answer; `headers` becomes this function's, and gets the `Content-Length` of `body`, also for HEAD,
   * which gets no body.
   */
  send(status: number, headers: HeaderList, body: Buffer | string = ''): void {
    const sizeBytes = typeof body === 'string' ? Buffer.byteLength(body) : body.length
    const hasBody = status !== 304
    if (hasBody) headers.push('Content-Length', String(sizeBytes))
    this.begin(status, headers)
    if (this.isHead || !hasBody) {
      this.response.end()
      return
    }
    this.sentBytes = sizeBytes
    if (typeof body === 'string') this.response.end(body)
    else if (sizeBytes <= JOINED_BODY_MAX_BYTES)
      this.response.end(body.toString('latin1'), 'latin1')
    else this.response.end(body)
  }

  /** @param headers none of `Content-Type` and `Content-Length` */
  sendJson(status: number, headers: HeaderList, value: unknown): void {
    this.send(
      status,
      ['Content-Type', 'application/json', ...headers],
      `${JSON.stringify(value)}\n`,
    )
  }

  header(name: string): string | undefined {
    const value = this.request.headers[name]
    return Array.isArray(value) ? value.join(', ') : value
  }
}

/** Those of `others` that the answer does not have of its own: twice is wrong for most. */
function addMissing(headers: HeaderList, others: Readonly<HeaderList>): void {
  const ownLength = headers.length
  for (let at = 0; at < others.length; at += 2) {
    const name = others[at] ?? ''
    if (!hasName(headers, ownLength, name)) headers.push(name, others[at + 1] ?? '')
  }
}

/** @param length of the part of `headers` that is looked at */
function hasName(headers: HeaderList, length: number, name: string): boolean {
  for (let at = 0; at < length; at += 2) {
    const own = headers[at] ?? ''
    if (own.length === name.length && own.toLowerCase() === name.toLowerCase()) return true
  }
  return false
}
