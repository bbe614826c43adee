// What the changes of the content index have in common: writes inside its transaction, and walks along what names
// what.

import type { Digest } from '../../oci/digest.ts'
import type { Table } from './index-database.ts'
import { digestKey, digestsIn, digestsValue } from './index-records.ts'

/** What one image can drag along; real ones have some hundred parts. */
export const GROUP_MAX = 5_000

/** Everything that can be reached, the start included; no more than a group may have. */
export function reach(
  start: Digest | Iterable<Digest>,
  next: (from: Digest) => Digest[],
): Set<Digest> {
  const reached = new Set(typeof start === 'string' ? [start] : start)
  // A set goes on with what is added to it meanwhile.
  for (const from of reached) {
    for (const digest of next(from)) if (reached.size < GROUP_MAX) reached.add(digest)
  }
  return reached
}

/** Removes one digest from the list that a table has under another. */
export function takeOut(table: Table, from: Digest, what: Digest): void {
  const key = digestKey(from)
  const known = digestsIn(table.get(key))
  const left = known.filter((digest) => digest !== what)
  if (left.length === known.length) return
  if (left.length > 0) put(table, key, digestsValue(left))
  else drop(table, key)
}

/** The transaction tells whether all of it succeeded. */
export function put(table: Table, key: Buffer, value: Buffer): void {
  table.put(key, value).catch(() => undefined)
}

export function drop(table: Table, key: Buffer): void {
  table.remove(key).catch(() => undefined)
}
