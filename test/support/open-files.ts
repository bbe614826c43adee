// Which files this process has open, to find what was never closed.

import { readdirSync, readlinkSync } from 'node:fs'
import { realpath } from 'node:fs/promises'
import path from 'node:path'

/** Only Linux tells. */
export const canListOpenFiles = process.platform === 'linux'

/** @returns paths of the open files below `directory`; a removed one ends with ` (deleted)` */
export async function openFilesBelow(directory: string): Promise<string[]> {
  const root = (await realpath(directory)) + path.sep
  return readdirSync('/proc/self/fd')
    .flatMap((fd) => targetOf(fd) ?? [])
    .filter((target) => target.startsWith(root))
}

function targetOf(fd: string): string | undefined {
  try {
    return readlinkSync(`/proc/self/fd/${fd}`)
  } catch {
    // The descriptor with which the directory was listed is closed by now.
    return undefined
  }
}
