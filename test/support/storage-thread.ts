// The storage thread for tests: a real one, which has to be compiled first (`npm test` does).

import { existsSync } from 'node:fs'
import { onTestFinished } from 'vitest'
import { BlobStore } from '../../src/storage/blob-store.ts'
import { Digester } from '../../src/storage/digester.ts'
import { FileWriter } from '../../src/storage/file-writer.ts'
import type { StoragePaths } from '../../src/storage/paths.ts'
import { StorageThread } from '../../src/storage/storage-thread.ts'

export const STORAGE_WORKER_URL = new URL('../../dist/storage/storage-worker.js', import.meta.url)

/**
 * Makes a thread for the running test, and ends it with the test.
 *
 * @throws when the worker has not been compiled
 */
export function makeStorageThread(): StorageThread {
  if (!existsSync(STORAGE_WORKER_URL)) {
    throw new Error('the storage worker is missing: run `npm run build`')
  }
  const thread = new StorageThread({ workerUrl: STORAGE_WORKER_URL })
  onTestFinished(() => thread.close())
  return thread
}

export function makeDigester(): Digester {
  return new Digester({ thread: makeStorageThread() })
}

/** One whose thread takes everything and answers nothing. */
export function makeStalledDigester(): Digester {
  const code =
    "import { parentPort } from 'node:worker_threads'; parentPort.on('message', () => {})"
  const workerUrl = new URL(`data:text/javascript,${encodeURIComponent(code)}`)
  const thread = new StorageThread({ workerUrl })
  onTestFinished(() => thread.close())
  return new Digester({ thread })
}

export function makeWriter(paths: StoragePaths): FileWriter {
  return new FileWriter({ thread: makeStorageThread(), paths })
}

export function makeBlobStore(paths: StoragePaths): BlobStore {
  const thread = makeStorageThread()
  const writer = new FileWriter({ thread, paths })
  return new BlobStore({ paths, writer, digester: new Digester({ thread }) })
}
