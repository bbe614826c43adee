// How much of the files that are mapped into memory is resident, and so counts as the process's own.

import { readFileSync } from 'node:fs'

/**
 * Of the program itself, and of the index of the content; on a tmpfs that counts as shared memory.
 *
 * @returns 0 where the system does not tell: only Linux does
 */
export function mappedBytes(): number {
  try {
    const status = readFileSync('/proc/self/status', 'latin1')
    const parts = status.matchAll(/^Rss(?:File|Shmem):\s+(\d+) kB$/gm)
    return [...parts].reduce((bytes, [, kib]) => bytes + Number(kib) * 1024, 0)
  } catch {
    return 0
  }
}
