// Where lines of log and access log go: the process's stderr and stdout. Nobody waits for whoever reads them: what a pipe
// does not take is kept for a while, in bounds, and the process ends without it.

import { pino, type DestinationStream } from 'pino'

export interface Destination extends DestinationStream {
  /** Says that lines are dropped, once each time it begins: nobody reads them as fast as they come. */
  onDrop(listener: () => void): void
  /** Settles when all that was written has gone, or cannot any more. What is written from now on is dropped. */
  end(): Promise<void>
}

/** One system call for many lines: an access line is then cheaper than the request that it tells of. */
const BUFFERED = { minLength: 8_192, periodicFlush: 250 }

/** Some ten thousand lines. */
const PENDING_MAX_BYTES = 8 * 1024 * 1024

export function openDestination(fd: number, { isBuffered }: { isBuffered: boolean }): Destination {
  const options = { fd, sync: false, maxLength: PENDING_MAX_BYTES, ...(isBuffered && BUFFERED) }
  const stream = pino.destination(options)
  let isGone = false
  // A terminal that went away, or a full disk behind a redirect, must not end the service.
  stream.on('error', (error: NodeJS.ErrnoException) => {
    // From then on pino takes nothing more, and tells of no end.
    if (error.code === 'EPIPE') isGone = true
  })
  let ended: Promise<void> | undefined
  let pending = ''
  const flush = (): void => {
    const lines = pending
    pending = ''
    if (lines !== '') stream.write(lines)
  }
  return {
    write(line) {
      if (ended) return
      if (!isBuffered) {
        stream.write(line)
        return
      }
      // What one turn of the event loop writes is handed on together.
      if (pending === '') setImmediate(flush)
      pending += line
      if (pending.length >= BUFFERED.minLength) flush()
    },
    onDrop(listener) {
      let isDropping = false
      stream.on('drop', () => {
        if (!isDropping) listener()
        isDropping = true
      })
      stream.on('drain', () => (isDropping = false))
    },
    end() {
      ended ??= new Promise((resolve) => {
        flush()
        const giveUp = (): void => {
          // A full disk: the exit of the process would try to write the rest, for ever.
          stream.destroy()
          resolve()
        }
        if (isGone) {
          giveUp()
          return
        }
        stream.once('finish', resolve).once('error', giveUp)
        stream.end()
      })
      return ended
    },
  }
}
