import { describe, expect, it } from 'vitest'
import {
  BLOCK_BYTES,
  BlockWindow,
  type BlockView,
} from '../../../../src/storage/spool/block-window.ts'

/** A block's worth of bytes that tell which block they are. */
const blockOf = (number: number): Buffer => Buffer.alloc(BLOCK_BYTES, number)

function viewAt(window: BlockWindow, position: number): BlockView {
  const view = window.viewAt(position, window.endBytes, BLOCK_BYTES)
  if (!view) throw new Error(`nothing at ${position}`)
  return view
}

describe('a window of blocks', () => {
  it('takes the memory of blocks that nobody looks at for the next ones', () => {
    const window = new BlockWindow(0)
    const memory = new Set<ArrayBufferLike>()
    for (let number = 0; number < 100; number++) {
      window.append(blockOf(number), Infinity)
      const { block, bytes } = viewAt(window, number * BLOCK_BYTES)
      expect(bytes[0]).toBe(number)
      memory.add(bytes.buffer)
      window.letGo(block)
      window.dropBefore(window.endBytes, 4)
    }
    // Four in the window, and one that is being filled.
    expect(memory.size).toBeLessThanOrEqual(5)
  })

  it('leaves a dropped block alone for as long as somebody holds it', () => {
    const window = new BlockWindow(0)
    window.append(blockOf(1), Infinity)
    const held = [viewAt(window, 0), viewAt(window, 0)]
    const [first, second] = held
    window.dropBefore(BLOCK_BYTES, 0)
    if (first) window.letGo(first.block)
    window.append(blockOf(2), Infinity)
    expect(second?.bytes.every((byte) => byte === 1)).toBe(true)
    if (second) window.letGo(second.block)
    window.append(blockOf(3), Infinity)
    expect(viewAt(window, 2 * BLOCK_BYTES).bytes.buffer).toBe(second?.bytes.buffer)
  })

  it('does not take a block for the next bytes that is let go of while it is still in the window', () => {
    const window = new BlockWindow(0)
    window.append(blockOf(1), Infinity)
    window.letGo(viewAt(window, 0).block)
    window.append(blockOf(2), Infinity)
    expect(viewAt(window, 0).bytes[0]).toBe(1)
  })

  it('gives all of a small blob without a copy', () => {
    const window = new BlockWindow(0)
    window.append(Buffer.alloc(600, 1), 1000)
    window.append(Buffer.alloc(400, 2), 400)
    const whole = window.whole()
    expect(whole.equals(Buffer.concat([Buffer.alloc(600, 1), Buffer.alloc(400, 2)]))).toBe(true)
    expect(whole.buffer).toBe(viewAt(window, 0).bytes.buffer)
    expect(whole.buffer.byteLength).toBe(1000)
  })

  it('gives all of what has several blocks, or room left, without keeping that alive', () => {
    const window = new BlockWindow(0)
    window.append(Buffer.alloc(BLOCK_BYTES + 1, 3), Infinity)
    const whole = window.whole()
    expect(whole.equals(Buffer.alloc(BLOCK_BYTES + 1, 3))).toBe(true)
    expect(whole.buffer.byteLength).toBe(BLOCK_BYTES + 1)
    expect(new BlockWindow(0).whole()).toHaveLength(0)
  })
})
