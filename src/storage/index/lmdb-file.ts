// A look at an lmdb file before it is mapped into memory: reading beyond the end of a truncated map, or through
// pages of garbage, ends the whole process, and no `catch` helps. What passes can still be damaged in the middle;
// index-opening.ts has a second line of defence for that.
//
// The file begins with two meta pages, of which the one with the higher transaction number counts:
//   24 magic (4 bytes) · 48 page size (4) · 144 number of the last page used (8) · 152 transaction number (8)

import { open } from 'node:fs/promises'
import { isAbsent } from '../filesystem.ts'

const MAGIC = 0xbeefc0de
/** That of the machine which made the file. */
const PAGE_BYTES_ALLOWED: readonly number[] = [4096, 8192, 16_384, 32_768, 65_536]
const HEAD_BYTES = 2 * 65_536
/**
 * Pages at the end that may be missing: what a transaction took and gave up again it has never written, and nothing
 * leads there. One page was seen; what leads to a page that is missing is found when the index is read through.
 */
const UNWRITTEN_PAGES_MAX = 16n

/** Whether a file is absent, new, or whole as far as its first pages tell. */
export async function isLmdbFileSound(file: string): Promise<boolean> {
  const head = Buffer.alloc(HEAD_BYTES)
  let sizeBytes: number
  try {
    const handle = await open(file, 'r')
    try {
      sizeBytes = (await handle.stat()).size
      await handle.read(head, 0, head.length, 0)
    } finally {
      await handle.close()
    }
  } catch (error) {
    return isAbsent(error)
  }
  const pageBytes = head.readUInt32LE(48)
  if (!PAGE_BYTES_ALLOWED.includes(pageBytes)) return false
  const metas = [readMeta(head, 0), readMeta(head, pageBytes)]
  if (metas.some(({ magic }) => magic !== MAGIC)) return false
  const current = metas.reduce((a, b) => (b.transaction > a.transaction ? b : a))
  const pages = BigInt(sizeBytes) / BigInt(pageBytes)
  return current.lastPage + 1n <= pages + UNWRITTEN_PAGES_MAX
}

interface Meta {
  readonly magic: number
  readonly lastPage: bigint
  readonly transaction: bigint
}

function readMeta(head: Buffer, at: number): Meta {
  return {
    magic: head.readUInt32LE(at + 24),
    lastPage: head.readBigUInt64LE(at + 144),
    transaction: head.readBigUInt64LE(at + 152),
  }
}
