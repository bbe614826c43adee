// `health.storagedriver`: whether the disk takes bytes and gives them back, and whether it is still the same one.

import { randomUUID } from 'node:crypto'
import { access, constants } from 'node:fs/promises'
import path from 'node:path'
import type { Logger } from 'pino'
import { StorageError, ensureDirectory, isAbsent, readSmallFile, removeFile } from './filesystem.ts'
import type { FileWriter } from './file-writer.ts'
import type { StoragePaths } from './paths.ts'
import type { VolumeWatch } from './volume-watch.ts'

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

/**
 * Says it in the log when the volume is changed under this process, once; the check fails until the volume is back.
 *
 * @param deps.onChange called each time that something was removed or replaced, the volume's coming back included
 */
export function volumeCheck(deps: {
  logger: Logger
  watch: Pick<VolumeWatch, 'look'>
  onChange: (change: { isForeign: boolean }) => Promise<void>
}): StorageCheck {
  const { logger, onChange, watch } = deps
  let wasForeign = false
  return {
    name: 'storagedriver_volume',
    isAdvisory: true,
    async run() {
      const { foreign, hasChanged } = await watch.look()
      const isForeign = foreign !== undefined
      const message = `${foreign} is not what it was when this process started: it was removed, or another volume is in its place`
      if (isForeign && !wasForeign) {
        logger.error(
          `${message}; clients are served, and what they ask for is stored there, but restart the cache: until then ` +
            'it does not know what else is there, and nothing keeps a second process from it',
        )
      } else if (!isForeign && wasForeign) {
        logger.info('the volume is the one again that this process started with')
      } else if (hasChanged && !isForeign) {
        logger.warn('stored content was removed or replaced by somebody else; it is fetched again')
      }
      wasForeign = isForeign
      if (hasChanged) await onChange({ isForeign })
      if (isForeign) throw new Error(`${message}; restart the cache`)
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
