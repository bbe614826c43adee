// One worker thread for what the main thread should not do itself: hashing files while they grow, and replacing
// small files. Both are a stream of small requests; a download of many small blobs is three times faster when
// the five system calls of each file are made in a row by one thread, instead of queueing in the thread pool
// for the locks of the same directories.

import { once } from 'node:events'
import { Worker } from 'node:worker_threads'
import type { DigestAlgorithm } from '../oci/digest.ts'
import { systemCode } from './filesystem.ts'
import { WriteQueue, type WriteRequest } from './write-queue.ts'

export type DigestRequest =
  | {
      readonly kind: 'open'
      readonly id: number
      readonly file: string
      readonly algorithm: DigestAlgorithm
    }
  | { readonly kind: 'advance'; readonly id: number; readonly availableBytes: number }
  | {
      readonly kind: 'bytes'
      readonly id: number
      readonly bytes: Uint8Array
      /** Replied to when they are hashed, or no longer wanted. */
      readonly takenId: number
    }
  | { readonly kind: 'finish' | 'abort'; readonly id: number }

export type StorageRequest = DigestRequest | WriteRequest

/** In place of requests: there are no more. */
export const END = 'end'

const END_WAIT_MS = 2_000

/**
 * The thread keeps nothing. What it has written stays in memory until this has filled up with the much smaller things
 * beside it, so this bounds how many files that are.
 */
const YOUNG_GENERATION_MB = 2

export type StorageReply =
  /** `hex` is a digest; all else has nothing to tell. */
  | { readonly id: number; readonly hex?: string }
  | { readonly id: number; readonly error: string; readonly code: string | undefined }

/** How the thread tells what went wrong. */
export function failure(id: number, error: unknown): StorageReply {
  const message = error instanceof Error ? error.message : String(error)
  return { id, error: message, code: systemCode(error) }
}

/** What the thread could not do. `code` is the system's word for it, if it was the system that refused. */
export class StorageThreadError extends Error {
  override readonly name = 'StorageThreadError'
  readonly code: string | undefined

  constructor(message: string, code?: string) {
    super(message)
    this.code = code
  }
}

interface Waiter {
  resolve(hex: string | undefined): void
  reject(error: Error): void
}

export class StorageThread {
  readonly #workerUrl: URL
  readonly #waiters = new Map<number, Waiter>()
  #worker: Worker | undefined
  #outbox: StorageRequest[] = []
  /** Behind all else. */
  readonly #patient = new WriteQueue()
  #isSending = false
  #isClosed = false
  #lastId = 0

  /** @param options.workerUrl where the compiled storage-worker is; a thread can't be started from TypeScript */
  constructor(options: { workerUrl: URL }) {
    this.#workerUrl = options.workerUrl
  }

  /** The number that ties requests and their reply together. */
  nextId(): number {
    return ++this.#lastId
  }

  /** Of writes that were sent patiently: what those that are not done take in memory. */
  get patientBytes(): number {
    return this.#patient.bytes
  }

  /** Resolves when the thread has all that was sent patiently. Never rejects. */
  caughtUp(): Promise<void> {
    return this.#patient.caughtUp()
  }

  /** Requests of one turn of the event loop go out together: waking a thread costs more than a small write. */
  send(request: StorageRequest): void {
    this.#outbox.push(request)
    this.#sendSoon()
  }

  /** Sends a write when the thread has little to do: all else goes before it. */
  sendPatiently(request: WriteRequest): void {
    this.#patient.push(request)
    this.#sendSoon()
  }

  /**
   * The reply to come for `id`.
   *
   * @throws {StorageThreadError} it could not be done, the thread died, or it was given up
   */
  reply(id: number): Promise<string | undefined> {
    return new Promise((resolve, reject) => {
      if (this.#isClosed) {
        reject(new StorageThreadError('the storage thread is closed'))
        return
      }
      this.#waiters.set(id, { resolve, reject })
      // While somebody waits the process must not end for want of anything else to do.
      this.#worker?.ref()
    })
  }

  /** Waits no longer for a reply. @returns false when it had come already */
  giveUp(id: number, reason: string): boolean {
    const waiter = this.#take(id)
    waiter?.reject(new StorageThreadError(reason))
    return waiter !== undefined
  }

  /**
   * What was sent before is done first: a file that is half replaced would leave its temporary one.
   * Who waits is told when the thread touches the disk no more.
   */
  async close(): Promise<void> {
    const worker = this.#worker
    this.#isClosed = true
    if (worker) this.#post(worker, Infinity)
    this.#worker = undefined
    if (worker) await end(worker)
    this.#fail(new StorageThreadError('the storage thread is closed'))
  }

  #sendSoon(): void {
    if (this.#isSending) return
    this.#isSending = true
    setImmediate(() => {
      this.#isSending = false
      if (!this.#isClosed) this.#post((this.#worker ??= this.#start()))
    })
  }

  /** @param patientMax how many patient writes the thread may have before it then */
  #post(worker: Worker, patientMax?: number): void {
    const requests = this.#outbox
    this.#outbox = []
    if (requests.length > 0) worker.postMessage(requests)
    for (const writes of this.#patient.take(patientMax)) worker.postMessage(writes)
  }

  #start(): Worker {
    // Options of the process (--eval, --input-type, …) are not for the thread.
    const worker = new Worker(this.#workerUrl, {
      execArgv: [],
      resourceLimits: { maxYoungGenerationSizeMb: YOUNG_GENERATION_MB },
    })
    if (this.#waiters.size === 0) worker.unref()
    worker.on('message', (replies: readonly StorageReply[]) => {
      for (const reply of replies) this.#settle(reply)
      // What a dead one has replied before is read after it is known to be dead.
      if (!this.#isClosed && this.#worker === worker) this.#post(worker)
    })
    worker.on('error', (error: Error) => {
      // The next request starts another thread; what this one had begun cannot be finished.
      if (this.#worker === worker) this.#worker = undefined
      this.#fail(error)
    })
    return worker
  }

  #settle(reply: StorageReply): void {
    this.#patient.settle(reply.id)
    const waiter = this.#take(reply.id)
    if ('error' in reply) waiter?.reject(new StorageThreadError(reply.error, reply.code))
    else waiter?.resolve(reply.hex)
  }

  #take(id: number): Waiter | undefined {
    const waiter = this.#waiters.get(id)
    this.#waiters.delete(id)
    if (this.#waiters.size === 0) this.#worker?.unref()
    return waiter
  }

  #fail(error: Error): void {
    for (const waiter of this.#waiters.values()) waiter.reject(error)
    this.#waiters.clear()
    this.#patient.clear()
  }
}

/** A disk that hangs does not keep the process from ending. */
async function end(worker: Worker): Promise<void> {
  worker.ref()
  const ended = once(worker, 'exit', { signal: AbortSignal.timeout(END_WAIT_MS) })
  worker.postMessage(END)
  await ended.catch(() => worker.terminate())
}
