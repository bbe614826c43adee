// `health.storagedriver`: whether the disk takes bytes and gives them back.

import { randomUUID } from 'node:crypto'
import path from 'node:path'
import { ensureDirectory, readSmallFile, removeFile, writeAtomically } from './filesystem.ts'
import type { StoragePaths } from './paths.ts'

export function storageCheck(paths: StoragePaths): { name: string; run(): Promise<void> } {
  return {
    name: 'storagedriver_filesystem',
    async run() {
      const text = randomUUID()
      // A name of its own: another check may run at the same time, of this process or of another one.
      const file = path.join(paths.temporary, `health-${text}`)
      await ensureDirectory(paths.temporary)
      await writeAtomically(paths.temporary, file, text)
      const read = await readSmallFile(file)
      await removeFile(file)
      if (read?.toString('utf8') !== text)
        throw new Error(`${file} does not give back what it was given`)
    },
  }
}
