// Opens the content index. What cannot be read is discarded, for the tree can tell it again.
// A map into memory ends the whole process when it is damaged, or when the disk has no room for its first
// pages; no `catch` helps. So the file is looked at before, room is made sure of, and a marker file tells the
// next start that this one did not come back: then it happens once at most.

import { writeFile } from 'node:fs/promises'
import path from 'node:path'
import type { Logger } from 'pino'
import {
  StorageError,
  ensureDirectory,
  listDirectory,
  readSmallFile,
  removeFile,
  removeTree,
} from './filesystem.ts'
import type { FileWriter } from './file-writer.ts'
import { INDEX_FILE, TABLES, indexFile, openTables, type IndexDatabase } from './index-database.ts'
import { IndexHandle, type IndexHandleOptions } from './index-handle.ts'
import { isLmdbFileSound } from './lmdb-file.ts'
import type { StoragePaths } from './paths.ts'

/** Says that nothing on disk was missing when the index was closed. */
const COMPLETE_FILE = 'complete'
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
export async function openIndex(deps: IndexOpeningDeps): Promise<OpenedIndex> {
  const { logger, paths, writer } = deps
  const file = indexFile(paths)
  const marker = path.join(paths.index, 'opening')
  const startOver = async (reason: unknown): Promise<void> => {
    logger.warn({ err: reason }, 'the index of the content cannot be read; it is rebuilt')
    await removeTree(paths.index)
    await ensureDirectory(paths.index)
  }
  const isInterrupted = await readSmallFile(marker).then(
    (bytes) => bytes !== undefined,
    () => true,
  )
  if (isInterrupted) await startOver(new Error('the last attempt to read it ended the process'))
  await ensureDirectory(paths.index).catch(startOver)
  if (!(await isLmdbFileSound(file))) await startOver(new Error(`${file} is damaged`))
  await removeOthers(paths)
  await ensureRoom(deps)
  await writer.write(marker, 'removed when the index has been read once\n')
  const database = await openOrElse(file, startOver)
  const handle = new IndexHandle({ ...deps, file }, database)
  const reading = readThrough(handle)
  // Whoever closes it has no more doubts, and one that could not be opened again is not to be doubted for that.
  const noteClosed = async (): Promise<void> => {
    if (!handle.isOpen) await removeFile(marker).catch(() => undefined)
  }
  await readSome(reading, READ_FIRST_ENTRIES).catch(async (error: unknown) => {
    await noteClosed()
    throw error
  })
  const checked = readSome(reading, Number.POSITIVE_INFINITY)
    .then(() => removeFile(marker))
    .catch(noteClosed)
  return { handle, checked: checked.then(() => undefined) }
}

/** Removed when it is closed in order: a start that is stopped early has not failed. */
export async function markClosed(paths: StoragePaths): Promise<void> {
  await removeFile(path.join(paths.index, 'opening'))
}

/** @throws {StorageError} */
export async function markComplete(paths: StoragePaths): Promise<void> {
  const file = path.join(paths.index, COMPLETE_FILE)
  await writeFile(file, '').catch((error: unknown) => {
    throw new StorageError('write', file, error)
  })
}

/**
 * Takes the mark away: from now on a crash may keep something from the index. That needs no room on the disk.
 *
 * @returns whether it was there
 * @throws {StorageError} it still is
 */
export function takeComplete(paths: StoragePaths): Promise<boolean> {
  return removeFile(path.join(paths.index, COMPLETE_FILE))
}

async function openOrElse(
  file: string,
  startOver: (reason: unknown) => Promise<void>,
): Promise<IndexDatabase> {
  try {
    return openTables(file)
  } catch (error) {
    await startOver(error)
    return openTables(file)
  }
}

/** Touches every page, so that damage shows now. Yields the number of entries in each step. */
async function* readThrough(handle: IndexHandle): AsyncGenerator<number> {
  for (const table of TABLES) {
    for await (const chunk of handle.chunksOf(table)) {
      yield chunk.length
      handle.letGo()
    }
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
