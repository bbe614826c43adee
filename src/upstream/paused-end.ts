// The end of a connection, kept from undici's parser while a slow reader has that paused. undici 7 asserts there that
// it is not paused; the error is nobody's to catch, and the body stands still until it has been idle for too long.
// Needed for answers with `Connection: close` alone. Mended in undici 8, which needs Node 22: this goes with Node 20.
// @see https://github.com/nodejs/undici/issues/5360

import type { EventEmitter } from 'node:events'
import type { Socket } from 'node:net'
import { buildConnector, errors, Pool } from 'undici'

/** For `factory` of undici's agents. */
export function poolWithPatientEnds(origin: string | URL, options: Pool.Options): Pool {
  const { connect = {} } = options
  const connector = typeof connect === 'function' ? connect : buildConnector(connect)
  return new Pool(origin, {
    ...options,
    connect: (target, done) => {
      connector(target, (...[error, socket]) => {
        if (error) done(error, null)
        else done(null, holdEndWhilePaused(socket))
      })
    },
  })
}

/** @param socket before undici has it. @returns the same */
function holdEndWhilePaused<S extends Socket>(socket: S): S {
  const emit: EventEmitter['emit'] = socket.emit.bind(socket)
  const read = socket.read.bind(socket)
  const unshift = socket.unshift.bind(socket)
  let isPaused = false
  let isEndHeld = false

  const handOver = (): void => {
    if (isPaused || !isEndHeld || socket.destroyed) return
    isEndHeld = false
    emit('end')
    // As a connection that is not half-open does by itself.
    socket.end()
  }

  const held = {
    // What the parser has not taken when it is paused, it gives back: nothing, too.
    unshift(chunk: never, encoding?: BufferEncoding): void {
      isPaused = true
      unshift(chunk, encoding)
    },
    // It goes on by asking for more. Node itself asks for 0 bytes, which takes nothing.
    read(sizeBytes?: number): unknown {
      if (sizeBytes !== 0) isPaused = false
      const chunk: unknown = read(sizeBytes)
      // With this chunk it may be paused again.
      if (isEndHeld) process.nextTick(handOver)
      return chunk
    },
    emit(event: string, ...values: unknown[]): boolean {
      if (isPaused && event === 'end') {
        isEndHeld = true
        // Whoever gives up the answer must still find something to close.
        socket.allowHalfOpen = true
        return true
      }
      if (isPaused && event === 'error' && isReset(values[0])) {
        // undici takes a reset for a kind of end.
        return emit(event, new errors.SocketError(values[0].message))
      }
      return emit(event, ...values)
    },
  }
  return Object.assign(socket, held)
}

function isReset(error: unknown): error is Error {
  return error instanceof Error && 'code' in error && error.code === 'ECONNRESET'
}
