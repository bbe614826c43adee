// Writes that nobody's next step depends on wait on this side of the storage thread: the bytes of small blobs, which
// clients have had by the time that they are stored. Few are before the thread at a time, so that a link, a tag or a
// manifest, which go past this queue, has few of them before it however far the disk is behind; and those that wait
// are not copied yet, which the message to the thread does.

import type { FileContent } from './filesystem.ts'

/** Before the thread at a time: enough to keep it busy. */
const SENT_MAX = 16
/** In one message: all of them are replied to when the last one is done. */
const TOGETHER_MAX = 8
/** What a write keeps in memory beside its bytes: itself, and the download that waits for it (8 to 16 KB measured). */
const WAITING_WRITE_BYTES = 8 * 1024

export interface WriteRequest {
  readonly kind: 'write'
  readonly id: number
  /** Replaced one after the other. */
  readonly files: readonly FileContent[]
  /** On the same file system; made if it is not there. */
  readonly temporaryDirectory: string
}

export class WriteQueue {
  #waiting: WriteRequest[] = []
  /** Not yet replied to: what each takes. */
  readonly #costs = new Map<number, number>()
  #sent = 0
  #bytes = 0
  readonly #onCaughtUp: (() => void)[] = []

  /** What waits, and what the thread has before it. */
  get bytes(): number {
    return this.#bytes
  }

  /** Resolves when nothing waits here any more. Never rejects. */
  caughtUp(): Promise<void> {
    if (this.#waiting.length === 0) return Promise.resolve()
    return new Promise((resolve) => this.#onCaughtUp.push(resolve))
  }

  push(request: WriteRequest): void {
    const cost = costOf(request)
    this.#costs.set(request.id, cost)
    this.#bytes += cost
    this.#waiting.push(request)
  }

  /**
   * The next messages to the thread.
   *
   * @param sentMax how many writes it may have before it then
   */
  take(sentMax = SENT_MAX): WriteRequest[][] {
    const messages: WriteRequest[][] = []
    while (this.#waiting.length > 0 && this.#sent < sentMax) {
      const message = this.#waiting.splice(0, Math.min(TOGETHER_MAX, sentMax - this.#sent))
      this.#sent += message.length
      messages.push(message)
    }
    if (this.#waiting.length === 0) this.#noteCaughtUp()
    return messages
  }

  /** It has been replied to. Of writes that did not wait here nothing is known. */
  settle(id: number): void {
    const cost = this.#costs.get(id)
    if (cost === undefined) return
    this.#costs.delete(id)
    this.#bytes -= cost
    this.#sent--
  }

  /** Nothing of it will be replied to. */
  clear(): void {
    this.#waiting = []
    this.#costs.clear()
    this.#sent = this.#bytes = 0
    this.#noteCaughtUp()
  }

  #noteCaughtUp(): void {
    for (const resolve of this.#onCaughtUp.splice(0)) resolve()
  }
}

function costOf({ files }: WriteRequest): number {
  return files.reduce((sum, { bytes }) => sum + bytes.length, WAITING_WRITE_BYTES)
}
