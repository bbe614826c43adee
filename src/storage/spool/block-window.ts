// The newest bytes of a spool, in memory, in blocks that are written once and then shared by all readers. What nobody
// holds any more takes the next bytes: a download as large as a disk makes no more garbage than a small one.

/** Bytes are written and readers woken in steps of this size: for each network chunk would be ten times slower. */
export const BLOCK_BYTES = 512 * 1024

/** Blocks that wait for their next use; readers side by side hold few more than these. */
const SPARE_MAX = 4

export interface Block {
  readonly start: number
  readonly buffer: Buffer
  filledBytes: number
  /** How many have been given bytes of it and may still look at them. */
  holds: number
  isDropped: boolean
}

/** Bytes of a block, which stay what they are until the block is let go of. */
export interface BlockView {
  readonly block: Block
  readonly bytes: Buffer
}

export class BlockWindow {
  readonly #blocks: Block[] = []
  readonly #spare: Buffer[] = []
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

  /**
   * All bytes, of a window that never dropped any. They stay what they are, and keep nothing else alive: the one block
   * of a small blob whose size was known.
   */
  whole(): Buffer {
    const [first] = this.#blocks
    if (this.#blocks.length === 1 && first?.filledBytes === first?.buffer.length)
      return first?.buffer ?? Buffer.alloc(0)
    return Buffer.concat(this.slices(0, this.#endBytes).map(({ bytes }) => bytes))
  }

  /**
   * Whoever is given a view holds its block, and lets go of it once.
   *
   * @returns up to `lengthMax` bytes at `position`; undefined when they are older than the window
   */
  viewAt(position: number, endBytes: number, lengthMax: number): BlockView | undefined {
    const block = this.#blocks.findLast(({ start }) => start <= position)
    if (!block) return undefined
    const first = position - block.start
    const last = Math.min(endBytes - block.start, block.filledBytes, first + lengthMax)
    block.holds++
    return { block, bytes: block.buffer.subarray(first, last) }
  }

  letGo(block: Block): void {
    block.holds--
    this.#reuse(block)
  }

  /** Drops the oldest blocks that end at or before `position`, but keeps the newest `blocksMin`. */
  dropBefore(position: number, blocksMin: number): void {
    while (this.#blocks.length > blocksMin) {
      const [oldest] = this.#blocks
      if (!oldest || oldest.start + oldest.filledBytes > position) return
      this.#blocks.shift()
      oldest.isDropped = true
      this.#reuse(oldest)
    }
  }

  clear(): void {
    this.#blocks.length = 0
    this.#spare.length = 0
  }

  #reuse({ buffer, holds, isDropped }: Block): void {
    const isFree = isDropped && holds === 0 && buffer.length === BLOCK_BYTES
    if (isFree && this.#spare.length < SPARE_MAX) this.#spare.push(buffer)
  }

  #blockWithRoom(leftBytes: number): Block {
    const last = this.#blocks.at(-1)
    if (last && last.filledBytes < last.buffer.length) return last
    // Not from Node's pool: a slice of it would keep the whole of it alive.
    const buffer = this.#spare.pop() ?? Buffer.allocUnsafeSlow(Math.min(BLOCK_BYTES, leftBytes))
    const block: Block = {
      start: this.#endBytes,
      buffer,
      filledBytes: 0,
      holds: 0,
      isDropped: false,
    }
    this.#blocks.push(block)
    return block
  }
}
