// The open connections of one server, bounded. Whoever is being answered comes first: when there are as many
// connections as may be, the one that has been idle for longest makes room for a new one; that also gets rid of
// clients that open connections and never finish a request. Requests of one connection are answered one after the
// other: Node would begin them all, and would not say which of them are left behind when the connection ends.

import type { IncomingMessage, RequestListener, ServerResponse } from 'node:http'
import type { Socket } from 'node:net'

/** Clients of registries wait for an answer before they send the next request; a few that don't are harmless. */
const PIPELINED_MAX = 16

interface Waiting {
  readonly request: IncomingMessage
  readonly response: ServerResponse
}

export class Connections {
  readonly #max: number
  readonly #handler: RequestListener
  readonly #onRefused: () => void
  /** Each with the requests that wait for the one being answered. */
  readonly #waiting = new Map<Socket, Waiting[]>()
  /** Nothing is being answered here. In the order in which that came about. */
  readonly #idle = new Set<Socket>()
  #isClosing = false

  /**
   * @param deps.onRefused called when a new connection was closed for want of room
   * @param options.max how many there may be
   */
  constructor(deps: { handler: RequestListener; onRefused: () => void }, options: { max: number }) {
    this.#handler = deps.handler
    this.#onRefused = deps.onRefused
    this.#max = options.max
  }

  get count(): number {
    return this.#waiting.size
  }

  /** Takes a connection in. A client whose connection is closed here without an answer goes elsewhere. */
  add(socket: Socket): void {
    if (this.#waiting.size >= this.#max && !this.#closeLongestIdle()) {
      socket.destroy()
      this.#onRefused()
      return
    }
    this.#waiting.set(socket, [])
    this.#idle.add(socket)
    socket.once('close', () => this.#forget(socket))
  }

  /** Answers a request, when those before it on its connection are answered. */
  serve(request: IncomingMessage, response: ServerResponse): void {
    const { socket } = request
    const waiting = this.#waiting.get(socket)
    // Sent in one piece with a request for which the connection was closed.
    if (!waiting || socket.destroyed) return
    if (this.#idle.delete(socket)) this.#answer({ request, response })
    else if (waiting.push({ request, response }) > PIPELINED_MAX) socket.destroy()
  }

  /** Ends what is idle, and everything else with the answer that is under way on it. */
  close(): void {
    this.#isClosing = true
    for (const socket of this.#idle) socket.destroy()
  }

  #answer({ request, response }: Waiting): void {
    response.once('close', () => this.#next(request.socket))
    this.#handler(request, response)
  }

  #next(socket: Socket): void {
    if (this.#isClosing) {
      // A client that keeps its connection would hold up the stop until the grace is over.
      socket.destroySoon()
      return
    }
    const next = socket.destroyed ? undefined : this.#waiting.get(socket)?.shift()
    if (next) this.#answer(next)
    else if (this.#waiting.has(socket)) this.#idle.add(socket)
  }

  /** @returns false when none is idle */
  #closeLongestIdle(): boolean {
    const [longestIdle] = this.#idle
    if (!longestIdle) return false
    longestIdle.destroy()
    // At once, not when the system has closed it: many may arrive in one turn.
    this.#forget(longestIdle)
    return true
  }

  #forget(socket: Socket): void {
    this.#waiting.delete(socket)
    this.#idle.delete(socket)
  }
}
