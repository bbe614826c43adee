import { existsSync } from 'node:fs'
import { mkdir, readdir, readFile, utimes, writeFile } from 'node:fs/promises'
import path from 'node:path'
import { describe, expect, it } from 'vitest'
import type { Digest } from '../../../../src/oci/digest.ts'
import type { StorageError } from '../../../../src/storage/filesystem.ts'
import { senderIdOf, StoragePaths } from '../../../../src/storage/paths.ts'
import { SpoolDirectory } from '../../../../src/storage/spool/spool-directory.ts'
import { FAKE_EPOCH_MS, FakeClock } from '../../../support/fake-clock.ts'
import { blobOf } from '../../../support/images.ts'
import { SENDER } from '../../../support/spool-rig.ts'
import { makeDigester, makeBlobStore } from '../../../support/storage-thread.ts'
import { makeTempDirectory, removeDirectory } from '../../../support/temp-directory.ts'

const KIB = 1024
const HOUR_MS = 3_600_000

async function makeSpools(root?: string) {
  const paths = new StoragePaths(root ?? (await makeTempDirectory()))
  const failures: StorageError[] = []
  const clock = new FakeClock()
  const spools = new SpoolDirectory({
    paths,
    clock,
    digester: makeDigester(),
    onStorageFailure: (error) => failures.push(error),
  })
  return {
    clock,
    failures,
    paths,
    spools,
    store: makeBlobStore(paths),
  }
}

/** Leaves a part file as an earlier process would have. */
async function leavePart(paths: StoragePaths, digest: Digest, bytes: Uint8Array, ageMs = 0) {
  const file = paths.spoolFile(digest, SENDER)
  await mkdir(paths.spool, { recursive: true })
  await writeFile(file, bytes)
  const modifiedAt = new Date(FAKE_EPOCH_MS - ageMs)
  await utimes(file, modifiedAt, modifiedAt)
}

describe('at start', () => {
  it('makes its directories', async () => {
    const { paths, spools } = await makeSpools()
    await spools.start()
    expect(existsSync(paths.spool)).toBe(true)
    expect(existsSync(paths.temporary)).toBe(true)
  })

  it('finds the downloads that were left unfinished', async () => {
    const { paths, spools } = await makeSpools()
    const [first, second] = [blobOf(200 * KIB, 1), blobOf(300 * KIB, 2, 'sha512')]
    await leavePart(paths, first.digest, first.bytes.subarray(0, 1234))
    await leavePart(paths, second.digest, second.bytes.subarray(0, 99))
    await spools.start()
    expect(spools.partBytes(first.digest)).toBe(1234)
    expect(spools.partBytes(second.digest)).toBe(99)
    expect(spools.partBytes(blobOf(10, 'other').digest)).toBe(0)
  })

  it('sweeps what is empty, oddly named or temporary', async () => {
    const { paths, spools } = await makeSpools()
    const empty = blobOf(10, 'empty').digest
    await leavePart(paths, empty, Buffer.alloc(0))
    await writeFile(path.join(paths.spool, 'sha256-abc.part'), 'too short a name')
    await writeFile(path.join(paths.spool, 'core.1234'), 'not ours')
    await mkdir(paths.temporary, { recursive: true })
    await writeFile(path.join(paths.temporary, 'half-a-link'), 'sha2')
    await spools.start()
    expect(spools.partBytes(empty)).toBe(0)
    expect(await readdir(paths.spool)).toEqual([])
    expect(await readdir(paths.temporary)).toEqual([])
  })

  it('is not stopped by directories where files should be', async () => {
    const { paths, spools } = await makeSpools()
    const { digest } = blobOf(10, 'directory')
    await mkdir(path.join(paths.spoolFile(digest, SENDER), 'inner'), { recursive: true })
    await mkdir(path.join(paths.spool, 'lost+found'))
    await mkdir(path.join(paths.temporary, 'directory', 'inner'), { recursive: true })
    await spools.start()
    expect(spools.partBytes(digest)).toBe(0)
    expect(await readdir(paths.spool)).toEqual([])
    expect(await readdir(paths.temporary)).toEqual([])
  })
})

