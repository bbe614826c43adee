import { existsSync, renameSync } from 'node:fs'
import { mkdir, rename } from 'node:fs/promises'
import path from 'node:path'
import { pino, type Logger } from 'pino'
import { describe, expect, it, onTestFinished } from 'vitest'
import type { Digest } from '../../../../src/oci/digest.ts'
import type { RepositoryName } from '../../../../src/oci/reference.ts'
import { StorageError } from '../../../../src/storage/filesystem.ts'
import { ContentIndex } from '../../../../src/storage/index/content-index.ts'
import type { IndexChange } from '../../../../src/storage/index/index-changes.ts'
import { IndexMarks } from '../../../../src/storage/index/index-marks.ts'
import { openIndex, type OpenedIndex } from '../../../../src/storage/index/index-opening.ts'
import { StoragePaths } from '../../../../src/storage/paths.ts'
import { blobOf } from '../../../support/images.ts'
import { everMoreMapped, type MappedMemory } from '../../../support/mapped-memory.ts'
import { makeWriter } from '../../../support/storage-thread.ts'
import { makeTempDirectory } from '../../../support/temp-directory.ts'
import { nextTurn, waitFor } from '../../../support/wait-for.ts'

const REPOSITORIES = ['library/a', 'library/b'] as RepositoryName[]
/** More than one chunk of a walk, in each table. */
const MANY = 4_500
const LOST =
  'lost the index of the content: nothing expires until it can be opened again, or after a restart'

const markerOf = (paths: StoragePaths): string => path.join(paths.index, 'opening')
const digestAt = (seed: number): Digest => blobOf(8, seed).digest

function changesFor(seed: number): IndexChange[] {
  const digest = digestAt(seed)
  return [
    { change: 'store', digest, allocatedBytes: 4096, isManifest: false, atMs: 1 },
    ...REPOSITORIES.map((repository) => {
      return { change: 'use', link: { digest, kind: 'blob', repository }, atMs: 1 } as const
    }),
  ]
}

/** A volume whose index has so many blobs. */
async function makePaths(count = MANY): Promise<StoragePaths> {
  const paths = new StoragePaths(await makeTempDirectory())
  await mkdir(paths.temporary, { recursive: true })
  const index = await ContentIndex.open({
    paths,
    writer: makeWriter(paths),
    logger: pino({ enabled: false }),
  })
  await index.write(Array.from({ length: count }, (_, seed) => changesFor(seed)).flat())
  index.markComplete()
  await index.close()
  return paths
}

interface Rig {
  readonly index: ContentIndex
  readonly memory: MappedMemory
  readonly messages: string[]
}

async function open(paths: StoragePaths, memory = everMoreMapped()): Promise<Rig> {
  const messages: string[] = []
  const logger = loggerTo(messages)
  const index = await ContentIndex.open({ paths, writer: makeWriter(paths), logger, ...memory })
  onTestFinished(() => index.close())
  return { index, memory, messages }
}

async function count(entries: AsyncIterable<unknown>): Promise<number> {
  let seen = 0
  for await (const _ of entries) seen++
  return seen
}

async function openHandle(
  paths: StoragePaths,
): Promise<Pick<OpenedIndex, 'handle'> & { memory: MappedMemory; messages: string[] }> {
  const memory = everMoreMapped()
  const messages: string[] = []
  const logger = loggerTo(messages)
  const deps = { paths, writer: makeWriter(paths), logger, ...memory }
  const { checked, handle } = await openIndex(deps, new IndexMarks(deps))
  onTestFinished(async () => {
    await handle.close()
  })
  await checked
  return { handle, memory, messages }
}

function lose(memory: MappedMemory): void {
  memory.onReopen = () => {
    throw Object.assign(new Error('EIO: i/o error'), { code: 'EIO' })
  }
}

/** As lmdb does on a disk that is full. */
function failToCommit(): Promise<never> {
  const commitError = Promise.reject(new Error('full'))
  return Promise.reject(Object.assign(new Error('Commit failed'), { commitError }))
}

function loggerTo(messages: string[]): Logger {
  const write = (line: string): void => {
    messages.push((JSON.parse(line) as { msg: string }).msg)
  }
  return pino({}, { write })
}

