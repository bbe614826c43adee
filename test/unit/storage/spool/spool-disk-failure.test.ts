import { existsSync } from 'node:fs'
import { mkdir, open, rm, writeFile, type FileHandle } from 'node:fs/promises'
import path from 'node:path'
import { afterEach, beforeEach, describe, expect, it, vi } from 'vitest'
import type { StoragePaths } from '../../../../src/storage/paths.ts'
import { BLOCK_BYTES } from '../../../../src/storage/spool/block-window.ts'
import { LagAllowance } from '../../../../src/storage/spool/lag-allowance.ts'
import type { Spool } from '../../../../src/storage/spool/spool.ts'
import { AbandonedError, ContentMismatchError } from '../../../../src/storage/spool/spool-error.ts'
import type { FakeClock } from '../../../support/fake-clock.ts'
import { blobOf, bytesOf } from '../../../support/images.ts'
import { canListOpenFiles, openFilesBelow } from '../../../support/open-files.ts'
import {
  expectSame,
  feed,
  isStillWaiting,
  join,
  openSpool,
  passOn,
  readRange,
  SENDER,
} from '../../../support/spool-rig.ts'
import { makeStalledDigester } from '../../../support/storage-thread.ts'
import { waitFor, within } from '../../../support/wait-for.ts'

const KIB = 1024
const MIB = 1024 * KIB
/** How far readers may be behind once the disk takes no more; with what is received but not passed on. */
const LAG_MAX_BYTES = 8 * MIB + 2 * BLOCK_BYTES

type Write = (
  this: FileHandle,
  buffer: Buffer,
  offset: number,
  length: number,
  position: number,
) => Promise<{ bytesWritten: number; buffer: Buffer }>

let handlePrototype: { write: Write }

beforeEach(async () => {
  const handle = await open('/dev/null', 'r')
  handlePrototype = Object.getPrototypeOf(handle) as { write: Write }
  await handle.close()
})

afterEach(() => {
  vi.restoreAllMocks()
})

/** A disk that is full from this position on; the last write before it is a short one. */
function fillDiskAt(endBytes: number): void {
  const { write } = handlePrototype
  const spy = vi.spyOn(handlePrototype, 'write')
  spy.mockImplementation(function (this: FileHandle, buffer, offset, length, position) {
    const room = endBytes - position
    if (room > 0) return write.call(this, buffer, offset, Math.min(length, room), position)
    return Promise.reject(Object.assign(new Error('no space left on device'), { code: 'ENOSPC' }))
  })
}

/** Waits until a download waits for its readers. */
async function stopped(
  spool: Spool,
  clock: FakeClock,
  fed: Promise<unknown>,
  leastBytes = 8 * MIB,
): Promise<void> {
  await waitFor('the download to stop', async () => {
    const before = spool.receivedBytes
    await clock.advance(10)
    return (await isStillWaiting(fed)) && spool.receivedBytes === before && before > leastBytes
  })
}

async function makeSpoolsAFile({ spool }: StoragePaths): Promise<void> {
  await rm(spool, { recursive: true })
  await writeFile(spool, '')
}

async function makeBlobsAFile(paths: StoragePaths): Promise<void> {
  await mkdir(path.dirname(paths.blobs), { recursive: true })
  await writeFile(paths.blobs, '')
}

describe('a disk that refuses the file', () => {
  const bytes = bytesOf(3 * MIB, 'refused')

  it('costs nobody a byte', async () => {
    const { failures, paths, spool } = await openSpool({ bytes, prepare: makeSpoolsAFile })
    expect(failures).toMatchObject([{ name: 'StorageError', operation: 'open' }])
    expect(spool.isKept).toBe(false)
    const readings = [0, MIB, bytes.length - 1].map(async (from) =>
      expectSame(await readRange(join(spool), { from, to: bytes.length }), bytes.subarray(from)),
    )
    await feed(spool, bytes)
    await spool.finish()
    await Promise.all(readings)
    await spool.release()
    expect(spool.isResumable).toBe(false)
    expect(failures).toHaveLength(1)
    expect(existsSync(paths.blobs)).toBe(false)
  })

  it('costs nobody the check', async () => {
    const { digest } = blobOf(3 * MIB, 'other')
    const { spool } = await openSpool({ bytes, digest, prepare: makeSpoolsAFile })
    const reading = expect(readRange(join(spool), { to: bytes.length })).rejects.toThrow(
      ContentMismatchError,
    )
    await feed(spool, bytes)
    await expect(spool.finish()).rejects.toThrow(ContentMismatchError)
    await reading
    await spool.release()
  })
})

