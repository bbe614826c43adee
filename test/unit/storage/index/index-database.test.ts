import { createHash } from 'node:crypto'
import path from 'node:path'
import { describe, expect, it } from 'vitest'
import { openTables } from '../../../../src/storage/index/index-database.ts'
import { makeTempDirectory } from '../../../support/temp-directory.ts'

describe('the database of the index', () => {
  // lmdb-js 3 (3.0.14 to 3.5.6) damages its list of free pages in this very order of events: the 149th transaction
  // fails, or ends the process, and so does every one after it, in later processes too.
  it('can be written to after any number of openings', async () => {
    const file = path.join(await makeTempDirectory(), 'content.mdb')
    const random = congruential(1)
    const key = (): Buffer =>
      createHash('sha256')
        .update(`k${Math.floor(random() * 300_000)}`)
        .digest()
    let database = openTables(file)
    for (let transaction = 1; transaction <= 200; transaction++) {
      const { root, blobs, links, names } = database
      const tables = [blobs, links, names] as const
      await root.childTransaction(() => {
        for (let change = 0; change < 100; change++) {
          for (const table of tables) {
            const at = key()
            const made = random() < 0.3 ? table.remove(at) : table.put(at, Buffer.alloc(20))
            made.catch(() => undefined)
          }
        }
      })
      if (transaction % 3 !== 0) continue
      await root.flushed
      await root.close()
      database = openTables(file)
    }
    expect(database.blobs.getKeysCount()).toBeGreaterThan(0)
    await database.root.close()
  })
})

/** The order of free pages depends on each key: the numbers are always the same. */
function congruential(seed: number): () => number {
  let state = seed
  return () => {
    state = (Math.imul(state, 1_664_525) + 1_013_904_223) >>> 0
    return state / 2 ** 32
  }
}
