// An HTTP server in the tests' own process that can vanish and come back at the same address.

import { createServer, type RequestListener, type Server } from 'node:http'

export class LoopbackServer {
  readonly #listener: RequestListener
  #server: Server | undefined
  #port = 0

  constructor(listener: RequestListener) {
    this.#listener = listener
  }

  /** `127.0.0.1:<port>`, the same for good once it was started. */
  get address(): string {
    return `127.0.0.1:${this.#port}`
  }

  get url(): string {
    return `http://${this.address}`
  }

  /** Idempotent. */
  async start(): Promise<void> {
    if (this.#server) return
    const server = createServer(this.#listener)
    await new Promise<void>((resolve, reject) => {
      server.once('error', reject).listen(this.#port, '127.0.0.1', resolve)
    })
    this.#port = portOf(server)
    this.#server = server
  }

  /** Cuts every connection; from now on connecting is refused. */
  async stop(): Promise<void> {
    const server = this.#server
    if (!server) return
    this.#server = undefined
    const closed = new Promise((resolve) => server.close(resolve))
    server.closeAllConnections()
    await closed
  }
}

/** A port for a program that cannot be told to choose one and say which. */
export async function freePort(): Promise<number> {
  const server = createServer()
  await new Promise<void>((resolve) => void server.listen(0, '127.0.0.1', resolve))
  const port = portOf(server)
  await new Promise((resolve) => void server.close(resolve))
  return port
}

function portOf(server: Server): number {
  const address = server.address()
  if (address === null || typeof address === 'string') throw new Error('not listening on a port')
  return address.port
}
