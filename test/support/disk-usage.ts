// What a directory takes on disk at one moment, as `du` counts.

import { lstatSync, readdirSync } from 'node:fs'
import { join } from 'node:path'

const STAT_BLOCK_BYTES = 512

/**
 * Allocated blocks of a directory and of all below it. Synchronous: nothing that this process has yet to begin
 * happens meanwhile; and a file that another thread is just moving counts once.
 *
 * @param onFile called with each path and what it takes
 */
export function diskUsage(
  directory: string,
  onFile: (path: string, bytes: number) => void = () => undefined,
): number {
  const seen = new Set<number>()
  let sum = 0
  const pending = [directory]
  for (let path = pending.pop(); path !== undefined; path = pending.pop()) {
    // What is removed meanwhile takes nothing.
    const stats = lstatSync(path, { throwIfNoEntry: false })
    if (!stats || seen.has(stats.ino)) continue
    seen.add(stats.ino)
    const bytes = stats.blocks * STAT_BLOCK_BYTES
    sum += bytes
    onFile(path, bytes)
    if (stats.isDirectory()) pending.push(...namesIn(path).map((name) => join(path, name)))
  }
  return sum
}

function namesIn(directory: string): string[] {
  try {
    return readdirSync(directory)
  } catch {
    return []
  }
}