describe('a part', () => {
  const other = senderIdOf('another upstream')

  it('is given to the upstream that has sent it, and to no other one', async () => {
    const { paths, spools } = await makeSpools()
    const { bytes, digest } = blobOf(400 * KIB, 'claimed')
    await leavePart(paths, digest, bytes.subarray(0, 1000))
    await spools.start()
    expect(spools.claim(digest, other)).toBe(0)
    expect(spools.parts()).toHaveLength(1)
    expect(spools.claim(digest, SENDER)).toBe(1000)
    expect(spools.parts()).toEqual([])
  })

  it('gives way to a download from another upstream, and is counted until then', async () => {
    const { paths, spools } = await makeSpools()
    const { bytes, digest } = blobOf(400 * KIB, 'replaced')
    await leavePart(paths, digest, Buffer.alloc(500 * KIB))
    await spools.start()
    expect(spools.partBytesTotal).toBe(500 * KIB)
    const options = { sender: other, sizeBytes: bytes.length, resumedBytes: 0, isKept: true }
    const spool = await spools.open(digest, options)
    expect(spools.partBytesTotal).toBe(0)
    await spool.append(bytes.subarray(0, 300 * KIB))
    spool.fail(new Error('the upstream went away'))
    await spool.release()
    await spools.giveBack(spool, { sender: other })
    expect([spools.claim(digest, SENDER), spools.claim(digest, other)]).toEqual([0, 300 * KIB])
    expect(await readdir(paths.spool)).toEqual([path.basename(paths.spoolFile(digest, other))])
  })

  it('is not kept when it is doubtful', async () => {
    const { paths, spools } = await makeSpools()
    await spools.start()
    const { bytes, digest } = blobOf(400 * KIB, 'doubtful')
    const options = { sender: SENDER, sizeBytes: bytes.length, resumedBytes: 0, isKept: true }
    const spool = await spools.open(digest, options)
    await spool.append(bytes.subarray(0, 300 * KIB))
    spool.fail(new Error('the upstream went away'))
    await spool.release()
    await spools.giveBack(spool, { sender: SENDER, isDoubtful: true })
    expect(spools.partBytes(digest)).toBe(0)
    expect(await readdir(paths.spool)).toEqual([])
  })
})

describe('a download', () => {
  it('that goes on keeps what was there, and stores the whole', async () => {
    const { paths, spools, store } = await makeSpools()
    const { bytes, digest } = blobOf(400 * KIB, 'resumed')
    await leavePart(paths, digest, bytes.subarray(0, 150_000))
    await spools.start()
    const resumedBytes = spools.partBytes(digest)
    const spool = await spools.open(digest, {
      sender: SENDER,
      sizeBytes: bytes.length,
      resumedBytes,
      isKept: true,
    })
    expect(spool.receivedBytes).toBe(150_000)
    expect(spools.partBytes(digest)).toBe(0)
    await spool.append(bytes.subarray(150_000))
    await spool.finish()
    await spool.commit(store)
    await spool.release()
    expect((await readFile(paths.blobData(digest))).equals(bytes)).toBe(true)
    expect(await readdir(paths.spool)).toEqual([])
  })

  it('that begins again loses what was there', async () => {
    const { paths, spools } = await makeSpools()
    const { bytes, digest } = blobOf(400 * KIB, 'again')
    await leavePart(paths, digest, Buffer.alloc(500 * KIB))
    await spools.start()
    const options = { sender: SENDER, sizeBytes: bytes.length, resumedBytes: 0, isKept: true }
    const spool = await spools.open(digest, options)
    await spool.append(bytes)
    await spool.finish()
    await spool.release()
    expect((await readFile(paths.spoolFile(digest, SENDER))).equals(bytes)).toBe(true)
  })

  it('that is not kept leaves the files of others alone', async () => {
    const { paths, spools } = await makeSpools()
    const { bytes, digest } = blobOf(400 * KIB, 'beside')
    await leavePart(paths, digest, bytes.subarray(0, 1000))
    await spools.start()
    const options = { sender: SENDER, sizeBytes: bytes.length, resumedBytes: 0, isKept: false }
    const spool = await spools.open(digest, options)
    expect(spool.isKept).toBe(false)
    await spool.append(bytes)
    await spool.finish()
    await spool.release()
    expect(spools.partBytes(digest)).toBe(1000)
    expect(await readdir(paths.spool)).toHaveLength(1)
  })

  it('that breaks is given back, and found by the next attempt and the next start', async () => {
    const { paths, spools } = await makeSpools()
    await spools.start()
    const { bytes, digest } = blobOf(700 * KIB, 'broken')
    const options = { sender: SENDER, sizeBytes: bytes.length, resumedBytes: 0, isKept: true }
    const spool = await spools.open(digest, options)
    await spool.append(bytes.subarray(0, 600 * KIB))
    spool.fail(new Error('the upstream went away'))
    await spool.release()
    await spools.giveBack(spool, { sender: SENDER })
    const partBytes = spools.partBytes(digest)
    expect(partBytes).toBe(600 * KIB)
    expect(
      (await readFile(paths.spoolFile(digest, SENDER))).equals(bytes.subarray(0, partBytes)),
    ).toBe(true)
    const next = await makeSpools(paths.root)
    await next.spools.start()
    expect(next.spools.partBytes(digest)).toBe(partBytes)
  })

  it('whose bytes were wrong is given back to nobody', async () => {
    const { paths, spools } = await makeSpools()
    await spools.start()
    const { digest } = blobOf(200 * KIB, 'right')
    const options = { sender: SENDER, sizeBytes: 200 * KIB, resumedBytes: 0, isKept: true }
    const spool = await spools.open(digest, options)
    await spool.append(blobOf(200 * KIB, 'wrong').bytes)
    await expect(spool.finish()).rejects.toThrow('hash to')
    await spool.release()
    await spools.giveBack(spool, { sender: SENDER })
    expect(spools.partBytes(digest)).toBe(0)
    expect(await readdir(paths.spool)).toEqual([])
  })

  it('that fitted memory leaves nothing to give back', async () => {
    const { paths, spools } = await makeSpools()
    await spools.start()
    const { bytes, digest } = blobOf(KIB, 'small')
    const options = { sender: SENDER, sizeBytes: bytes.length, resumedBytes: 0, isKept: true }
    const spool = await spools.open(digest, options)
    await spool.append(bytes.subarray(0, 10))
    spool.fail(new Error('the upstream went away'))
    await spool.release()
    await spools.giveBack(spool, { sender: SENDER })
    expect(spools.partBytes(digest)).toBe(0)
    expect(await readdir(paths.spool)).toEqual([])
  })
})

