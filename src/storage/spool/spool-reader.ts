// One client's view of a spool: sequential, at its own pace. Its leaving detaches it and disturbs nobody.

import type { ByteSource } from '../byte-source.ts'
import type { Block, BlockView } from './block-window.ts'

/** Of one reader: what it was given last stays valid while it asks for more (see ByteSource). */
const HELD_MAX = 2

export interface ReadOptions {
  /** Nothing is given before all of it is verified. */
  readonly waitsForTheWhole: boolean
}

export interface SpoolView {
  /** @returns bytes; or a view, which the reader holds; undefined when it has to wait */
  readAt(
    position: number,
    scratch: Buffer,
    options: ReadOptions,
  ): Promise<Buffer> | BlockView | undefined
  letGo(block: Block): void
  onMove(): void
  onClose(reader: SpoolReader): void
}

export class SpoolReader implements ByteSource {
  readonly #view: SpoolView
  #position = 0
  #wake: (() => void) | undefined
  #reading = false
  #closed = false
  #waitsForTheWhole = false
  #failure: Error | undefined
  readonly #held: Block[] = []

  constructor(view: SpoolView) {
    this.#view = view
  }

  /** Everything before this has been read. */
  get position(): number {
    return this.#position
  }

  async read(position: number, scratch: Buffer): Promise<Buffer> {
    this.#position = position
    this.#letGo(HELD_MAX - 1)
    this.#view.onMove()
    this.#reading = true
    try {
      for (;;) {
        if (this.#failure) throw this.#failure
        if (this.#closed) throw new Error('the reader is closed')
        const waitsForTheWhole = this.#waitsForTheWhole
        const found = this.#view.readAt(position, scratch, { waitsForTheWhole })
        if (found instanceof Promise) return await found
        if (found) {
          this.#held.push(found.block)
          return found.bytes
        }
        await new Promise<void>((resolve) => {
          this.#wake = resolve
        })
      }
    } finally {
      this.#reading = false
      if (this.#closed) this.#end()
    }
  }

  /** From now on it gives nothing before all of the spool is verified. @returns itself */
  waitForTheWhole(): this {
    this.#waitsForTheWhole = true
    return this
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
    else this.#end()
  }

  #end(): void {
    this.#letGo(0)
    this.#view.onClose(this)
  }

  #letGo(keptMax: number): void {
    while (this.#held.length > keptMax) {
      const oldest = this.#held.shift()
      if (oldest) this.#view.letGo(oldest)
    }
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
