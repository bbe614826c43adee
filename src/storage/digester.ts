// Hashes spool files behind their writer, in a worker thread. A hash costs more than everything else that
// happens to a downloaded byte; here it costs the main thread nothing, and reading the file back from the
// page cache is cheaper than handing the buffers over.

import { Worker } from 'node:worker_threads'
import type { DigestAlgorithm } from '../oci/digest.ts'

export type DigesterRequest =
  | {
      readonly kind: 'open'
      readonly id: number
      readonly file: string
      readonly algorithm: DigestAlgorithm
    }
  | { readonly kind: 'advance'; readonly id: number; readonly availableBytes: number }
  | { readonly kind: 'bytes'; readonly id: number; readonly bytes: Uint8Array }
  | { readonly kind: 'finish' | 'abort'; readonly id: number }

export type DigesterReply =
  { readonly id: number; readonly hex: string } | { readonly id: number; readonly error: string }

interface Waiter {
  resolve(hex: string): void
  reject(error: Error): void
}

/** One file being hashed. */
export interface DigestRun {
  /** Tells how many bytes of the file are written by now. */
  advance(availableBytes: number): void
  /** Appends bytes that could not be written to the file; the caller may reuse its memory at once. */
  append(bytes: Uint8Array): void
  /** @returns the lower-case hex digest of all bytes; rejects if the file cannot be read */
  finish(): Promise<string>
  /** Ends the run without a result: `finish` rejects. Idempotent. */
  abort(): void
}

export class Digester {
  readonly #workerUrl: URL
  readonly #waiters = new Map<number, Waiter>()
  #worker: Worker | undefined
  #lastId = 0

  /** @param options.workerUrl where the compiled digest-worker is; a thread can't be started from TypeScript */
  constructor(options: { workerUrl: URL }) {
    this.#workerUrl = options.workerUrl
  }

  open(file: string, algorithm: DigestAlgorithm): DigestRun {
    const id = ++this.#lastId
    const worker = (this.#worker ??= this.#start())
    const send = (request: DigesterRequest): void => worker.postMessage(request)
    const result = new Promise<string>((resolve, reject) => {
      this.#waiters.set(id, { resolve, reject })
    })
    // A run may fail before anybody asks for its result; it is reported to whoever does.
    result.catch(() => undefined)
    send({ kind: 'open', id, file, algorithm })
    return {
      advance: (availableBytes) => send({ kind: 'advance', id, availableBytes }),
      append: (bytes) => send({ kind: 'bytes', id, bytes }),
      finish: () => {
        send({ kind: 'finish', id })
        return result
      },
      abort: () => {
        const waiter = this.#waiters.get(id)
        if (!waiter) return
        this.#waiters.delete(id)
        waiter.reject(new Error('the hashing was aborted'))
        send({ kind: 'abort', id })
      },
    }
  }

  async close(): Promise<void> {
    const worker = this.#worker
    this.#worker = undefined
    this.#fail(new Error('the digester is closed'))
    await worker?.terminate()
  }

  #start(): Worker {
    const worker = new Worker(this.#workerUrl)
    worker.unref()
    worker.on('message', (reply: DigesterReply) => {
      const waiter = this.#waiters.get(reply.id)
      this.#waiters.delete(reply.id)
      if ('hex' in reply) waiter?.resolve(reply.hex)
      else waiter?.reject(new Error(`could not hash: ${reply.error}`))
    })
    worker.on('error', (error: Error) => {
      // The next run starts another thread; those of this one cannot be finished.
      if (this.#worker === worker) this.#worker = undefined
      this.#fail(error)
    })
    return worker
  }

  #fail(error: Error): void {
    for (const waiter of this.#waiters.values()) waiter.reject(error)
    this.#waiters.clear()
  }
}
