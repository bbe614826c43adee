import { mkdir, readFile } from 'node:fs/promises'
import path from 'node:path'
import { describe, expect, it, onTestFinished } from 'vitest'
import { BlobStore } from '../../../src/storage/blob-store.ts'
import { Digester } from '../../../src/storage/digester.ts'
import { FileWriter } from '../../../src/storage/file-writer.ts'
import { StoragePaths } from '../../../src/storage/paths.ts'
import { RepositoryIndex } from '../../../src/storage/repository-index.ts'
import { StorageThread } from '../../../src/storage/storage-thread.ts'
import type { RepositoryName } from '../../../src/oci/reference.ts'
import { blobOf } from '../../support/images.ts'
import { makeStorageThread } from '../../support/storage-thread.ts'
import { makeTempDirectory } from '../../support/temp-directory.ts'
import { nextTurn, within } from '../../support/wait-for.ts'

/** Writes nothing. Tells how many writes it has before it when it is asked; then they are done, unless one fails. */
const SLOW_WORKER = `
  import { parentPort } from 'node:worker_threads'
  let held = []
  parentPort.on('message', (requests) => {
    if (requests === 'end') return parentPort.close()
    for (const { id, kind, files } of requests) {
      if (kind === 'write') {
        if (files[0].file === 'die') throw new Error('it died')
        held.push({ id })
        continue
      }
      parentPort.postMessage([{ id, hex: String(held.length) }, ...held])
      held = []
    }
  })
`

function slowThread(): StorageThread {
  const workerUrl = new URL(`data:text/javascript,${encodeURIComponent(SLOW_WORKER)}`)
  const thread = new StorageThread({ workerUrl })
  onTestFinished(() => thread.close())
  return thread
}

function writerOf(thread: StorageThread, directory = '/nowhere'): FileWriter {
  return new FileWriter({ thread, paths: new StoragePaths(directory) })
}

function writePatiently(writer: FileWriter, file: string, bytes = file): Promise<void> {
  return writer.writeAll([{ file, bytes }], { isPatient: true })
}

/** @returns how many writes it had before it, which are done now */
async function ask(thread: StorageThread): Promise<number> {
  // What was begun is sent first: requests of one turn go out together, and not in their order.
  await nextTurn()
  await nextTurn()
  const id = thread.nextId()
  const reply = thread.reply(id)
  thread.send({ kind: 'finish', id })
  return Number(await within('a reply', reply))
}

describe('patient writes', () => {
  it('are sent a few at a time, however many there are', async () => {
    const thread = slowThread()
    const writer = writerOf(thread)
    const done = Array.from({ length: 40 }, (_, i) => writePatiently(writer, String(i)))
    expect(await ask(thread)).toBe(16)
    expect(await ask(thread)).toBe(16)
    expect(await ask(thread)).toBe(8)
    await within('the writes', Promise.all(done))
    expect(thread.patientBytes).toBe(0)
  })

  it('let links, tags and manifests pass', async () => {
    const thread = slowThread()
    const paths = new StoragePaths('/nowhere')
    const writer = new FileWriter({ thread, paths })
    const store = new BlobStore({ paths, writer, digester: new Digester({ thread }) })
    const index = new RepositoryIndex({ paths, writer })
    const blobs = Array.from({ length: 100 }, (_, i) => {
      const { bytes, digest } = blobOf(10, `blob ${i}`)
      return store.put(digest, bytes, [], { isPatient: true })
    })
    expect(await ask(thread)).toBe(16)
    const { bytes, digest } = blobOf(10, 'manifest')
    const repository = 'some/image' as RepositoryName
    const urgent = Promise.all([
      store.put(digest, bytes),
      index.link({ repository, digest, kind: 'blob' }),
    ])
    // Sixteen of the blobs that were there before, and both.
    expect(await ask(thread)).toBe(18)
    await within('the manifest and the link', urgent)
    expect(thread.patientBytes).toBeGreaterThan(0)
    for (let left = 100 - 32; left > 0; left -= 16) await ask(thread)
    await within('the blobs', Promise.all(blobs))
  })

  it('are counted with their bytes until they are done', async () => {
    const thread = slowThread()
    const writer = writerOf(thread)
    const done = [writePatiently(writer, 'a', 'x'.repeat(1000)), writePatiently(writer, 'b', 'y')]
    await ask(thread)
    const none = writePatiently(writer, 'c', '')
    const ofOne = thread.patientBytes
    await ask(thread)
    await Promise.all([...done, none])
    const again = writePatiently(writer, 'd', 'x'.repeat(1000))
    expect(thread.patientBytes).toBe(ofOne + 1000)
    await ask(thread)
    await again
    expect(thread.patientBytes).toBe(0)
  })

  it('have caught up when none has to wait', async () => {
    const thread = slowThread()
    const writer = writerOf(thread)
    await within('nothing', thread.caughtUp())
    const done = Array.from({ length: 20 }, (_, i) => writePatiently(writer, String(i)))
    let hasCaughtUp = false
    const caughtUp = thread.caughtUp().then(() => (hasCaughtUp = true))
    await nextTurn()
    expect(hasCaughtUp).toBe(false)
    await ask(thread)
    await within('the thread', caughtUp)
    await ask(thread)
    await Promise.all(done)
  })

  it('fail when the thread dies, and are counted no more', async () => {
    const thread = slowThread()
    const writer = writerOf(thread)
    const done = Array.from({ length: 40 }, (_, i) => writePatiently(writer, i ? String(i) : 'die'))
    const caughtUp = thread.caughtUp()
    const results = await within('the writes', Promise.allSettled(done))
    expect(new Set(results.map(({ status }) => status))).toEqual(new Set(['rejected']))
    expect(thread.patientBytes).toBe(0)
    await within('the thread', caughtUp)
  })

  it('are done before the thread is closed', async () => {
    const thread = makeStorageThread()
    const directory = await makeTempDirectory()
    const writer = writerOf(thread, directory)
    const files = Array.from({ length: 100 }, (_, i) => path.join(directory, 'in', String(i)))
    const paths = new StoragePaths(directory)
    await mkdir(paths.temporary, { recursive: true })
    await writer.write(path.join(directory, 'first'), 'first')
    const done = files.map((file) => writePatiently(writer, file))
    await thread.close()
    await within('the writes', Promise.all(done))
    for (const file of files) expect(await readFile(file, 'utf8')).toBe(file)
  })
})
