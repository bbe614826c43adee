import { readFile } from 'node:fs/promises'
import path from 'node:path'
import { afterEach, describe, expect, it } from 'vitest'
import { StorageThread } from '../../../src/storage/storage-thread.ts'
import { makeStorageThread } from '../../support/storage-thread.ts'
import { makeTempDirectory } from '../../support/temp-directory.ts'
import { nextTurn, within } from '../../support/wait-for.ts'

/** A thread that does nothing until it is asked how many writes it has before it; then it has done them. */
const SLOW_WORKER = `
  import { parentPort } from 'node:worker_threads'
  let held = []
  parentPort.on('message', (requests) => {
    if (requests === 'end') return parentPort.close()
    for (const { id, kind } of requests) {
      if (kind === 'write') {
        held.push({ id })
        continue
      }
      parentPort.postMessage([{ id, hex: String(held.length) }, ...held])
      held = []
    }
  })
`

const threads: StorageThread[] = []

afterEach(async () => {
  await Promise.all(threads.splice(0).map((thread) => thread.close()))
})

function slowThread(): StorageThread {
  const workerUrl = new URL(`data:text/javascript,${encodeURIComponent(SLOW_WORKER)}`)
  const thread = new StorageThread({ workerUrl })
  threads.push(thread)
  return thread
}

function write(
  thread: StorageThread,
  file: string,
  temporaryDirectory: string,
): Promise<string | undefined> {
  const id = thread.nextId()
  const done = thread.reply(id)
  thread.send({ kind: 'write', id, files: [{ file, bytes: file }], temporaryDirectory })
  return done
}

/** @returns how many writes it had before it, which are done now */
async function ask(thread: StorageThread): Promise<number> {
  // Requests of one turn go out together, and not in their order.
  await nextTurn()
  const id = thread.nextId()
  const reply = thread.reply(id)
  thread.send({ kind: 'finish', id })
  return Number(await within('a reply', reply))
}

describe('the storage thread', () => {
  it('is sent few writes at a time, however many there are', async () => {
    const thread = slowThread()
    const done = Array.from({ length: 40 }, (_, i) => write(thread, String(i), '/'))
    expect(await ask(thread)).toBe(16)
    expect(await ask(thread)).toBe(16)
    expect(await ask(thread)).toBe(8)
    await within('the writes', Promise.all(done))
  })

  it('has caught up when no write has to wait', async () => {
    const thread = slowThread()
    for (let i = 0; i < 16; i++) void write(thread, String(i), '/')
    expect(thread.caughtUp()).toBeUndefined()
    for (let i = 0; i < 16; i++) void write(thread, String(i), '/')
    const caughtUp = thread.caughtUp()
    expect(caughtUp).toBeDefined()
    await ask(thread)
    await within('the thread', caughtUp ?? Promise.reject(new Error('it is behind')))
    expect(thread.caughtUp()).toBeUndefined()
    await ask(thread)
  })

  it('has written what it was given before when it is closed', async () => {
    const thread = makeStorageThread()
    const directory = await makeTempDirectory()
    const files = Array.from({ length: 100 }, (_, i) => path.join(directory, 'in', String(i)))
    await write(thread, path.join(directory, 'first'), directory)
    const done = files.map((file) => write(thread, file, directory))
    await thread.close()
    await within('the writes', Promise.all(done))
    for (const file of files) expect(await readFile(file, 'utf8')).toBe(file)
  })
})
