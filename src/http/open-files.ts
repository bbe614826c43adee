// How many files and connections the system lets this process have open.

import { readFileSync } from 'node:fs'

/** @returns undefined where the system does not tell, or has no limit */
export function openFilesMax(limitsFile = '/proc/self/limits'): number | undefined {
  try {
    const soft = /^Max open files\s+(\d+)\s/m.exec(readFileSync(limitsFile, 'utf8'))?.[1]
    return soft === undefined ? undefined : Number(soft)
  } catch {
    // Only Linux has it.
    return undefined
  }
}
