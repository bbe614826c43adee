// The newest bytes of a spool, in memory, in blocks that are written once and then shared by all readers.

/** Bytes are written and readers woken in steps of this size: for each network chunk would be ten times slower. */
export const BLOCK_BYTES = 512 * 1024

interface Block {
  readonly start: number
  readonly buffer: Buffer
  filledBytes: number
}

export class BlockWindow {
  readonly #blocks: Block[] = []
  #endBytes: number

  /** @param startBytes position of the first byte to come */
  constructor(startBytes: number) {
    this.#endBytes = startBytes
  }

  /** Position after the last byte. */
  get endBytes(): number {
    return this.#endBytes
  }

  /** Position of the oldest byte that is still here. */
  get startBytes(): number {
    return this.#blocks[0]?.start ?? this.#endBytes
  }

  /** @param expectedBytes how many are still to come with this chunk: a small blob gets a small block */
  append(chunk: Buffer, expectedBytes: number): void {
    let rest = chunk
    let leftBytes = expectedBytes
    while (rest.length > 0) {
      const block = this.#blockWithRoom(leftBytes)
      const count = rest.copy(block.buffer, block.filledBytes)
      block.filledBytes += count
      this.#endBytes += count
      leftBytes -= count
      rest = rest.subarray(count)
    }
  }

  /** What lies between two positions, in order; not copied. */
  slices(fromBytes: number, toBytes: number): { position: number; bytes: Buffer }[] {
    return this.#blocks.flatMap(({ buffer, filledBytes, start }) => {
      const first = Math.max(fromBytes, start)
      const last = Math.min(toBytes, start + filledBytes)
      if (first >= last) return []
      return { position: first, bytes: buffer.subarray(first - start, last - start) }
    })
  }

  /** @returns up to `lengthMax` bytes at `position`; undefined when they are older than the window */
  viewAt(position: number, endBytes: number, lengthMax: number): Buffer | undefined {
    const block = this.#blocks.findLast(({ start }) => start <= position)
    if (!block) return undefined
    const first = position - block.start
    const last = Math.min(endBytes - block.start, block.filledBytes, first + lengthMax)
    return block.buffer.subarray(first, last)
  }

  /** Drops the oldest blocks that end at or before `position`, but keeps the newest `blocksMin`. */
  dropBefore(position: number, blocksMin: number): void {
    while (this.#blocks.length > blocksMin) {
      const [oldest] = this.#blocks
      if (!oldest || oldest.start + oldest.filledBytes > position) return
      this.#blocks.shift()
    }
  }

  clear(): void {
    this.#blocks.length = 0
  }

  #blockWithRoom(leftBytes: number): Block {
    const last = this.#blocks.at(-1)
    if (last && last.filledBytes < last.buffer.length) return last
    // Not from Node's pool: a slice of it would keep the whole of it alive.
    const buffer = Buffer.allocUnsafeSlow(Math.min(BLOCK_BYTES, leftBytes))
    const block: Block = { start: this.#endBytes, buffer, filledBytes: 0 }
    this.#blocks.push(block)
    return block
  }
}
