// How an answer reaches the connection: when it stops, how fast it goes, how it ends. All that is not an
// ordinary response is done here on the socket, since node would put it right.

import type { ServerResponse } from 'node:http'
import { setTimeout as sleep } from 'node:timers/promises'
import type { Answer } from './fake-upstream-answers.ts'
import type { Fault } from './fake-upstream-faults.ts'

/** Large enough to be fast, small enough that counters move while a body is sent. */
const CHUNK_BYTES = 128 * 1024

/** Throttled bodies go out in this many portions a second. */
const PORTIONS_PER_SECOND = 50

/** A place in answers where they stop until the test lets them go on. */
export class Gate {
  /** Settles when the first answer stands at the gate. */
  readonly reached: Promise<void>
  /** Bytes of the body that are sent before; undefined: not even the headers. */
  readonly afterBytes: number | undefined
  readonly #opened: Promise<void>
  #open: () => void = () => {}
  #reach: () => void = () => {}
  #arrivals = 0

  constructor(afterBytes?: number) {
    this.afterBytes = afterBytes
    this.reached = new Promise((resolve) => (this.#reach = resolve))
    this.#opened = new Promise((resolve) => (this.#open = resolve))
  }

  /** Answers that have come to the gate, also those that have passed it. */
  get arrivals(): number {
    return this.#arrivals
  }

  /** Opens the gate for good. */
  release(): void {
    this.#open()
  }

  pass(): Promise<void> {
    this.#arrivals++
    this.#reach()
    return this.#opened
  }
}

export interface Delivery {
  readonly answer: Answer
  readonly fault: Fault
  readonly gates: readonly Gate[]
  readonly isHead: boolean
  /** Called with the status when the headers are about to be sent. */
  readonly onHeaders: () => void
  /** Called when bytes of the body have been handed to the kernel. */
  readonly onBytes: (sizeBytes: number) => void
  /** Called with 1 when a fault brings the answer to a standstill, with -1 when its client has left. */
  readonly onHang: (change: 1 | -1) => void
}

/** Sends an answer as its fault and gates say; settles when it is over, or the client has left. */
export async function deliver(response: ServerResponse, delivery: Delivery): Promise<void> {
  const gone = new AbortController()
  response.on('close', () => gone.abort())
  response.on('error', () => gone.abort())
  try {
    await deliverUntil(gone.signal, response, delivery)
  } catch (error) {
    if (!gone.signal.aborted && !isHangUp(error)) throw error
  }
}

/**
 * A client that was killed: the write that meets its absence may fail before the response is told, in Node 24 by being
 * canceled.
 */
function isHangUp(error: unknown): boolean {
  const code = error instanceof Error && 'code' in error ? error.code : undefined
  return code === 'ECONNRESET' || code === 'EPIPE' || code === 'ECANCELED'
}

async function deliverUntil(
  gone: AbortSignal,
  response: ServerResponse,
  delivery: Delivery,
): Promise<void> {
  const { answer, fault, gates } = delivery
  if (fault.latencyMs !== undefined) await sleep(fault.latencyMs, undefined, { signal: gone })
  for (const gate of gates) {
    if (gate.afterBytes === undefined) await unlessGone(gone, gate.pass())
  }
  if (fault.hangBeforeHeaders) await hang(gone, delivery)
  if (fault.notHttp) response.socket?.end('SSH-2.0-OpenSSH_9.2p1\r\n')
  else if (fault.cutAtByte === 'before-headers') cut(response, fault)
  else {
    delivery.onHeaders()
    sendHeaders(response, delivery)
    if (delivery.isHead) response.end()
    else await sendBody(gone, response, delivery, answer.body)
  }
}

function sendHeaders(response: ServerResponse, { answer, fault }: Delivery): void {
  const { framing, contentLength = answer.body.length } = fault
  for (const [name, value] of Object.entries(answer.headers)) {
    response.setHeader(name, typeof value === 'string' ? value : [...value])
  }
  if (framing === undefined) response.setHeader('Content-Length', contentLength)
  if (framing === 'close') response.useChunkedEncodingByDefault = false
  response.writeHead(answer.status)
  response.flushHeaders()
}

/** Where a body stops: the bytes before it are sent, then `wait` is awaited. */
interface Stop {
  readonly atByte: number
  readonly wait: () => Promise<void>
}

async function sendBody(
  gone: AbortSignal,
  response: ServerResponse,
  delivery: Delivery,
  whole: Buffer,
): Promise<void> {
  const { fault, gates, onBytes } = delivery
  const cutAt = fault.cutAtByte === 'last' ? whole.length - 1 : fault.cutAtByte
  const body = typeof cutAt === 'number' ? whole.subarray(0, Math.max(cutAt, 0)) : whole
  const pace = paceOf(fault)
  let sentBytes = 0
  const stops = stopsIn(body, fault, gates, () => hang(gone, delivery))
  for (const { atByte, wait } of [...stops, END]) {
    const until = Math.min(atByte, body.length)
    while (sentBytes < until) {
      const portion = body.subarray(sentBytes, Math.min(until, sentBytes + pace.bytes))
      await unlessGone(gone, written(response, portion))
      sentBytes += portion.length
      onBytes(portion.length)
      if (pace.intervalMs > 0) await sleep(pace.intervalMs, undefined, { signal: gone })
    }
    await unlessGone(gone, wait())
  }
  if (fault.cutAtByte !== undefined) cut(response, fault)
  else if (fault.contentLength !== undefined) response.socket?.end()
  else response.end()
}

const END: Stop = { atByte: Infinity, wait: () => Promise.resolve() }

function stopsIn(
  body: Buffer,
  fault: Fault,
  gates: readonly Gate[],
  standStill: () => Promise<void>,
): Stop[] {
  const stops: Stop[] = gates.flatMap((gate) =>
    gate.afterBytes === undefined
      ? []
      : [{ atByte: Math.min(gate.afterBytes, body.length), wait: () => gate.pass() }],
  )
  if (fault.hangAtByte !== undefined) {
    stops.push({ atByte: Math.min(fault.hangAtByte, body.length), wait: standStill })
  }
  return stops.sort((a, b) => a.atByte - b.atByte)
}

function paceOf({ drip, bytesPerSecond }: Fault): { bytes: number; intervalMs: number } {
  if (drip) return drip
  if (bytesPerSecond === undefined) return { bytes: CHUNK_BYTES, intervalMs: 0 }
  const bytes = Math.max(1, Math.ceil(bytesPerSecond / PORTIONS_PER_SECOND))
  return { bytes, intervalMs: (bytes / bytesPerSecond) * 1000 }
}

function cut(response: ServerResponse, { cutBy = 'fin' }: Fault): void {
  if (cutBy === 'rst') response.socket?.resetAndDestroy()
  else response.socket?.end()
}

function written(response: ServerResponse, bytes: Buffer): Promise<void> {
  return new Promise((resolve, reject) => {
    response.write(bytes, (error?: Error | null) => (error ? reject(error) : resolve()))
  })
}

/** Until the client leaves. */
async function hang(gone: AbortSignal, { onHang }: Delivery): Promise<void> {
  onHang(1)
  try {
    await unlessGone(gone, new Promise(() => {}))
  } finally {
    onHang(-1)
  }
}

function unlessGone(gone: AbortSignal, promise: Promise<void>): Promise<void> {
  return new Promise((resolve, reject) => {
    const onGone = (): void => reject(new Error('the client has left'))
    if (gone.aborted) onGone()
    gone.addEventListener('abort', onGone, { once: true })
    promise.then(resolve, reject).finally(() => gone.removeEventListener('abort', onGone))
  })
}
