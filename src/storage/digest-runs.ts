// Runs in the storage thread. Hashes files that are still growing, a slice at a time, so that several downloads
// advance together, and small writes get their turn in between.

import { createHash, type Hash } from 'node:crypto'
import { closeSync, openSync, readSync } from 'node:fs'
import { READ } from './filesystem.ts'
import { failure, type DigestRequest, type StorageReply } from './storage-thread.ts'

/** Long enough to make the system calls cheap, short enough to take turns: about 4 ms of hashing. */
const SLICE_BYTES = 1024 * 1024

interface Run {
  readonly fd: number
  readonly hash: Hash
  hashedBytes: number
  /** How much of the file is written. */
  availableBytes: number
  isFinishing: boolean
}

/** All files being hashed. */
export class DigestRuns {
  readonly #runs = new Map<number, Run>()
  readonly #slice = Buffer.allocUnsafeSlow(SLICE_BYTES)
  readonly #reply: (reply: StorageReply) => void
  #isScheduled = false

  constructor(deps: { reply: (reply: StorageReply) => void }) {
    this.#reply = deps.reply
  }

  /** @throws when the file cannot be opened or read; the run is over then */
  handle(request: DigestRequest): void {
    if (request.kind === 'open') {
      const hash = createHash(request.algorithm)
      const fd = openSync(request.file, READ)
      this.#runs.set(request.id, {
        fd,
        hash,
        hashedBytes: 0,
        availableBytes: 0,
        isFinishing: false,
      })
      return
    }
    if (request.kind === 'bytes') {
      try {
        this.#append(request.id, request.bytes)
      } finally {
        this.#reply({ id: request.takenId })
      }
      return
    }
    const run = this.#runs.get(request.id)
    // A run that failed has been reported; what was sent before the report arrived is void.
    if (!run) return
    switch (request.kind) {
      case 'advance':
        run.availableBytes = request.availableBytes
        break
      case 'finish':
        run.isFinishing = true
        break
      case 'abort':
        this.end(request.id)
        return
    }
    this.#schedule()
  }

  end(id: number): void {
    const run = this.#runs.get(id)
    if (!run) return
    this.#runs.delete(id)
    closeSync(run.fd)
  }

  endAll(): void {
    for (const id of this.#runs.keys()) this.end(id)
  }

  #append(id: number, bytes: Uint8Array): void {
    const run = this.#runs.get(id)
    if (!run) return
    while (this.#advance(id, run)) {
      // Bytes that never reached the file come after those that did.
    }
    run.hash.update(bytes)
  }

  /** Hashes one slice. @returns whether there is more to do now */
  #advance(id: number, run: Run): boolean {
    const wanted = Math.min(SLICE_BYTES, run.availableBytes - run.hashedBytes)
    if (wanted > 0) {
      const count = readSync(run.fd, this.#slice, 0, wanted, run.hashedBytes)
      if (count === 0) throw new Error(`the file ends at byte ${run.hashedBytes}`)
      run.hash.update(this.#slice.subarray(0, count))
      run.hashedBytes += count
    }
    if (run.hashedBytes < run.availableBytes) return true
    if (run.isFinishing) {
      this.end(id)
      this.#reply({ id, hex: run.hash.digest('hex') })
    }
    return false
  }

  #schedule(): void {
    if (this.#isScheduled) return
    this.#isScheduled = true
    setImmediate(() => this.#step())
  }

  #step(): void {
    this.#isScheduled = false
    let hasMore = false
    for (const [id, run] of this.#runs) {
      try {
        hasMore = this.#advance(id, run) || hasMore
      } catch (error) {
        this.end(id)
        this.#reply(failure(id, error))
      }
    }
    if (hasMore) this.#schedule()
  }
}
