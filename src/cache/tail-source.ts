// A range that lies far ahead of a running download, straight from the upstream. Lazy snapshotters read the end
// of a layer first; waiting for everything before it would take them minutes. The download itself goes on, and
// what is kept comes from it alone.

import type { Digest } from '../oci/digest.ts'
import type { ByteSource } from '../storage/byte-source.ts'
import type { UpstreamBlob } from '../upstream/remote-registry.ts'
import { drop } from '../upstream/response-body.ts'
import { UpstreamError } from '../upstream/upstream-error.ts'
import type { Repository } from './repositories.ts'

/**
 * Closer than this a reader waits for the shared download: parallel fetchers ask for neighbouring pieces at
 * once, and one download for all is what this cache is for.
 */
export const FAR_AHEAD_BYTES = 64 * 1024 * 1024

/** Connections in a row that bring nothing. */
const FRUITLESS_MAX = 3

export class TailSource implements ByteSource {
  readonly #repository: Repository
  readonly #digest: Digest
  /** Joins the shared download, for an upstream that knows no ranges. Not before: a reader there is waited for. */
  readonly #join: () => ByteSource | undefined
  readonly #onClose: () => void
  #shared: ByteSource | undefined
  readonly #stop = new AbortController()
  #blob: UpstreamBlob | undefined
  #chunks: AsyncIterator<Buffer> | undefined
  #rest: Buffer = Buffer.alloc(0)
  #knowsRanges = true

  constructor(
    deps: { join: () => ByteSource | undefined; onClose: () => void },
    options: { repository: Repository; digest: Digest },
  ) {
    this.#join = deps.join
    this.#onClose = deps.onClose
    this.#repository = options.repository
    this.#digest = options.digest
  }

  async read(position: number, scratch: Buffer): Promise<Buffer> {
    for (let fruitless = 0; this.#rest.length === 0 && this.#knowsRanges; fruitless++) {
      try {
        this.#chunks ??= await this.#open(position)
        const next = await this.#chunks?.next()
        if (next && !next.done) this.#rest = next.value
        else this.#noteBreak('ended early')
      } catch (error) {
        this.#noteBreak(`broke off: ${String(error)}`)
        if (fruitless >= FRUITLESS_MAX || this.#stop.signal.aborted) throw error
      }
      if (fruitless > FRUITLESS_MAX) throw new Error('the upstream does not send this range')
    }
    if (!this.#knowsRanges) {
      this.#shared ??= this.#join()
      if (!this.#shared) throw new Error('the download is over')
      return this.#shared.read(position, scratch)
    }
    const bytes = this.#rest.subarray(0, scratch.length)
    this.#rest = this.#rest.subarray(bytes.length)
    return bytes
  }

  close(): void {
    if (this.#stop.signal.aborted) return
    this.#onClose()
    this.#stop.abort(new Error('the client left'))
    this.#shared?.close()
  }

  /** What is asked for next comes from another endpoint, where there is one. */
  #noteBreak(how: string): void {
    const blob = this.#blob
    this.#blob = this.#chunks = undefined
    if (this.#stop.signal.aborted) return
    blob?.refuse?.(new UpstreamError('unreachable', `${blob.sentBy}: a range of a blob ${how}`))
  }

  async #open(offset: number): Promise<AsyncIterator<Buffer> | undefined> {
    const { name, registry } = this.#repository
    const { signal } = this.#stop
    const blob = await registry.getBlob(name, this.#digest, { offset, signal })
    if (blob.startOffset === offset) {
      this.#blob = blob
      return blob.body[Symbol.asyncIterator]()
    }
    drop(blob.body)
    this.#knowsRanges = false
    return undefined
  }
}
