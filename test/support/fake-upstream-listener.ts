// A server on 127.0.0.1 that can go away and come back under the same port.

import { createServer, type RequestListener } from 'node:http'
import { createServer as createTlsServer } from 'node:https'
import type { Socket } from 'node:net'

export interface TlsOptions {
  readonly cert: string
  readonly key: string
}

export class FakeListener {
  readonly #onRequest: RequestListener
  readonly #tls: TlsOptions | undefined
  readonly #sockets = new Set<Socket>()
  #close: (() => Promise<void>) | undefined
  #port: number
  #accepted = 0

  constructor(
    onRequest: RequestListener,
    { port = 0, tls }: { port?: number | undefined; tls?: TlsOptions | undefined } = {},
  ) {
    this.#onRequest = onRequest
    this.#port = port
    this.#tls = tls
  }

  /** Without a slash at the end; known once it has listened. */
  get origin(): string {
    return `${this.#tls ? 'https' : 'http'}://127.0.0.1:${this.#port}`
  }

  get activeConnections(): number {
    return this.#sockets.size
  }

  /** Connections accepted since the start. */
  get acceptedConnections(): number {
    return this.#accepted
  }

  /** @throws EADDRINUSE when somebody took the port while this was down */
  async listen(): Promise<void> {
    if (this.#close) return
    // Connections end when a test or a client says so, never by a timer.
    const options = { keepAliveTimeout: 0, requestTimeout: 0, headersTimeout: 0, noDelay: true }
    const server = this.#tls
      ? createTlsServer({ ...options, ...this.#tls }, this.#onRequest)
      : createServer(options, this.#onRequest)
    server.on('connection', (socket) => {
      this.#accepted++
      this.#sockets.add(socket)
      socket.on('close', () => this.#sockets.delete(socket))
      // Clients of these tests go away in every way there is.
      socket.on('error', () => {})
    })
    await new Promise<void>((resolve, reject) => {
      server.once('error', reject)
      server.listen(this.#port, '127.0.0.1', resolve)
    })
    const address = server.address()
    if (typeof address === 'object' && address) this.#port = address.port
    this.#close = () =>
      new Promise((resolve) => {
        server.close(() => resolve())
      })
  }

  /** Refuses connections from now on, and drops those that are open. */
  async stop(): Promise<void> {
    const closed = this.#close?.()
    this.#close = undefined
    for (const socket of this.#sockets) socket.destroy()
    await closed
  }
}
