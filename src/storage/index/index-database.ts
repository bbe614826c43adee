// The database behind the content index: its tables, and how they are opened. Changes nothing but what lmdb does.

import path from 'node:path'
import { open, type Database, type RootDatabase } from 'lmdb'
import type { StoragePaths } from '../paths.ts'

export type Table = Database<Buffer, Buffer>

export interface IndexTables {
  readonly blobs: Table
  readonly order: Table
  readonly links: Table
  readonly names: Table
  readonly named: Table
  readonly tags: Table
  readonly repositories: Table
}

export interface IndexDatabase extends IndexTables {
  readonly root: RootDatabase<unknown, string>
  readonly meta: Database<unknown, string>
}

export const TABLES = [
  'blobs',
  'order',
  'links',
  'names',
  'named',
  'tags',
  'repositories',
] as const satisfies readonly (keyof IndexTables)[]

/** Another meaning of the stored bytes gets another number, and old ones are rebuilt. */
export const FORMAT = 4
/** Keys of `meta`. */
export const FORMAT_KEY = 'format'
/** Says that the whole tree was seen once: what is not in the index came later. */
export const SEEN_KEY = 'seen'
export const TOTALS_KEY = 'totals'
export const SCRUB_KEY = 'scrub'

/** Of the file, and what the names of others that belong to it begin with. */
export const INDEX_FILE = 'content.mdb'
/** An address range, not memory: without it lmdb maps the file anew as it grows, and keeps the old maps. */
const MAP_BYTES = 64 * 1024 ** 3
/** With room to spare. */
const DATABASES_MAX = 16

export function indexFile(paths: StoragePaths): string {
  return path.join(paths.index, INDEX_FILE)
}

/** Makes the file if there is none. @throws what lmdb says, or that the file is of another format */
export function openTables(file: string): IndexDatabase {
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
    // At once: nothing was written.
    root.close().catch(() => undefined)
    throw error
  }
}
