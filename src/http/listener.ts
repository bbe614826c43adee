// A server on an address: opened, and closed so that answers under way are finished, within a limit.

import {
  createServer,
  type IncomingMessage,
  type RequestListener,
  type Server,
  type ServerResponse,
} from 'node:http'
import { unlink } from 'node:fs/promises'
import type { AddressInfo } from 'node:net'
import type { Clock } from '../clock.ts'

export type ListenAddress =
  | { readonly host: string | undefined; readonly port: number }
  /** A unix socket. */
  | { readonly path: string }

/** Go clients keep connections for up to 120 s; one that we close first costs them a failed request. */
const KEEP_ALIVE_MS = 130_000
/** A client sends its headers at once; slowloris does not. */
const HEADERS_MAX_MS = 20_000
const CHECK_INTERVAL_MS = 5_000
const HEADERS_MAX_BYTES = 16 * 1024
/** A connection on which nothing moves: the client has gone without a word, or an upstream has. */
const IDLE_MAX_MS = 300_000

export class Listener {
  readonly #clock: Clock
  readonly #server: Server
  readonly #address: ListenAddress
  readonly #handler: RequestListener
  #isStopping = false

  constructor(
    deps: { clock: Clock; handler: RequestListener },
    options: { address: ListenAddress },
  ) {
    this.#clock = deps.clock
    this.#address = options.address
    this.#handler = deps.handler
    const answer: RequestListener = (request, response) => this.#answer(request, response)
    this.#server = createServer(
      {
        keepAliveTimeout: KEEP_ALIVE_MS,
        headersTimeout: HEADERS_MAX_MS,
        requestTimeout: HEADERS_MAX_MS,
        connectionsCheckingInterval: CHECK_INTERVAL_MS,
        maxHeaderSize: HEADERS_MAX_BYTES,
        noDelay: true,
      },
      answer,
    )
    // Without this Node invites the body of a request that is going to be refused.
    this.#server.on('checkContinue', answer)
    this.#server.setTimeout(IDLE_MAX_MS)
  }

  /** @throws when the address is taken or not ours, with what to do about it */
  async start(): Promise<void> {
    try {
      await this.#listen()
    } catch (error) {
      throw new Error(`cannot listen on ${formatAddress(this.#address)}: ${explain(error)}`, {
        cause: error,
      })
    }
  }

  /** Where it listens: the port is the real one, also if 0 was asked for. */
  get url(): string {
    const bound = this.#server.address()
    if (bound === null || typeof bound === 'string') return `unix:${String(bound)}`
    return `http://${hostOf(bound)}:${bound.port}`
  }

  /**
   * Takes no more requests, and lets those under way finish.
   *
   * @param graceMs after this time connections are cut
   */
  async stop(graceMs: number): Promise<void> {
    this.#isStopping = true
    const closed = new Promise<void>((resolve) => {
      this.#server.close(() => resolve())
    })
    this.#server.closeIdleConnections()
    const cancel = this.#clock.setTimer(graceMs, () => this.#server.closeAllConnections())
    await closed
    cancel()
  }

  #answer(request: IncomingMessage, response: ServerResponse): void {
    response.once('close', () => {
      // A client that keeps its connection would hold up the stop until the grace is over.
      if (this.#isStopping) request.socket.destroySoon()
    })
    this.#handler(request, response)
  }

  async #listen(): Promise<void> {
    const address = this.#address
    // A socket file that a crash left behind would refuse us for ever.
    if ('path' in address) await unlink(address.path).catch(() => undefined)
    await new Promise<void>((resolve, reject) => {
      this.#server.once('error', reject)
      this.#server.listen(address, () => {
        this.#server.off('error', reject)
        resolve()
      })
    })
  }
}

function explain(error: unknown): string {
  const code = error instanceof Error && 'code' in error ? error.code : undefined
  if (code === 'EADDRINUSE') return 'another process uses it; stop that one, or set http.addr'
  if (code === 'EACCES') return 'not allowed; use a port above 1023, or run with more rights'
  if (code === 'EADDRNOTAVAIL') return 'this machine does not have that address; check http.addr'
  return error instanceof Error ? error.message : String(error)
}

function hostOf({ address, family }: AddressInfo): string {
  if (address === '::' || address === '0.0.0.0') return 'localhost'
  return family === 'IPv6' ? `[${address}]` : address
}

function formatAddress(address: ListenAddress): string {
  return 'path' in address ? address.path : `${address.host ?? ''}:${address.port}`
}
