// Runs in a worker thread. Hashes files that are still growing, a slice at a time, so that several
// downloads advance together and the main thread never waits for a hash. See digester.ts.

import { createHash, type Hash } from 'node:crypto'
import { closeSync, openSync, readSync } from 'node:fs'
import { parentPort } from 'node:worker_threads'
import type { DigesterReply, DigesterRequest } from './digester.ts'

/** Long enough to make the system calls cheap, short enough to take turns: about 4 ms of hashing. */
const SLICE_BYTES = 1024 * 1024

interface Run {
  readonly fd: number
  readonly hash: Hash
  hashedBytes: number
  /** How much of the file is written. */
  availableBytes: number
  finishing: boolean
}

const port = parentPort
if (!port) throw new Error('digest-worker runs as a worker thread only')

const runs = new Map<number, Run>()
const slice = Buffer.allocUnsafeSlow(SLICE_BYTES)
let scheduled = false

const reply = (message: DigesterReply): void => port.postMessage(message)

function end(id: number, run: Run): void {
  runs.delete(id)
  closeSync(run.fd)
}

/** Hashes one slice. @returns whether there is more to do now */
function advance(id: number, run: Run): boolean {
  const wanted = Math.min(SLICE_BYTES, run.availableBytes - run.hashedBytes)
  if (wanted > 0) {
    const count = readSync(run.fd, slice, 0, wanted, run.hashedBytes)
    if (count === 0) throw new Error(`the file ends at byte ${run.hashedBytes}`)
    run.hash.update(slice.subarray(0, count))
    run.hashedBytes += count
  }
  if (run.hashedBytes < run.availableBytes) return true
  if (run.finishing) {
    end(id, run)
    reply({ id, hex: run.hash.digest('hex') })
  }
  return false
}

function step(): void {
  scheduled = false
  let more = false
  for (const [id, run] of runs) {
    guard(id, () => {
      more = advance(id, run) || more
    })
  }
  if (more) schedule()
}

function schedule(): void {
  if (scheduled) return
  scheduled = true
  setImmediate(step)
}

function guard(id: number, action: () => void): void {
  try {
    action()
  } catch (error) {
    const run = runs.get(id)
    if (run) end(id, run)
    reply({ id, error: error instanceof Error ? error.message : String(error) })
  }
}

function handle(request: DigesterRequest): void {
  if (request.kind === 'open') {
    const hash = createHash(request.algorithm)
    const fd = openSync(request.file, 'r')
    runs.set(request.id, { fd, hash, hashedBytes: 0, availableBytes: 0, finishing: false })
    return
  }
  const run = runs.get(request.id)
  // A run that failed has been reported; what was sent before the report arrived is void.
  if (!run) return
  switch (request.kind) {
    case 'advance':
      run.availableBytes = request.availableBytes
      break
    case 'bytes':
      while (advance(request.id, run)) {
        // Bytes that never reached the file come after those that did.
      }
      run.hash.update(request.bytes)
      break
    case 'finish':
      run.finishing = true
      break
    case 'abort':
      end(request.id, run)
      return
  }
  schedule()
}

port.on('message', (request: DigesterRequest) => guard(request.id, () => handle(request)))
