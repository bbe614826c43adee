// Sends a blob's bytes: pooled reads straight into Node's response. One buffer is read while the other is
// sent; the pace is the client's. This is the one place where bytes leave, and it knows nothing of where they
// come from, so that the platform's sendfile can take its place for finished files.

import type { ServerResponse } from 'node:http'
import type { ByteSource } from '../cache/answer.ts'
import type { ByteRange } from './range.ts'

/** Large reads are what makes this cheap; with many clients each gets less, so that memory stays flat. */
const CHUNK_MAX_BYTES = 512 * 1024
const CHUNK_MIN_BYTES = 32 * 1024
/** What the buffers of all running answers may take together. */
const BUFFERS_MAX_BYTES = 16 * 1024 * 1024
const BUFFERS_PER_ANSWER = 2

let answersRunning = 0

/**
 * Sends a part of the source, and closes the source.
 *
 * If the bytes can't all be had, the connection is ended by FIN short of the `Content-Length` that was
 * announced: clients resume from that. They would not from a reset, and take a clean end for the end.
 *
 * @param onSent called with the number of bytes after each write
 * @throws what the source threw, after the connection was ended; nothing when the client left
 */
export async function sendBytes(
  response: ServerResponse,
  source: ByteSource,
  range: ByteRange,
  onSent: (sentBytes: number) => void,
): Promise<void> {
  answersRunning++
  const closed = new Promise<'closed'>((resolve) => {
    response.once('close', () => {
      // Wakes a read that waits for bytes which this client will never take.
      source.close()
      resolve('closed')
    })
  })
  try {
    await copy(response, source, range, closed, onSent)
    response.end()
  } catch (error) {
    const clientLeft = response.destroyed || response.socket?.destroyed === true
    response.destroy()
    if (!clientLeft) throw error
  } finally {
    answersRunning--
    source.close()
  }
}

async function copy(
  response: ServerResponse,
  source: ByteSource,
  { first, last }: ByteRange,
  closed: Promise<'closed'>,
  onSent: (sentBytes: number) => void,
): Promise<void> {
  const sizeBytes = Math.min(chunkBytes(), last - first + 1)
  // Not from Node's pool, and untouched memory costs nothing: small answers never use the second one.
  const buffers = Array.from({ length: BUFFERS_PER_ANSWER }, () =>
    Buffer.allocUnsafeSlow(sizeBytes),
  )
  const writes: Promise<void>[] = []
  for (let position = first, turn = 0; position <= last; turn = (turn + 1) % buffers.length) {
    // The buffer may still be on its way out.
    if ((await Promise.race([writes[turn], closed])) === 'closed') return
    const buffer = buffers[turn] ?? Buffer.alloc(0)
    const wanted = Math.min(buffer.length, last - position + 1)
    const bytes = await source.read(position, buffer.subarray(0, wanted))
    if (response.destroyed) return
    position += bytes.length
    onSent(bytes.length)
    writes[turn] = write(response, bytes)
  }
  // A stop takes a connection for idle once its answer was ended, whether that has left or not.
  await Promise.race([Promise.all(writes), closed])
}

/** Resolves when the bytes are with the kernel, or nobody wants them any more. */
function write(response: ServerResponse, bytes: Buffer): Promise<void> {
  return new Promise((resolve) => {
    response.write(bytes, () => resolve())
  })
}

function chunkBytes(): number {
  const share = Math.floor(BUFFERS_MAX_BYTES / BUFFERS_PER_ANSWER / Math.max(1, answersRunning))
  return Math.max(CHUNK_MIN_BYTES, Math.min(CHUNK_MAX_BYTES, share))
}
