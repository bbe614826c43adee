// What answers keep in memory while their clients take nothing.

import { IncomingMessage, ServerResponse } from 'node:http'
import { Socket } from 'node:net'
import { describe, expect, it } from 'vitest'
import type { ByteSource } from '../../../src/cache/answer.ts'
import { sendBytes } from '../../../src/http/send-bytes.ts'
import { waitFor } from '../../support/wait-for.ts'

const MIB = 1024 * 1024
const BLOCK_BYTES = 512 * 1024
const SIZE_BYTES = 64 * MIB
const WRITES_PER_ANSWER = 2

/** An answer that was begun. Without a connection it takes nothing, and has nothing to call back for. */
class StalledAnswer {
  /** What waits to be sent. */
  readonly writes: Buffer[] = []
  /** The memory that reads were offered. */
  readonly scratches: Buffer[] = []
  isSourceClosed = false
  readonly ended: Promise<void>
  readonly #response: ServerResponse

  /** @param read what the source gives for a read */
  constructor(read: (scratch: Buffer) => Buffer) {
    this.#response = new ServerResponse(new IncomingMessage(new Socket()))
    this.#response.write = (bytes: Buffer) => this.writes.push(bytes) > 0
    const source: ByteSource = {
      read: async (_position, scratch) => {
        this.scratches.push(scratch)
        return read(scratch)
      },
      close: () => (this.isSourceClosed = true),
    }
    const range = { first: 0, last: SIZE_BYTES - 1 }
    this.ended = sendBytes(this.#response, source, range, () => {})
  }

  get isStalled(): boolean {
    return this.writes.length === WRITES_PER_ANSWER
  }

  /** The client goes away. */
  leave(): Promise<void> {
    this.#response.destroyed = true
    this.#response.emit('close')
    return this.ended
  }
}

async function stall(
  count: number,
  read: (scratch: Buffer, index: number) => Buffer,
): Promise<StalledAnswer[]> {
  const answers = Array.from(
    { length: count },
    (_, index) => new StalledAnswer((scratch) => read(scratch, index)),
  )
  await waitFor('all to stall', () => answers.every(({ isStalled }) => isStalled))
  return answers
}

/** All memory that a set of views keeps alive. */
function sizeOf(views: readonly Buffer[]): number {
  const memory = new Set(views.map(({ buffer }) => buffer))
  return [...memory].reduce((sum, { byteLength }) => sum + byteLength, 0)
}

describe('answers whose clients take nothing', () => {
  it.each([
    [500, 80 * MIB],
    [4_000, 180 * MIB],
  ])('%i of them keep no more than a few buffers', async (count, maxBytes) => {
    const answers = await stall(count, (scratch) => scratch)
    const kept = answers.flatMap(({ scratches, writes }) => [...scratches, ...writes])

    expect(sizeOf(kept)).toBeLessThan(maxBytes)

    await Promise.all(answers.map((answer) => answer.leave()))
    expect(answers.every(({ isSourceClosed }) => isSourceClosed)).toBe(true)
  })

  it('do not keep the blocks of a running download, each another one', async () => {
    const answers = await stall(500, ({ length }) => {
      return Buffer.allocUnsafeSlow(BLOCK_BYTES).subarray(0, length)
    })

    expect(sizeOf(answers.flatMap(({ writes }) => writes))).toBeLessThan(130 * MIB)

    await Promise.all(answers.map((answer) => answer.leave()))
  })

  it('are passed what was read without a copy while they are few', async () => {
    const block = Buffer.alloc(BLOCK_BYTES)
    const answers = await stall(10, ({ length }) => block.subarray(0, length))

    expect(sizeOf(answers.flatMap(({ writes }) => writes))).toBe(BLOCK_BYTES)

    await Promise.all(answers.map((answer) => answer.leave()))
  })
})
