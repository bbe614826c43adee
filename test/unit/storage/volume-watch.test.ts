import { mkdir, rename, rm, symlink, unlink, writeFile } from 'node:fs/promises'
import path from 'node:path'
import { describe, expect, it, onTestFinished } from 'vitest'
import { StorageError } from '../../../src/storage/filesystem.ts'
import { StoragePaths } from '../../../src/storage/paths.ts'
import { VolumeWatch } from '../../../src/storage/volume-watch.ts'
import { makeTempDirectory } from '../../support/temp-directory.ts'

const SAME = { hasChanged: false, foreign: undefined }

async function startWatch() {
  const root = await makeTempDirectory()
  // As if it were mounted: another one can take its place.
  await mkdir(path.join(root, 'first'))
  await symlink('first', path.join(root, 'volume'))
  const paths = new StoragePaths(path.join(root, 'volume'))
  await fill(paths)
  const watch = new VolumeWatch({ paths })
  await watch.look()
  onTestFinished(() => watch.close())
  const mount = async (name: string): Promise<void> => {
    await mkdir(path.join(root, name), { recursive: true })
    await unlink(paths.root)
    await symlink(name, paths.root)
  }
  return { mount, own: path.dirname(paths.adminSocket), paths, watch }
}

async function fill(paths: StoragePaths): Promise<void> {
  await mkdir(paths.temporary, { recursive: true })
  // Whatever it is.
  await writeFile(paths.adminSocket, '')
}

describe('the watch of the volume', () => {
  it('sees nothing in content that comes, goes and moves', async () => {
    const { paths, watch } = await startWatch()
    expect(await watch.look()).toEqual(SAME)
    const directories = [path.join(paths.blobs, 'a'), path.join(paths.repositories, 'b')]
    for (const each of directories) await mkdir(each, { recursive: true })
    expect(await watch.look()).toEqual(SAME)
    for (const each of directories) await rm(each, { recursive: true })
    expect(await watch.look()).toEqual(SAME)
  })

  it('sees that everything was removed, once, though the same directories are made again', async () => {
    const { own, paths, watch } = await startWatch()
    for (const each of [paths.blobs, paths.repositories]) await mkdir(each, { recursive: true })
    await watch.look()
    for (const each of ['docker', 'layover']) {
      await rm(path.join(paths.root, each), { recursive: true })
    }
    await fill(paths)
    for (const each of [paths.blobs, paths.repositories]) await mkdir(each, { recursive: true })
    expect(await watch.look()).toEqual({ hasChanged: true, foreign: own })
    expect(await watch.look()).toEqual({ hasChanged: false, foreign: own })
  })

  it('sees that the volume has gone, that another one comes, and that the first one is back', async () => {
    const { mount, own, paths, watch } = await startWatch()
    await mkdir(paths.blobs, { recursive: true })
    await watch.look()
    await mount('nothing')
    expect(await watch.look()).toEqual({ hasChanged: true, foreign: own })
    await mount('second')
    await fill(paths)
    expect(await watch.look()).toEqual({ hasChanged: true, foreign: own })
    await mkdir(paths.blobs, { recursive: true })
    expect(await watch.look()).toEqual({ hasChanged: false, foreign: own })
    await mount('first')
    expect(await watch.look()).toEqual({ hasChanged: true, foreign: undefined })
    expect(await watch.look()).toEqual(SAME)
  })

  it.each(['blobs', 'repositories'] as const)('sees that all %s are gone', async (which) => {
    const { paths, watch } = await startWatch()
    const directory = paths[which]
    await mkdir(directory, { recursive: true })
    await watch.look()
    await rm(directory, { recursive: true })
    expect(await watch.look()).toEqual({ hasChanged: true, foreign: undefined })
    expect(await watch.look()).toEqual(SAME)
    await mkdir(directory)
    expect(await watch.look()).toEqual(SAME)
    await rm(directory, { recursive: true })
    await mkdir(directory)
    expect(await watch.look()).toEqual({ hasChanged: true, foreign: undefined })
  })

  it('sees that another process has taken the socket', async () => {
    const { paths, watch } = await startWatch()
    const other = path.join(paths.temporary, 'other.sock')
    await writeFile(other, '')
    await rename(other, paths.adminSocket)
    expect(await watch.look()).toEqual({ hasChanged: true, foreign: paths.adminSocket })
  })

  it('takes nothing for a change that goes after it was closed', async () => {
    const { own, paths, watch } = await startWatch()
    await mkdir(paths.blobs, { recursive: true })
    await watch.look()
    const looking = watch.look()
    await watch.close()
    await rm(own, { recursive: true })
    await looking
    expect(await watch.look()).toEqual(SAME)
  })

  it('does without a socket where there is none', async () => {
    const { paths } = await startWatch()
    await unlink(paths.adminSocket)
    const watch = new VolumeWatch({ paths })
    onTestFinished(() => watch.close())
    await watch.look()
    expect(await watch.look()).toEqual(SAME)
  })

  it('tells of a change after a look that failed', async () => {
    const { paths, watch } = await startWatch()
    for (const each of [paths.blobs, paths.repositories]) await mkdir(each, { recursive: true })
    await watch.look()
    await rm(paths.blobs, { recursive: true })
    await mkdir(paths.blobs)
    await rm(paths.repositories, { recursive: true })
    await symlink(paths.repositories, paths.repositories)
    await expect(watch.look()).rejects.toThrow(StorageError)
    await rm(paths.repositories)
    expect(await watch.look()).toEqual({ hasChanged: true, foreign: undefined })
    expect(await watch.look()).toEqual(SAME)
  })

  it('begins with the first look that succeeds', async () => {
    const paths = new StoragePaths(await makeTempDirectory())
    await mkdir(paths.temporary, { recursive: true })
    await symlink(paths.adminSocket, paths.adminSocket)
    const watch = new VolumeWatch({ paths })
    onTestFinished(() => watch.close())
    await expect(watch.look()).rejects.toThrow(StorageError)
    await rm(paths.adminSocket)
    await writeFile(paths.adminSocket, '')
    expect(await watch.look()).toEqual(SAME)
    await rm(paths.adminSocket)
    expect(await watch.look()).toEqual({ hasChanged: true, foreign: paths.adminSocket })
  })
})