describe('a disk that is full halfway', () => {
  const bytes = bytesOf(20 * MIB, 'halfway')

  it('does not let bytes pile up before a thread that hashes more slowly than they come', async () => {
    fillDiskAt(0)
    const { spool, clock } = await openSpool({ bytes, digester: makeStalledDigester() })
    const reading = readRange(join(spool), { to: bytes.length }).catch(() => undefined)
    const fed = feed(spool, bytes).catch(() => undefined)

    await waitFor('the download to stop', async () => {
      const before = spool.receivedBytes
      await clock.advance(10)
      return before > 0 && (await isStillWaiting(fed)) && spool.receivedBytes === before
    })

    // One block with the thread, one that waits for it, and what was received before the download stopped.
    expect(spool.receivedBytes).toBeLessThanOrEqual(4 * BLOCK_BYTES)
    spool.fail(new Error('the test is over'))
    await reading
    // Is over when the thread is.
    void spool.release()
  })

  it.each([0, 1, 100, BLOCK_BYTES, 3 * MIB + 5, bytes.length - 1])(
    'after %i bytes is reported once, and readers get everything, verified',
    async (endBytes) => {
      fillDiskAt(endBytes)
      const { failures, paths, spool } = await openSpool({ bytes })
      const readings = [0, 0, 1, 5 * MIB].map(async (from) =>
        expectSame(await readRange(join(spool), { from, to: bytes.length }), bytes.subarray(from)),
      )
      await feed(spool, bytes)
      await spool.finish()
      await Promise.all(readings)
      await spool.release()
      expect(failures).toMatchObject([{ operation: 'write', code: 'ENOSPC' }])
      expect(spool.isKept).toBe(false)
      expect(existsSync(paths.blobs)).toBe(false)
    },
  )

  it('still gives wrong bytes to nobody', async () => {
    fillDiskAt(2 * MIB)
    const { digest } = blobOf(20 * MIB, 'right')
    const { spool } = await openSpool({ bytes, digest })
    const reading = expect(readRange(join(spool), { to: bytes.length })).rejects.toThrow(
      ContentMismatchError,
    )
    await feed(spool, bytes)
    await expect(spool.finish()).rejects.toThrow(ContentMismatchError)
    await reading
    await spool.release()
    expect(spool.isResumable).toBe(false)
  })

  it('leaves each of many such downloads an equal part of the memory, and the whole again afterwards', async () => {
    const lag = new LagAllowance()
    const leave = Array.from({ length: 40 }, () => lag.join())
    fillDiskAt(MIB)
    const { clock, spool } = await openSpool({ bytes, lag })
    const slow = join(spool)
    const fed = feed(spool, bytes).then(() => spool.finish())
    await stopped(spool, clock, fed, 2 * MIB)
    expect(lag.bytes).toBeLessThan(2 * MIB)
    expect(spool.receivedBytes).toBeLessThanOrEqual(MIB + lag.bytes + 2 * BLOCK_BYTES)
    for (const end of leave) end()
    expectSame(await passOn(clock, readRange(slow, { to: bytes.length })), bytes)
    await fed
    slow.close()
    await spool.release()
    expect(lag.bytes).toBe(8 * MIB)
    for (let count = 0; count < 9; count++) lag.join()
    expect(lag.bytes).toBeLessThan(8 * MIB)
  })

  it('makes the download go at the pace of the slowest reader', async () => {
    fillDiskAt(MIB)
    const { clock, spool } = await openSpool({ bytes })
    const [fast, slow] = [join(spool), join(spool)]
    const fastRead = readRange(fast, { to: bytes.length })
    const scratch = Buffer.alloc(64 * KIB)
    const fed = feed(spool, bytes).then(() => spool.finish())
    await stopped(spool, clock, fed)
    expect(spool.receivedBytes).toBeLessThanOrEqual(MIB + LAG_MAX_BYTES)
    for (let position = 0; position < bytes.length;) {
      const part = await passOn(clock, slow.read(position, scratch))
      expectSame(part, bytes.subarray(position, position + part.length))
      position += part.length
      expect(spool.receivedBytes).toBeLessThanOrEqual(position + MIB + LAG_MAX_BYTES)
    }
    await fed
    expectSame(await fastRead, bytes)
    slow.close()
    await spool.release()
  })

  it('goes on when the slowest reader leaves', async () => {
    fillDiskAt(MIB)
    const { clock, spool } = await openSpool({ bytes })
    const slow = join(spool)
    const fastRead = readRange(join(spool), { to: bytes.length })
    const fed = feed(spool, bytes).then(() => spool.finish())
    await stopped(spool, clock, fed)
    slow.close()
    await within('the download', fed)
    expectSame(await fastRead, bytes)
    await spool.release()
  })

  it('ends the download when nobody reads it', async () => {
    fillDiskAt(MIB)
    const { spool } = await openSpool({ bytes })
    await expect(within('an end', feed(spool, bytes))).rejects.toThrow(AbandonedError)
    spool.fail(new Error('abandoned'))
    await spool.release()
  })

  it('ends the download when the last reader leaves', async () => {
    fillDiskAt(MIB)
    const { clock, spool } = await openSpool({ bytes })
    const reader = join(spool)
    const fed = feed(spool, bytes)
    const abandoned = expect(within('an end', fed)).rejects.toThrow(AbandonedError)
    await stopped(spool, clock, fed)
    reader.close()
    await abandoned
    spool.fail(new Error('abandoned'))
    await spool.release()
  })

  it('does not keep a writer waiting for a slow reader once the download has failed', async () => {
    fillDiskAt(MIB)
    const { clock, spool } = await openSpool({ bytes })
    const reader = join(spool)
    const fed = feed(spool, bytes.subarray(0, 10 * MIB))
    await stopped(spool, clock, fed)
    spool.fail(new Error('the cache is stopping'))
    await within('the writer', fed)
    reader.close()
    await spool.release()
  })

  it('lets nobody join who could not be served from the first byte', async () => {
    fillDiskAt(MIB)
    const { spool } = await openSpool({ bytes })
    const early = readRange(join(spool), { to: bytes.length })
    expect(spool.isJoinable).toBe(true)
    await feed(spool, bytes)
    expect(spool.isJoinable).toBe(false)
    expect(spool.reader()).toBeUndefined()
    await spool.finish()
    expectSame(await early, bytes)
    await spool.release()
  })

  it.runIf(canListOpenFiles)('leaves no file open', async () => {
    fillDiskAt(MIB)
    const { paths, spool } = await openSpool({ bytes })
    const reading = readRange(join(spool), { to: bytes.length })
    await feed(spool, bytes)
    await spool.finish()
    await reading
    await spool.release()
    const allClosed = async (): Promise<boolean> => (await openFilesBelow(paths.root)).length === 0
    await waitFor('the file to be closed', allClosed)
  })
})

