// Sends a blob's bytes: pooled reads straight into Node's response. One buffer is read while the other is
// sent; the pace is the client's. This is the one place where bytes leave, and it knows nothing of where they
// come from, so that the platform's sendfile can take its place for finished files.

import type { ServerResponse } from 'node:http'
import type { ByteSource } from '../cache/answer.ts'
import type { ByteRange } from './range.ts'

/** Large reads are what makes this cheap; with many clients each gets less, so that memory stays flat. */
const CHUNK_MAX_BYTES = 512 * 1024
const CHUNK_MIN_BYTES = 8 * 1024
/** What the buffers of all running answers should take together. One that has stalled keeps what its share was then. */
const BUFFERS_MAX_BYTES = 16 * 1024 * 1024
const BUFFERS_PER_ANSWER = 2
/**
 * A view of memory that others read too keeps a whole block (512 KiB) of a download alive for as long as its client
 * takes. With more answers than this they are copied, into buffers that are small by then.
 */
const VIEWS_MAX_ANSWERS = 64

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
  const sendNow = sendSoon(response)
  // Wakes a read that waits for bytes which this client will never take.
  response.once('close', () => source.close())
  try {
    await copy(response, source, range, onSent)
    response.end()
  } catch (error) {
    const clientLeft = response.destroyed || response.socket?.destroyed === true
    // An end short of what headers announce tells more than one without any.
    sendNow()
    response.destroy()
    if (!clientLeft) throw error
  } finally {
    answersRunning--
    source.close()
  }
}

/**
 * The first bytes may be a while, and clients give up when they see no headers: these leave at the end of this turn
 * of the event loop, together with the bytes that are there by then.
 *
 * @returns what makes them leave at once
 */
function sendSoon(response: ServerResponse): () => void {
  response.cork()
  response.flushHeaders()
  let isSent = false
  const send = (): void => {
    if (!isSent) response.uncork()
    isSent = true
  }
  setImmediate(send)
  return send
}

async function copy(
  response: ServerResponse,
  source: ByteSource,
  { first, last }: ByteRange,
  onSent: (sentBytes: number) => void,
): Promise<void> {
  const buffers: Buffer[] = []
  const writes: Promise<void>[] = []
  for (let position = first, turn = 0; position <= last; turn = (turn + 1) % BUFFERS_PER_ANSWER) {
    // The buffer may still be on its way out.
    await writes[turn]
    if (response.destroyed) return
    const leftBytes = last - position + 1
    const buffer = (buffers[turn] = fitting(buffers[turn], leftBytes))
    const bytes = own(
      await source.read(position, buffer.subarray(0, Math.min(buffer.length, leftBytes))),
      buffer,
    )
    if (response.destroyed) return
    position += bytes.length
    onSent(bytes.length)
    writes[turn] = write(response, bytes)
  }
  await Promise.all(writes)
}

/** The same buffer for as long as it is about as large as this answer's share. */
function fitting(buffer: Buffer | undefined, leftBytes: number): Buffer {
  const sizeBytes = Math.min(chunkBytes(), leftBytes)
  if (buffer && buffer.length >= sizeBytes / 2 && buffer.length <= chunkBytes() * 2) return buffer
  // Not from Node's pool: a slice of it would keep the whole of it alive.
  return Buffer.allocUnsafeSlow(sizeBytes)
}

function own(bytes: Buffer, buffer: Buffer): Buffer {
  const isOwn = bytes.buffer === buffer.buffer
  if (isOwn || answersRunning <= VIEWS_MAX_ANSWERS) return bytes
  return buffer.subarray(0, bytes.copy(buffer))
}

/** Resolves when the bytes are with the kernel, or nobody wants them any more. */
function write(response: ServerResponse, bytes: Buffer): Promise<void> {
  return new Promise((resolve) => {
    // Not a race with a promise for the end of the answer: that would keep a note of every write until then.
    const done = (): void => {
      response.off('close', done)
      resolve()
    }
    response.once('close', done)
    response.write(bytes, done)
  })
}

function chunkBytes(): number {
  const share = Math.floor(BUFFERS_MAX_BYTES / BUFFERS_PER_ANSWER / Math.max(1, answersRunning))
  return Math.max(CHUNK_MIN_BYTES, Math.min(CHUNK_MAX_BYTES, share))
}
