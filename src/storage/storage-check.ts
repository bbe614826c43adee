// `health.storagedriver`: whether the disk takes bytes and gives them back.

import { randomUUID } from 'node:crypto'
import { access, constants } from 'node:fs/promises'
import path from 'node:path'
import { StorageError, ensureDirectory, isAbsent, readSmallFile, removeFile } from './filesystem.ts'
import type { FileWriter } from './file-writer.ts'
import type { StoragePaths } from './paths.ts'

export interface StorageCheck {
  readonly name: string
  readonly isAdvisory: boolean
  run(): Promise<void>
}

export function storageCheck(deps: { paths: StoragePaths; writer: FileWriter }): StorageCheck {
  const { paths, writer } = deps
  return {
    name: 'storagedriver_filesystem',
    // A cache may fail to cache; it may not fail to serve.
    isAdvisory: true,
    async run() {
      // A volume that another user has written can be ours at the top and closed below.
      for (const directory of [paths.blobs, paths.repositories, paths.spool]) {
        await ensureWritable(directory)
      }
      const text = randomUUID()
      // A name of its own: another check may run at the same time, of this process or of another one.
      const file = path.join(paths.temporary, `health-${text}`)
      await ensureDirectory(paths.temporary)
      try {
        await writer.write(file, text)
        const read = await readSmallFile(file)
        if (read?.toString('utf8') !== text)
          throw new Error(`${file} does not give back what it was given`)
      } finally {
        // A write that was cut short may have left it.
        await removeFile(file)
      }
    },
  }
}

async function ensureWritable(directory: string): Promise<void> {
  try {
    await access(directory, constants.W_OK)
  } catch (error) {
    // It is made when the first content comes.
    if (!isAbsent(error)) throw new StorageError('write to', directory, error)
  }
}