describe('purging', () => {
  it('removes parts that nobody asked for in a long time, and keeps the others', async () => {
    const { paths, spools } = await makeSpools()
    const [old, young] = [blobOf(KIB, 'old'), blobOf(KIB, 'young')]
    await leavePart(paths, old.digest, old.bytes.subarray(0, 10), 2 * HOUR_MS)
    await leavePart(paths, young.digest, young.bytes.subarray(0, 10), HOUR_MS - 1)
    await spools.start()
    expect(await spools.purge(HOUR_MS)).toBe(1)
    expect(spools.partBytes(old.digest)).toBe(0)
    expect(spools.partBytes(young.digest)).toBe(10)
    expect(await readdir(paths.spool)).toHaveLength(1)
  })

  it('goes by the clock', async () => {
    const { clock, paths, spools } = await makeSpools()
    const { bytes, digest } = blobOf(KIB, 'aging')
    await leavePart(paths, digest, bytes)
    await spools.start()
    expect(await spools.purge(HOUR_MS)).toBe(0)
    await clock.advance(HOUR_MS)
    expect(await spools.purge(HOUR_MS)).toBe(1)
  })

  it('removes parts also when somebody has removed the temporary directory', async () => {
    const { paths, spools } = await makeSpools()
    const { digest } = blobOf(10, 'left')
    await leavePart(paths, digest, Buffer.alloc(5))
    await spools.start()
    await removeDirectory(paths.temporary)
    expect(await spools.remove(digest)).toBe(5)
    expect(existsSync(paths.spoolFile(digest, SENDER))).toBe(false)
  })

  it('leaves a part alone that a download has taken over', async () => {
    const { paths, spools } = await makeSpools()
    const { bytes, digest } = blobOf(400 * KIB, 'taken')
    await leavePart(paths, digest, bytes.subarray(0, 1000), 2 * HOUR_MS)
    await spools.start()
    const purged = spools.purge(HOUR_MS)
    const options = { sender: SENDER, sizeBytes: bytes.length, resumedBytes: 1000, isKept: true }
    const spool = await spools.open(digest, options)
    expect(await purged).toBe(0)
    expect(await spools.purge(HOUR_MS)).toBe(0)
    expect(existsSync(paths.spoolFile(digest, SENDER))).toBe(true)
    await spool.release()
  })

  it('counts what is being removed until it is gone', async () => {
    const { paths, spools } = await makeSpools()
    const blob = blobOf(300 * KIB, 'removed')
    await leavePart(paths, blob.digest, blob.bytes)
    await spools.start()
    const removal = spools.remove(blob.digest)
    expect(spools.partBytesTotal).toBe(300 * KIB)
    expect(await removal).toBe(300 * KIB)
    expect(spools.partBytesTotal).toBe(0)
  })

  it('forgets parts that somebody else has removed', async () => {
    const { paths, spools } = await makeSpools()
    const { bytes, digest } = blobOf(KIB, 'vanished')
    await leavePart(paths, digest, bytes)
    await spools.start()
    await removeDirectory(paths.spool)
    await spools.purge(HOUR_MS)
    expect(spools.partBytes(digest)).toBe(0)
  })
})
