// How clients ask: one, twenty that join a download at different places, one that wants a part, one that is
// slow, one that leaves. Each brings back what it saw.

import { connect } from 'node:net'
import type { RequestMatch } from '../support/fake-upstream-requests.ts'
import type { Gate } from '../support/fake-upstream-wire.ts'
import {
  openRaw,
  rawGet,
  type RawRequestOptions,
  type RawResponse,
} from '../support/http-client.ts'
import { waitFor } from '../support/wait-for.ts'
import { BLOB_BYTES } from './fault-row.ts'
import type { Part } from './expectation.ts'
import { meaningIn, type Cell } from './matrix.ts'
import type { Scene } from './scene.ts'
import type { Station } from './station.ts'

export interface Seen {
  readonly response: RawResponse
  /** Of a blob, that was asked for; undefined: the whole. */
  readonly part: Part | undefined
  readonly method: 'GET' | 'HEAD'
}

/** How many requests were sent, and what those clients saw that stayed. */
export interface Asked {
  readonly requests: number
  readonly seen: readonly Seen[]
}

export const MIDDLE: Part = { first: 100_000, last: 399_999 }
/** Of every part that a download has left. */
export const BEGINNING: Part = { first: 0, last: 19_999 }
const GROUP = 5
const GROUPS_LATER = 3
/** Of the next answer of the upstream, read by a slow client in one turn of the event loop. */
const SLOW_BYTES = 16_384

export class Asking {
  readonly #cell: Cell
  readonly #scene: Scene
  readonly #station: Station

  constructor(cell: Cell, scene: Scene, station: Station) {
    this.#cell = cell
    this.#scene = scene
    this.#station = station
  }

  ask(): Promise<Asked> {
    switch (this.#cell.client) {
      case 'one':
        return this.#alone(this.#get())
      case 'head':
        return this.#alone(this.#get({ method: 'HEAD' }))
      case 'range':
        return this.#alone(this.#get({}, MIDDLE))
      case 'twenty':
        return this.#twenty()
      case 'slow':
        return this.#slow()
      case 'leaves':
        return this.#leaves()
    }
  }

  async #alone(seen: Promise<Seen>): Promise<Asked> {
    return { requests: 1, seen: [await seen] }
  }

  async #get(options: RawRequestOptions = {}, part?: Part): Promise<Seen> {
    const response = await rawGet(this.#url, { ...options, ...rangeOf(part) })
    return { response, part, method: options.method === 'HEAD' ? 'HEAD' : 'GET' }
  }

  /** The first join before the upstream answers, the others while its body stands at a quarter, half, … */
  async #twenty(): Promise<Asked> {
    const clients: Promise<Seen>[] = []
    const join = (): void => {
      for (let nth = 0; nth < GROUP; nth++)
        clients.push(this.#get({}, this.#partOf(clients.length)))
    }
    const { row, state } = this.#cell
    const isAsked = state !== 'warm' && !row.isDown
    const start = isAsked ? this.#gate() : undefined
    const gates = Array.from({ length: GROUPS_LATER }, (_, nth) => {
      const share = (nth + 1) / (GROUPS_LATER + 1)
      return isAsked ? this.#gate(Math.floor(this.#bytesToCome * share)) : undefined
    })
    join()
    await this.#assembled(clients, start)
    start?.release()
    for (const gate of gates) {
      await this.#reached(gate, Promise.allSettled(clients))
      join()
      await this.#assembled(clients)
      gate?.release()
    }
    const seen = await Promise.all(clients)
    return { requests: clients.length, seen }
  }

  /** Every fifth client has the beginning already, each another one. */
  #partOf(nth: number): Part | undefined {
    if (this.#cell.resource !== 'blob' || nth % GROUP !== GROUP - 1) return undefined
    return { first: nth * 25_000, last: BLOB_BYTES - 1 }
  }

  /** All who have come so far are being answered, or have been. @param gate where their answer is to stand */
  async #assembled(clients: readonly Promise<Seen>[], gate?: Gate): Promise<void> {
    let answered = 0
    const each = clients.map((client) => client.finally(() => answered++))
    if (gate) await this.#reached(gate, Promise.allSettled(each))
    const areIn = async (): Promise<boolean> =>
      answered + (await this.#station.requestsInFlight()) >= clients.length
    await waitFor('the clients to be in', areIn)
  }

  /** The slow one is first: the download is made at its request, and must not be made at its pace. */
  async #slow(): Promise<Asked> {
    const opened = openRaw(this.#url, { readBytesPerTick: SLOW_BYTES })
    const fast = this.#get()
    const slow = Promise.all([opened, fast]).then(([exchange]) => exchange.finish())
    const seen: Seen[] = [await fast, { response: await slow, part: undefined, method: 'GET' }]
    return { requests: 2, seen }
  }

  /** Leaves while the upstream is about to answer, or (a blob that comes) in the middle of the body. */
  async #leaves(): Promise<Asked> {
    const { resource, row, state } = this.#cell
    if (state === 'warm') {
      const exchange = await openRaw(this.#url)
      await exchange.read(1)
      exchange.leave()
      return { requests: 1, seen: [] }
    }
    const hasBody = resource === 'blob' && (row.shows === 'body' || row.means.is === 'harmless')
    const gate = row.isDown
      ? undefined
      : this.#gate(hasBody ? Math.floor(this.#bytesToCome / 2) : undefined)
    const { hostname, pathname, port } = new URL(this.#url)
    const socket = connect({ host: hostname, port: Number(port) })
    socket.on('error', () => undefined)
    const ended = new Promise((resolve) => {
      socket.resume().on('close', resolve)
      // Without a gate nothing holds the answer: its first byte is when to leave.
      if (!gate) socket.once('data', resolve)
    })
    socket.write(`GET ${pathname} HTTP/1.1\r\nHost: ${hostname}\r\nConnection: close\r\n\r\n`)
    await this.#reached(gate, ended)
    socket.destroy()
    gate?.release()
    return { requests: 1, seen: [] }
  }

  /** What arrives of the next body before the fault strikes, at most. */
  get #bytesToCome(): number {
    const meaning = meaningIn(this.#cell)
    if (meaning.is === 'cut') return meaning.arrivesBytes
    if (meaning.is === 'wrong') return Math.min(meaning.announcedBytes, BLOB_BYTES)
    return BLOB_BYTES
  }

  #gate(afterBytes?: number): Gate {
    const match: RequestMatch = this.#scene.match
    return this.#station.upstream.gate(match, afterBytes === undefined ? {} : { afterBytes })
  }

  async #reached(gate: Gate | undefined, otherwise: Promise<unknown>): Promise<void> {
    await Promise.race([gate?.reached ?? otherwise, otherwise])
  }

  get #url(): string {
    return this.#station.layover.url + this.#scene.path
  }
}

export function rangeOf(part: Part | undefined): RawRequestOptions {
  if (!part) return {}
  const last = part.last === BLOB_BYTES - 1 ? '' : part.last
  return { headers: { Range: `bytes=${part.first}-${last}` } }
}