describe('an index in which lmdb finds damage', () => {
  it('says so once, and leaves a mark for the next start', async () => {
    const paths = await makePaths(10)
    const { handle, messages } = await openHandle(paths)
    const damage = Object.assign(new Error('MDB_CORRUPTED'), { code: -30_796 })
    for (let writes = 0; writes < 2; writes++) {
      await expect(handle.commit(() => Promise.reject(damage))).rejects.toThrow(StorageError)
    }
    expect(messages).toEqual([expect.stringContaining('the index of the content is damaged')])
    await waitFor('the mark', () => existsSync(path.join(paths.index, 'damaged')))
  })

  it('is not one on a disk that is full', async () => {
    const { handle, messages } = await openHandle(await makePaths(10))
    const full = Object.assign(new Error('No space left on device'), { code: 28 })
    await expect(handle.commit(() => Promise.reject(full))).rejects.toThrow(StorageError)
    expect(messages).toEqual([])
  })
})

describe('an index of which much is mapped', () => {
  it('is opened again while it is read through, and has all that it had', async () => {
    const { index, memory, messages } = await open(await makePaths())
    expect(memory.reopenings).toBeGreaterThan(5)
    expect(index.wasComplete).toBe(true)
    expect(index.totals).toMatchObject({ blobs: MANY, links: 2 * MANY })
    expect(await count(index.blobs())).toBe(MANY)
    for (let seed = 0; seed < MANY; seed += 500) {
      expect(index.linksOf(digestAt(seed)).map(({ repository }) => repository)).toEqual(
        REPOSITORIES,
      )
    }
    await index.write(changesFor(MANY))
    expect(index.totals).toMatchObject({ blobs: MANY + 1, links: 2 * MANY + 2 })
    expect(messages).toEqual([])
  })

  it('is there for whoever reads it and walks through it meanwhile', async () => {
    const paths = await makePaths()
    const { handle, memory } = await openHandle(paths)
    const over = new AbortController()
    const reading = async (): Promise<void> => {
      while (!over.signal.aborted) {
        expect(handle.isOpen).toBe(true)
        expect([...handle.iterate(({ repositories }) => repositories.getKeys())]).toHaveLength(2)
        await nextTurn()
      }
    }
    const read = reading()
    const before = memory.reopenings
    const walk = async (): Promise<number> => {
      let entries = 0
      for await (const chunk of handle.chunksOf('links')) {
        entries += chunk.length
      }
      return entries
    }
    expect(await Promise.all([walk(), walk(), walk()])).toEqual([9000, 9000, 9000])
    over.abort()
    await read
    expect(memory.reopenings).toBeGreaterThan(before)
  })

  it('waits for whoever reads entry by entry', async () => {
    const { handle, memory } = await openHandle(await makePaths(1))
    const before = memory.reopenings
    const reading = handle.iterate(({ links }) => links.getKeys())
    expect(reading.next().value).toBeDefined()
    await handle.letGo()
    expect(memory.reopenings).toBe(before)
    expect([...reading]).toHaveLength(1)
    await handle.letGo()
    expect(memory.reopenings).toBe(before + 1)
  })

  it('is opened again between writes, and has all of them', async () => {
    const { index, memory, messages } = await open(await makePaths(1))
    const before = memory.reopenings
    const over = new AbortController()
    const reading = async (): Promise<void> => {
      while (!over.signal.aborted) {
        expect(index.has(digestAt(0))).toBe(true)
        expect(index.linksOf(digestAt(0))).toHaveLength(2)
        await nextTurn()
      }
    }
    const read = reading()
    const seeds = Array.from({ length: 300 }, (_, at) => at + 1)
    const write = (each: readonly number[]): Promise<void[]> =>
      Promise.all(each.map((seed) => index.write(changesFor(seed))))
    for (let start = 0; start < seeds.length; start += 10)
      await write(seeds.slice(start, start + 10))
    over.abort()
    await read
    expect(memory.reopenings).toBeGreaterThan(before + 20)
    expect(seeds.filter((seed) => !index.has(digestAt(seed)))).toEqual([])
    expect(index.totals).toMatchObject({ blobs: 301, links: 602 })
    expect(messages).toEqual([])
  })

  it('waits for a write that is under way, and is waited for by the next one', async () => {
    const { handle, memory } = await openHandle(await makePaths(1))
    const before = memory.reopenings
    const first = handle.commit(({ meta }) => meta.put('scrub', 1))
    await handle.letGo()
    expect(memory.reopenings).toBe(before)
    await first
    const lettingGo = handle.letGo()
    const second = handle.commit(({ meta }) => meta.put('scrub', memory.reopenings))
    await Promise.all([lettingGo, second])
    expect(memory.reopenings).toBe(before + 1)
    expect(handle.database?.meta.get('scrub')).toBe(before + 1)
  })

  it('stays open after a write that failed, for which lmdb would wait for ever, up to one that succeeds', async () => {
    const { handle, memory } = await openHandle(await makePaths(1))
    const before = memory.reopenings
    await expect(handle.commit(failToCommit)).rejects.toThrow(StorageError)
    await handle.letGo()
    expect(memory.reopenings).toBe(before)
    await handle.commit(({ meta }) => meta.put('scrub', 1))
    await handle.letGo()
    expect(memory.reopenings).toBe(before + 1)
  })

  it('stays as it is when another file has its name', async () => {
    const paths = await makePaths(1)
    const { handle, memory } = await openHandle(paths)
    const before = memory.reopenings
    await rename(paths.index, `${paths.index}-elsewhere`)
    await handle.letGo()
    expect(memory.reopenings).toBe(before)
    expect([...handle.iterate(({ links }) => links.getKeys())]).toHaveLength(2)
  })
})

