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
