// Opens the database behind the content index. What cannot be read is discarded, for the tree can tell it again.
// A map into memory ends the whole process when it is damaged, or when the disk has no room for its first
// pages; no `catch` helps. So the file is looked at before, room is made sure of, and a marker file tells the
// next start that this one did not come back: then it happens once at most.

import { writeFile } from 'node:fs/promises'
import path from 'node:path'
import { open, type Database, type RootDatabase } from 'lmdb'
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
import { isLmdbFileSound } from './lmdb-file.ts'
import type { StoragePaths } from './paths.ts'

export type Table = Database<Buffer, Buffer>

export interface IndexDatabase {
  readonly root: RootDatabase<unknown, string>
  readonly meta: Database<unknown, string>
  readonly blobs: Table
  readonly order: Table
  readonly links: Table
  readonly names: Table
  readonly named: Table
  readonly tags: Table
  readonly repositories: Table
}

/** Another meaning of the stored bytes gets another number, and old ones are rebuilt. */
export const FORMAT = 3
/** Keys of `meta`. */
export const FORMAT_KEY = 'format'
/** Says that the whole tree was seen once: what is not in the index came later. */
export const SEEN_KEY = 'seen'
export const TOTALS_KEY = 'totals'
export const SCRUB_KEY = 'scrub'

const FILE = 'content.mdb'
/** Says that nothing on disk was missing when the index was closed. */
const COMPLETE_FILE = 'complete'
/** An address range, not memory: without it lmdb maps the file anew as it grows, and keeps the old maps. */
const MAP_BYTES = 64 * 1024 ** 3
/** With room to spare. */
const DATABASES_MAX = 16
/** The lock file and the first pages of a new database, with room to spare. */
const ROOM_BYTES = 256 * 1024
/** Entries that are read before the start goes on; the rest is read beside the serving. */
const READ_FIRST_ENTRIES = 50_000
/** Entries looked at between two turns of the event loop. */
const CHUNK_ENTRIES = 2_000

export interface IndexDatabaseDeps {
  readonly paths: StoragePaths
  readonly writer: FileWriter
  readonly logger: Logger
}

export interface OpenedDatabase {
  readonly database: IndexDatabase
  /** Resolves when all of it has been read once. Never rejects. */
  readonly checked: Promise<void>
}

/** @throws {StorageError} the disk has no room for it */
export async function openIndexDatabase(deps: IndexDatabaseDeps): Promise<OpenedDatabase> {
  const { logger, paths, writer } = deps
  const file = path.join(paths.index, FILE)
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
  const database = await openTables(file).catch(async (error: unknown) => {
    await startOver(error)
    return openTables(file)
  })
  const reading = readThrough(database)
  await readSome(reading, READ_FIRST_ENTRIES)
  const checked = readSome(reading, Number.POSITIVE_INFINITY)
    .then(() => removeFile(marker))
    // Closed meanwhile: whoever closes it has no more doubts either.
    .catch(() => undefined)
  return { database, checked: checked.then(() => undefined) }
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

async function openTables(file: string): Promise<IndexDatabase> {
  const root = open<unknown, string>({
    path: file,
    mapSize: MAP_BYTES,
    maxDbs: DATABASES_MAX,
    // Changes come in transactions. What lmdb would begin for one turn's writes has a promise that nobody is given:
    // if the disk refuses the commit, it rejects unheard.
    eventTurnBatching: false,
  })
  try {
    const table = (name: string): Table =>
      root.openDB<Buffer, Buffer>({ name, keyEncoding: 'binary', encoding: 'binary' })
    const meta = root.openDB<unknown, string>({ name: 'meta' })
    const format = meta.get(FORMAT_KEY)
    if (format !== undefined && format !== FORMAT) {
      throw new Error(`its format is ${JSON.stringify(format)}, expected ${FORMAT}`)
    }
    return {
      root,
      meta,
      blobs: table('blobs'),
      order: table('order'),
      links: table('links'),
      names: table('names'),
      named: table('named'),
      tags: table('tags'),
      repositories: table('repositories'),
    }
  } catch (error) {
    await root.close()
    throw error
  }
}

/** Touches every page, so that damage shows now. Yields the number of entries in each step. */
async function* readThrough(database: IndexDatabase): AsyncGenerator<number> {
  const { meta: _meta, root: _root, ...tables } = database
  for (const table of Object.values(tables)) {
    for await (const chunk of chunksOf(table)) yield chunk.length
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

/** The entries of a table in the order of their keys; gives way to other work after each chunk. */
export async function* chunksOf(
  table: Table,
  range: { start?: Buffer; end?: Buffer } = {},
): AsyncGenerator<{ key: Buffer; value: Buffer }[]> {
  let { start } = range
  for (;;) {
    const bounds = {
      ...(start ? { start } : {}),
      ...(range.end ? { end: range.end } : {}),
      limit: CHUNK_ENTRIES,
    }
    const chunk = [...table.getRange(bounds)]
    if (chunk.length > 0) yield chunk
    const last = chunk.at(-1)
    if (!last || chunk.length < CHUNK_ENTRIES) return
    // The smallest key after the last one.
    start = Buffer.concat([last.key, Buffer.alloc(1)])
    await new Promise((resolve) => {
      setImmediate(resolve)
    })
  }
}

/** Databases of other versions. */
async function removeOthers(paths: StoragePaths): Promise<void> {
  for (const { name } of await listDirectory(paths.index)) {
    if (!name.startsWith(FILE)) await removeTree(path.join(paths.index, name))
  }
}

async function ensureRoom({ paths, writer }: IndexDatabaseDeps): Promise<void> {
  const probe = path.join(paths.index, 'room')
  await writer.write(probe, Buffer.alloc(ROOM_BYTES))
  await removeFile(probe)
}
