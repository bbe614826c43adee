// `health.storagedriver`: whether the disk takes bytes and gives them back.

import { randomUUID } from 'node:crypto'
import path from 'node:path'
import { ensureDirectory, readSmallFile, removeFile } from './filesystem.ts'
import type { FileWriter } from './file-writer.ts'
import type { StoragePaths } from './paths.ts'

export function storageCheck(deps: { paths: StoragePaths; writer: FileWriter }): {
  name: string
  run(): Promise<void>
} {
  const { paths, writer } = deps
  return {
    name: 'storagedriver_filesystem',
    async run() {
      const text = randomUUID()
      // A name of its own: another check may run at the same time, of this process or of another one.
      const file = path.join(paths.temporary, `health-${text}`)
      await ensureDirectory(paths.temporary)
      await writer.write(file, text)
      const read = await readSmallFile(file)
      await removeFile(file)
      if (read?.toString('utf8') !== text)
        throw new Error(`${file} does not give back what it was given`)
    },
  }
}
