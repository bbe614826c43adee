// A server on an address: opened, and closed so that answers under way are finished, within a limit. Every
// connection has a time limit in every state it can be in, and there is a limit to how many there are.

import { createServer, type RequestListener, type Server } from 'node:http'
import { lstat, unlink } from 'node:fs/promises'
import { connect, type AddressInfo } from 'node:net'
import type { Logger } from 'pino'
import type { Clock } from '../clock.ts'
import { takeAbsoluteTarget } from './absolute-target.ts'
import { Connections } from './connections.ts'

export type ListenAddress =
  | { readonly host: string | undefined; readonly port: number }
  /** A unix socket. */
  | { readonly path: string }

export interface ListenerLimits {
  /** Between two requests. Go clients keep connections for up to 120 s; one that we close first costs them a failed request. */
  readonly keepAliveMs: number
  /** From the first byte (or the connection) to the end of the request. A client sends its headers at once; slowloris does not. */
  readonly requestMs: number
  /** How often the limit above is looked at. */
  readonly checkIntervalMs: number
  /** A connection on which nothing moves: the client has gone without a word, or an upstream has. */
  readonly silenceMs: number
  readonly headersBytes: number
}

const LIMITS: ListenerLimits = {
  keepAliveMs: 130_000,
  requestMs: 20_000,
  checkIntervalMs: 5_000,
  silenceMs: 300_000,
  headersBytes: 16 * 1024,
}

/** Refused connections come in thousands: one line a minute says it. */
const REFUSED_LOG_INTERVAL_MS = 60_000

export interface ListenerDeps {
  readonly clock: Clock
  readonly logger: Logger
  readonly handler: RequestListener
}

export interface ListenerOptions {
  readonly address: ListenAddress
  readonly connectionsMax: number
  /** Default: those that suit the clients of registries. */
  readonly limits?: ListenerLimits
}

export class Listener {
  readonly #clock: Clock
  readonly #logger: Logger
  readonly #server: Server
  readonly #address: ListenAddress
  readonly #connections: Connections
  readonly #connectionsMax: number
  #refusedLoggedMs = Number.NEGATIVE_INFINITY

  constructor({ clock, handler, logger }: ListenerDeps, options: ListenerOptions) {
    const { address, connectionsMax, limits = LIMITS } = options
    this.#clock = clock
    this.#logger = logger
    this.#address = address
    this.#connectionsMax = connectionsMax
    this.#connections = new Connections(
      { handler, onRefused: () => this.#logRefused('all of them are being answered') },
      { max: connectionsMax },
    )
    const answer: RequestListener = (request, response) => {
      takeAbsoluteTarget(request)
      this.#connections.serve(request, response)
    }
    this.#server = createServer(
      {
        keepAliveTimeout: limits.keepAliveMs,
        headersTimeout: limits.requestMs,
        requestTimeout: limits.requestMs,
        connectionsCheckingInterval: limits.checkIntervalMs,
        maxHeaderSize: limits.headersBytes,
        noDelay: true,
      },
      answer,
    )
    this.#server.on('connection', (socket) => this.#connections.add(socket))
    // Without this Node invites the body of a request that is going to be refused.
    this.#server.on('checkContinue', answer)
    this.#server.setTimeout(limits.silenceMs)
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
    const closed = new Promise<void>((resolve) => {
      this.#server.close(() => resolve())
    })
    this.#connections.close()
    const cancel = this.#clock.setTimer(graceMs, () => this.#server.closeAllConnections())
    await closed
    cancel()
  }

  async #listen(): Promise<void> {
    const address = this.#address
    if ('path' in address) await removeStaleSocket(address.path)
    await new Promise<void>((resolve, reject) => {
      this.#server.once('error', reject)
      this.#server.listen(address, () => {
        this.#server.off('error', reject)
        // From now on: a connection that the system could not hand over. Those that are open go on.
        this.#server.on('error', (error) => this.#logRefused(error.message))
        resolve()
      })
    })
  }

  #logRefused(reason: string): void {
    const nowMs = this.#clock.monotonic()
    if (nowMs - this.#refusedLoggedMs < REFUSED_LOG_INTERVAL_MS) return
    this.#refusedLoggedMs = nowMs
    const connections = this.#connections.count
    this.#logger.warn(
      { connections, connectionsMax: this.#connectionsMax, reason },
      'a connection was refused; if clients are not to blame, raise the limit of open files (ulimit -n)',
    )
  }
}

/**
 * Removes what a crash has left at the path of a unix socket: it would refuse us for ever.
 *
 * @throws when something else is there, which is not ours to remove
 */
async function removeStaleSocket(path: string): Promise<void> {
  const found = await lstat(path).catch(() => undefined)
  if (!found) return
  if (!found.isSocket()) {
    throw new Error('there is something that is not a socket; remove it, or set http.addr')
  }
  if (await isAnswering(path)) throw Object.assign(new Error('in use'), { code: 'EADDRINUSE' })
  await unlink(path)
}

/** Whether a process listens there. Only a socket that nobody holds refuses: any other failure is a reason to leave it alone. */
function isAnswering(path: string): Promise<boolean> {
  return new Promise((resolve) => {
    const socket = connect({ path })
    socket.once('connect', () => {
      socket.destroy()
      resolve(true)
    })
    socket.once('error', (error) => resolve(!('code' in error && error.code === 'ECONNREFUSED')))
  })
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
