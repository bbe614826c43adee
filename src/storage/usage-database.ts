// Opens the database behind the usage index. What cannot be read is discarded, for the tree can tell it again.
// A map into memory ends the whole process when it is damaged, or when the disk has no room for its first
// pages; no `catch` helps. So the file is looked at before, room is made sure of, and a marker file tells the
// next start that this one did not come back: then it happens once at most.

import path from 'node:path'
import { open, type RootDatabase } from 'lmdb'
import type { Logger } from 'pino'
import { ensureDirectory, readSmallFile, removeFile, removeTree } from './filesystem.ts'
import type { FileWriter } from './file-writer.ts'
import { isLmdbFileSound } from './lmdb-file.ts'
import type { StoragePaths } from './paths.ts'

export type StoredValue = readonly [kind: 0 | 1, lastUsedMs: number]

export type UsageDatabase = RootDatabase<StoredValue | number, string>

/** Another meaning of the stored values gets another number, and old ones are rebuilt. */
export const FORMAT = 1
/** Says that a scan has seen the whole tree, and in which format. Sorts before every digest. */
export const COMPLETE_KEY = '!complete'

/** The lock file and the first pages of a new database, with room to spare. */
const ROOM_BYTES = 256 * 1024

export interface UsageDatabaseDeps {
  readonly paths: StoragePaths
  readonly writer: FileWriter
  readonly logger: Logger
}

/**
 * @param visit reads all of it once; throws when it cannot
 * @throws {StorageError} the disk has no room for it
 */
export async function openUsageDatabase(
  deps: UsageDatabaseDeps,
  visit: (database: UsageDatabase) => Promise<void>,
): Promise<UsageDatabase> {
  const { logger, paths, writer } = deps
  const file = path.join(paths.index, 'usage.mdb')
  const marker = path.join(paths.index, 'opening')
  const startOver = async (reason: unknown): Promise<void> => {
    logger.warn({ err: reason }, 'the index of last uses cannot be read; it is rebuilt')
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
  await ensureRoom(deps)
  await writer.write(marker, 'removed when the index has been read once\n')
  const database = await openAndVisit(file, visit).catch(async (error: unknown) => {
    await startOver(error)
    return openAndVisit(file, visit)
  })
  await removeFile(marker)
  return database
}

async function openAndVisit(
  file: string,
  visit: (database: UsageDatabase) => Promise<void>,
): Promise<UsageDatabase> {
  const database = open<StoredValue | number, string>({ path: file })
  try {
    const format = database.get(COMPLETE_KEY)
    if (format !== undefined && format !== FORMAT) {
      throw new Error(`its format is ${String(format)}, expected ${FORMAT}`)
    }
    await visit(database)
    return database
  } catch (error) {
    await database.close()
    throw error
  }
}

async function ensureRoom({ paths, writer }: UsageDatabaseDeps): Promise<void> {
  const probe = path.join(paths.index, 'room')
  await writer.write(probe, Buffer.alloc(ROOM_BYTES))
  await removeFile(probe)
}
