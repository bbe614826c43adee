import { mkdir, readdir, stat, truncate, writeFile } from 'node:fs/promises'
import path from 'node:path'
import { describe, expect, it } from 'vitest'
import { allocatedBytes, OwnBytes, allocatedBytesIn } from '../../../src/storage/disk-space.ts'
import { StoragePaths } from '../../../src/storage/paths.ts'
import { Quarantine } from '../../../src/storage/quarantine.ts'
import { FakeClock } from '../../support/fake-clock.ts'
import { makeTempDirectory } from '../../support/temp-directory.ts'
import { diskUsage } from '../../support/disk-usage.ts'
import { waitFor } from '../../support/wait-for.ts'

const DAY_MS = 24 * 3_600_000
const MIB = 1024 ** 2

async function makeQuarantine() {
  const paths = new StoragePaths(await makeTempDirectory())
  // Files are as old as the system's clock says.
  const clock = new FakeClock(Date.now())
  return { clock, paths, quarantine: new Quarantine({ clock, paths }) }
}

/** A file of this size that takes nothing on disk; younger than those before it. */
async function setAside({ quarantine }: StoragePaths, name: string, sizeBytes: number) {
  await mkdir(quarantine, { recursive: true })
  const file = path.join(quarantine, name)
  const before = Date.now()
  await waitFor('the clock to go on', () => Date.now() > before + 4)
  await writeFile(file, '')
  await truncate(file, sizeBytes)
}

describe('the quarantine', () => {
  it('keeps what was set aside for a week', async () => {
    const { clock, paths, quarantine } = await makeQuarantine()
    await setAside(paths, 'wrong', 10)
    await clock.advance(7 * DAY_MS - 60_000)
    await quarantine.purge()
    expect(await readdir(paths.quarantine)).toEqual(['wrong'])
    await clock.advance(120_000)
    await quarantine.purge()
    expect(await readdir(paths.quarantine)).toEqual([])
  })

  it('keeps the newest of what is more than a gibibyte', async () => {
    const { paths, quarantine } = await makeQuarantine()
    for (const name of ['old', 'middle', 'new']) await setAside(paths, name, 500 * MIB)
    await quarantine.purge()
    expect((await readdir(paths.quarantine)).sort()).toEqual(['middle', 'new'])
  })

  it('does not keep a file that is too large by itself, but older ones', async () => {
    const { paths, quarantine } = await makeQuarantine()
    await setAside(paths, 'small', 10)
    await setAside(paths, 'huge', 1025 * MIB)
    await quarantine.purge()
    expect(await readdir(paths.quarantine)).toEqual(['small'])
  })

  it('may be given less room than that', async () => {
    const { paths, quarantine } = await makeQuarantine()
    for (const name of ['old', 'new']) await setAside(paths, name, 10)
    await quarantine.purge(19)
    expect(await readdir(paths.quarantine)).toEqual(['new'])
  })

  it('may be missing', async () => {
    const { quarantine } = await makeQuarantine()
    await expect(quarantine.purge()).resolves.toBeUndefined()
  })
})

describe('what the cache takes beside its content', () => {
  it('is its index, its quarantine and its directories, by allocated blocks', async () => {
    const { paths } = await makeQuarantine()
    let indexBytes = 0
    const own = new OwnBytes({ paths, indexBytes: () => indexBytes })
    expect(own.bytes).toBe(0)
    await own.measure()
    expect(own.bytes).toBe(diskUsage(paths.root))
    await mkdir(paths.index, { recursive: true })
    const files = [path.join(paths.index, 'content.mdb'), path.join(paths.quarantine, 'wrong')]
    await mkdir(paths.quarantine, { recursive: true })
    for (const file of files) await writeFile(file, Buffer.alloc(5000))
    await setAside(paths, 'sparse', 100 * MIB)
    for (const place of [paths.blobs, paths.repositories, paths.spool, paths.temporary]) {
      await mkdir(place, { recursive: true })
    }
    await writeFile(paths.schedulerState, '{}')
    indexBytes = await allocatedBytesIn(paths.index)
    await own.measure()
    expect(own.bytes).toBe(diskUsage(paths.root))
    const allocated = await Promise.all(files.map(async (file) => allocatedBytes(await stat(file))))
    expect(own.bytes).toBeGreaterThan(allocated.reduce((sum, one) => sum + one, 0))
  })
})
