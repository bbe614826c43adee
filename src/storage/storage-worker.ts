// The storage thread's entry: requests in, replies out. See storage-thread.ts for what it is for.

import { parentPort } from 'node:worker_threads'
import { DigestRuns } from './digest-runs.ts'
import { END, failure, type StorageReply, type StorageRequest } from './storage-thread.ts'
import { writeFiles } from './write-file.ts'

const port = parentPort
if (!port) throw new Error('storage-worker runs as a worker thread only')

const reply = (replies: readonly StorageReply[]): void => port.postMessage(replies)
const digests = new DigestRuns({ reply: (digest) => reply([digest]) })

/** @returns what is to be told now; the result of a digest comes by itself */
function handle(request: StorageRequest): StorageReply | undefined {
  try {
    if (request.kind === 'write') {
      writeFiles(request)
      return { id: request.id }
    }
    digests.handle(request)
    return undefined
  } catch (error) {
    digests.end(request.id)
    return failure(request.id, error)
  }
}

port.on('message', (requests: readonly StorageRequest[] | typeof END) => {
  if (requests === END) {
    // Writes are done at once: none is under way. What is being hashed nobody wants any more.
    digests.endAll()
    port.close()
    return
  }
  const replies = requests.flatMap((request) => handle(request) ?? [])
  if (replies.length > 0) reply(replies)
})
