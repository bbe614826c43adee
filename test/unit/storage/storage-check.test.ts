import { mkdir, readdir, rm, writeFile } from 'node:fs/promises'
import path from 'node:path'
import { describe, expect, it } from 'vitest'
import { StoragePaths } from '../../../src/storage/paths.ts'
import { storageCheck } from '../../../src/storage/storage-check.ts'
import { makeTempDirectory } from '../../support/temp-directory.ts'
import { makeWriter } from '../../support/storage-thread.ts'

const makePaths = async (): Promise<StoragePaths> => new StoragePaths(await makeTempDirectory())

describe('the check of the storage', () => {
  it('passes on a disk that works, and leaves nothing on it', async () => {
    const paths = await makePaths()
    await storageCheck({ paths, writer: makeWriter(paths) }).run()
    expect(await readdir(paths.temporary)).toEqual([])
  })

  it('passes also when several run at once', async () => {
    const paths = await makePaths()
    await Promise.all(
      Array.from({ length: 20 }, () => storageCheck({ paths, writer: makeWriter(paths) }).run()),
    )
    expect(await readdir(paths.temporary)).toEqual([])
  })

  it('fails on a disk that takes nothing, and passes again when it does', async () => {
    const paths = await makePaths()
    await mkdir(path.dirname(paths.temporary))
    await writeFile(paths.temporary, 'not a directory')
    await expect(storageCheck({ paths, writer: makeWriter(paths) }).run()).rejects.toMatchObject({
      name: 'StorageError',
    })
    await rm(paths.temporary)
    await storageCheck({ paths, writer: makeWriter(paths) }).run()
  })

  it('leaves nothing behind either when a stop cuts it short', async () => {
    const paths = await makePaths()
    const writer = makeWriter(paths)
    writer.write = async (file, text) => {
      await writeFile(file, text)
      throw new Error('the storage thread is closed')
    }
    await expect(storageCheck({ paths, writer }).run()).rejects.toThrow('closed')
    expect(await readdir(paths.temporary)).toEqual([])
  })
})
