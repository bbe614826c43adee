// The storage thread's entry: requests in, replies out. See storage-thread.ts for what it is for.

import { parentPort } from 'node:worker_threads'
import { DigestRuns } from './digest-runs.ts'
import { failure, type StorageReply, type StorageRequest } from './storage-thread.ts'
import { writeFileAtomically } from './write-file.ts'

const port = parentPort
if (!port) throw new Error('storage-worker runs as a worker thread only')

const reply = (message: StorageReply): void => port.postMessage(message)
const digests = new DigestRuns({ reply })

function handle(request: StorageRequest): void {
  if (request.kind === 'write') {
    writeFileAtomically(request)
    reply({ id: request.id })
  } else digests.handle(request)
}

port.on('message', (request: StorageRequest) => {
  try {
    handle(request)
  } catch (error) {
    digests.end(request.id)
    reply(failure(request.id, error))
  }
})
