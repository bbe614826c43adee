// Hashes spool files behind their writer, in the storage thread. A hash costs more than everything else that
// happens to a downloaded byte; there it costs the main thread nothing, and reading the file back from the
// page cache is cheaper than handing the buffers over.

import type { DigestAlgorithm } from '../oci/digest.ts'
import type { StorageThread } from './storage-thread.ts'

/** One file being hashed. */
export interface DigestRun {
  /** Tells how many bytes of the file are written by now. */
  advance(availableBytes: number): void
  /**
   * Appends bytes that could not be written to the file; the caller may reuse its memory at once. Whoever waits for
   * the promise before it appends more keeps the queue to the thread short.
   *
   * @returns when they are hashed, or the run is over; never rejects
   */
  append(bytes: Uint8Array): Promise<void>
  /** @returns the lower-case hex digest of all bytes; rejects if the file cannot be read */
  finish(): Promise<string>
  /** Ends the run without a result: `finish` rejects. Idempotent. */
  abort(): void
}

export class Digester {
  readonly #thread: StorageThread

  constructor(deps: { thread: StorageThread }) {
    this.#thread = deps.thread
  }

  open(file: string, algorithm: DigestAlgorithm): DigestRun {
    const thread = this.#thread
    const id = thread.nextId()
    const result = thread.reply(id)
    // A run may fail before anybody asks for its result; it is reported to whoever does.
    result.catch(() => undefined)
    thread.send({ kind: 'open', id, file, algorithm })
    return {
      advance: (availableBytes) => thread.send({ kind: 'advance', id, availableBytes }),
      append: (bytes) => {
        const takenId = thread.nextId()
        const taken = thread.reply(takenId)
        // A copy: the request leaves at the end of this turn, and a view would take its whole block along.
        thread.send({ kind: 'bytes', id, bytes: new Uint8Array(bytes), takenId })
        return taken.then(ignore, ignore)
      },
      finish: async () => {
        thread.send({ kind: 'finish', id })
        return (await result) ?? ''
      },
      abort: () => {
        if (thread.giveUp(id, 'the hashing was aborted')) thread.send({ kind: 'abort', id })
      },
    }
  }
}

function ignore(): void {}