describe('an index that cannot be opened again', () => {
  it('is as good as none, and says so once, until it can', async () => {
    const { handle, memory, messages } = await openHandle(await makePaths())
    const walk = handle.chunksOf('blobs')
    await walk.next()
    lose(memory)
    await handle.letGo()
    expect(handle.isOpen).toBe(false)
    expect([...handle.iterate(({ blobs }) => blobs.getKeys())]).toEqual([])
    expect(await count(handle.chunksOf('blobs'))).toBe(0)
    // It would be taken for all that there is.
    await expect(walk.next()).rejects.toThrow('it was closed meanwhile')
    const put = (): Promise<void> => handle.commit(({ meta }) => meta.put('scrub', 1))
    for (let times = 0; times < 3; times++) await expect(put()).rejects.toThrow(StorageError)
    expect(messages).toEqual([LOST])
    memory.onReopen = (reopen) => reopen()
    await put()
    expect([...handle.iterate(({ blobs }) => blobs.getKeys())]).toHaveLength(MANY)
    expect(messages).toEqual([LOST, 'the index of the content could be opened again'])
  })

  it('is not what has come into its place', async () => {
    const paths = await makePaths(1)
    const { handle, memory, messages } = await openHandle(paths)
    memory.onReopen = (reopen) => {
      renameSync(paths.index, `${paths.index}-elsewhere`)
      return reopen()
    }
    await handle.letGo()
    expect(handle.isOpen).toBe(false)
    expect(messages).toEqual([LOST])
  })

  it('at the start is opened as soon as something is to be written, and not thrown away', async () => {
    const paths = await makePaths()
    const memory = everMoreMapped()
    lose(memory)
    const { index } = await open(paths, memory)
    expect([index.isOpen, index.wasComplete]).toEqual([false, false])
    expect(existsSync(markerOf(paths))).toBe(false)
    memory.onReopen = (reopen) => reopen()
    await index.write(changesFor(MANY))
    expect(index.totals.blobs).toBe(MANY + 1)
    expect(await count(index.blobs())).toBe(MANY + 1)
  })

  it('is not complete for the next start, and not thrown away', async () => {
    const paths = await makePaths()
    const memory = everMoreMapped()
    lose(memory)
    const { index } = await open(paths, memory)
    index.markComplete()
    await index.close()
    const { index: next } = await open(paths)
    expect([next.wasComplete, next.has(digestAt(0))]).toEqual([false, true])
  })
})