describe('a download that is not to be kept', () => {
  const bytes = bytesOf(20 * MIB, 'unkept')

  it('is served from memory, whole and verified', async () => {
    const { failures, paths, spool } = await openSpool({ bytes, isKept: false })
    const readings = [0, 0, 7 * MIB].map(async (from) =>
      expectSame(await readRange(join(spool), { from, to: bytes.length }), bytes.subarray(from)),
    )
    await feed(spool, bytes)
    await spool.finish()
    await Promise.all(readings)
    await spool.release()
    expect(failures).toEqual([])
    expect(spool.isKept).toBe(false)
    expect(existsSync(paths.spoolFile(spool.digest, SENDER))).toBe(false)
  })

  it('is given up when nobody reads it', async () => {
    const { spool } = await openSpool({ bytes, isKept: false })
    await expect(within('an end', feed(spool, bytes))).rejects.toThrow(AbandonedError)
    spool.fail(new Error('abandoned'))
    await spool.release()
  })
})

describe('a disk that fails when the blob is to be stored', () => {
  it('is reported, and costs readers nothing', async () => {
    const bytes = bytesOf(2 * MIB, 'store')
    const { paths, spool, store } = await openSpool({ bytes })
    const late = join(spool)
    await feed(spool, bytes)
    await spool.finish()
    await makeBlobsAFile(paths)
    await expect(spool.commit(store)).rejects.toMatchObject({ name: 'StorageError' })
    expect(spool.isCommitted).toBe(false)
    await spool.release()
    expectSame(await readRange(late, { to: bytes.length }), bytes)
  })

  it('is reported for a small blob, too', async () => {
    const bytes = bytesOf(1000, 'small store')
    const { paths, spool, store } = await openSpool({ bytes })
    await feed(spool, bytes)
    await spool.finish()
    await makeBlobsAFile(paths)
    await expect(spool.commit(store)).rejects.toMatchObject({ name: 'StorageError' })
    await spool.release()
  })
})
