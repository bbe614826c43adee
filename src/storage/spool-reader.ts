// One client's view of a spool: sequential, at its own pace. Its leaving detaches it and disturbs nobody.

import type { ByteSource } from './byte-source.ts'

export interface SpoolView {
  readAt(position: number, scratch: Buffer): Buffer | Promise<Buffer> | undefined
  onMove(): void
  onClose(reader: SpoolReader): void
}

export class SpoolReader implements ByteSource {
  readonly #view: SpoolView
  #position = 0
  #wake: (() => void) | undefined
  #reading = false
  #closed = false
  #failure: Error | undefined

  constructor(view: SpoolView) {
    this.#view = view
  }

  /** Everything before this has been read. */
  get position(): number {
    return this.#position
  }

  async read(position: number, scratch: Buffer): Promise<Buffer> {
    this.#position = position
    this.#view.onMove()
    this.#reading = true
    try {
      for (;;) {
        if (this.#failure) throw this.#failure
        if (this.#closed) throw new Error('the reader is closed')
        const bytes = this.#view.readAt(position, scratch)
        if (bytes) return await bytes
        await new Promise<void>((resolve) => {
          this.#wake = resolve
        })
      }
    } finally {
      this.#reading = false
      if (this.#closed) this.#view.onClose(this)
    }
  }

  /** Ends the reading for a reason. */
  fail(error: Error): void {
    this.#failure = error
    this.wake()
  }

  /** Looks again: there may be more bytes, or an end. */
  wake(): void {
    const wake = this.#wake
    this.#wake = undefined
    wake?.()
  }

  close(): void {
    if (this.#closed) return
    this.#closed = true
    if (this.#reading) this.wake()
    else this.#view.onClose(this)
  }
}

/** All clients of one spool. */
export class SpoolReaders {
  readonly #readers = new Set<SpoolReader>()

  get count(): number {
    return this.#readers.size
  }

  add(reader: SpoolReader): void {
    this.#readers.add(reader)
  }

  delete(reader: SpoolReader): void {
    this.#readers.delete(reader)
  }

  /** Position of the slowest; `endBytes` when there is nobody. */
  slowest(endBytes: number): number {
    let slowest = endBytes
    for (const { position } of this.#readers) slowest = Math.min(slowest, position)
    return slowest
  }

  wake(): void {
    for (const reader of this.#readers) reader.wake()
  }

  /** Cuts off those that are before `position`. */
  failBefore(position: number, error: Error): void {
    for (const reader of this.#readers) {
      if (reader.position >= position) continue
      this.#readers.delete(reader)
      reader.fail(error)
    }
  }
}
