// Opens the content index. What cannot be read is discarded, for the tree can tell it again.
// A map into memory ends the whole process when it is damaged, or when the disk has no room for its first
// pages; no `catch` helps. So the file is looked at before, room is made sure of, and marks tell the next start that
// this one did not come back: see index-marks.ts.

import path from 'node:path'
import type { Logger } from 'pino'
import type { FileWriter } from '../file-writer.ts'
import { ensureDirectory, listDirectory, removeFile, removeTree } from '../filesystem.ts'
import type { StoragePaths } from '../paths.ts'
import { INDEX_FILE, TABLES, indexFile, openTables } from './index-database.ts'
import { IndexHandle, type IndexHandleOptions } from './index-handle.ts'
import type { IndexMarks } from './index-marks.ts'
import { isLmdbFileSound } from './lmdb-file.ts'

/** The lock file and the first pages of a new database, with room to spare. */
const ROOM_BYTES = 256 * 1024
/** Entries that are read before the start goes on; the rest is read beside the serving. */
const READ_FIRST_ENTRIES = 50_000

export interface IndexOpeningDeps extends IndexHandleOptions {
  readonly paths: StoragePaths
  readonly writer: FileWriter
  readonly logger: Logger
}

export interface OpenedIndex {
  readonly handle: IndexHandle
  /** Resolves when all of it has been read once. Never rejects. */
  readonly checked: Promise<void>
}

/** @throws {StorageError} the disk has no room for it */
export async function openIndex(deps: IndexOpeningDeps, marks: IndexMarks): Promise<OpenedIndex> {
  const { logger, paths } = deps
  const file = indexFile(paths)
  const startOver = async (reason: unknown): Promise<void> => {
    logger.warn({ err: reason }, 'the index of the content cannot be read; it is rebuilt')
    await removeTree(paths.index)
    await ensureDirectory(paths.index)
  }
  const open = (): IndexHandle =>
    new IndexHandle({ ...deps, file, onDamage: () => void marks.noteDamaged() }, openTables(file))
  const openAnew = async (reason: unknown): Promise<IndexHandle> => {
    await startOver(reason)
    await marks.begin()
    return open()
  }

  const doubt = await marks.doubt().catch((error: unknown) => String(error))
  if (doubt !== undefined) await startOver(new Error(doubt))
  await ensureDirectory(paths.index).catch(startOver)
  if (!(await isLmdbFileSound(file))) await startOver(new Error(`${file} is damaged`))
  await removeOthers(paths)
  await ensureRoom(deps)
  await marks.begin()
  let handle: IndexHandle
  try {
    handle = open()
  } catch (error) {
    handle = await openAnew(error)
  }
  let reading = readThrough(handle)
  try {
    await readSome(reading, READ_FIRST_ENTRIES)
  } catch (error) {
    // It could not be opened again: that says nothing of its content.
    if (!handle.isOpen) {
      await marks.noteRead()
      throw error
    }
    await handle.close()
    handle = await openAnew(error)
    reading = readThrough(handle)
  }
  return { handle, checked: readOn(handle, reading, marks) }
}

/** Beside the serving. Never rejects: what cannot be read is found out by the next start. */
async function readOn(
  handle: IndexHandle,
  reading: AsyncGenerator<number>,
  marks: IndexMarks,
): Promise<void> {
  try {
    await readSome(reading, Number.POSITIVE_INFINITY)
    await marks.noteRead()
  } catch {
    // Whoever has closed it has no doubts.
    if (!handle.isOpen) await marks.noteRead().catch(() => undefined)
  }
}

/** Touches every page, so that damage shows now. Yields the number of entries in each step. */
async function* readThrough(handle: IndexHandle): AsyncGenerator<number> {
  yield [...handle.iterate(({ meta }) => meta.getRange())].length
  for (const table of TABLES) {
    for await (const chunk of handle.chunksOf(table)) yield chunk.length
  }
}

async function readSome(reading: AsyncGenerator<number>, entries: number): Promise<void> {
  let left = entries
  while (left > 0) {
    const step = await reading.next()
    if (step.done) return
    left -= step.value
  }
}

/** Databases of other versions. */
async function removeOthers(paths: StoragePaths): Promise<void> {
  for (const { name } of await listDirectory(paths.index)) {
    if (!name.startsWith(INDEX_FILE)) await removeTree(path.join(paths.index, name))
  }
}

async function ensureRoom({ paths, writer }: IndexOpeningDeps): Promise<void> {
  const probe = path.join(paths.index, 'room')
  await writer.write(probe, Buffer.alloc(ROOM_BYTES))
  await removeFile(probe)
}
