import { existsSync } from 'node:fs'
import { writeFile } from 'node:fs/promises'
import { describe, expect, it } from 'vitest'
import type { Digest } from '../../../../src/oci/digest.ts'
import { SMALL_BLOB_MAX_BYTES } from '../../../../src/storage/blob-store.ts'
import type { StoragePaths } from '../../../../src/storage/paths.ts'
import { BLOCK_BYTES } from '../../../../src/storage/spool/block-window.ts'
import { ContentMismatchError } from '../../../../src/storage/spool/spool-error.ts'
import { bytesOf, blobOf } from '../../../support/images.ts'
import {
  expectSame,
  feed,
  isStillWaiting,
  join,
  openSpool,
  readRange,
  SENDER,
} from '../../../support/spool-rig.ts'
import { waitFor, within } from '../../../support/wait-for.ts'

const KIB = 1024
const MIB = 1024 * KIB

describe('readers', () => {
  it('get the same bytes, whatever their offset, whenever they join', async () => {
    const bytes = bytesOf(5 * MIB, 'herd')
    const { spool } = await openSpool({ bytes })
    const to = bytes.length
    const early = [0, 1, 4096, BLOCK_BYTES, 3 * MIB + 7, to - 1].map(async (from) =>
      expectSame(await readRange(join(spool), { from, to }), bytes.subarray(from)),
    )
    await feed(spool, bytes.subarray(0, 4 * MIB))
    const late = [0, 2 * MIB, to - 1].map(async (from) =>
      expectSame(
        await readRange(join(spool), { from, to, scratchBytes: 1000 }),
        bytes.subarray(from),
      ),
    )
    await feed(spool, bytes.subarray(4 * MIB))
    await spool.finish()
    expectSame(await readRange(join(spool), { to }), bytes)
    await Promise.all([...early, ...late])
    await spool.release()
  })

  it('that are slow hold up neither the download nor the others', async () => {
    const bytes = bytesOf(12 * MIB, 'slow')
    const { spool } = await openSpool({ bytes })
    const slow = join(spool)
    const first = slow.read(0, Buffer.alloc(10))
    await feed(spool, bytes)
    await spool.finish()
    expectSame(await readRange(join(spool), { to: bytes.length }), bytes)
    await spool.release()
    expectSame(await first, bytes.subarray(0, 10))
    expectSame(await readRange(slow, { to: bytes.length }), bytes)
  })

  it('may leave at any moment, also while they wait', async () => {
    const bytes = bytesOf(2 * MIB, 'leaving')
    const { spool } = await openSpool({ bytes })
    const waiting = join(spool)
    const read = waiting.read(0, Buffer.alloc(10))
    waiting.close()
    await expect(within('the reader to end', read)).rejects.toThrow('closed')
    await expect(waiting.read(0, Buffer.alloc(10))).rejects.toThrow('closed')
    waiting.close()
    const staying = readRange(join(spool), { to: bytes.length })
    await feed(spool, bytes)
    await spool.finish()
    expectSame(await staying, bytes)
    await spool.release()
  })

  it('may ask for the same bytes again', async () => {
    const bytes = bytesOf(3 * MIB, 'again')
    const { spool } = await openSpool({ bytes })
    const reader = join(spool)
    await feed(spool, bytes)
    await spool.finish()
    for (const position of [2 * MIB, 0, 2 * MIB, 17]) {
      const part = await reader.read(position, Buffer.alloc(KIB))
      expectSame(part, bytes.subarray(position, position + part.length))
    }
    reader.close()
    await spool.release()
  })

  it('never see more than they have room for', async () => {
    const bytes = bytesOf(MIB, 'room')
    const { spool } = await openSpool({ bytes })
    await feed(spool, bytes)
    await spool.finish()
    const reader = join(spool)
    expect(await reader.read(0, Buffer.alloc(1))).toHaveLength(1)
    expect(await reader.read(MIB - 1, Buffer.alloc(KIB))).toHaveLength(1)
    reader.close()
    await spool.release()
  })

  it('can join until the spool is closed, and go on reading after it was stored', async () => {
    const bytes = bytesOf(3 * MIB, 'stored')
    const { paths, spool, store } = await openSpool({ bytes })
    const early = join(spool)
    await feed(spool, bytes)
    await spool.finish()
    await spool.commit(store)
    await spool.release()
    expectSame(await readRange(join(spool), { to: bytes.length }), bytes)
    expect(await store.remove(spool.digest)).toBe(true)
    expectSame(await readRange(early, { to: bytes.length }), bytes)
    await waitFor('the spool to close', () => !spool.isJoinable)
    expect(spool.reader()).toBeUndefined()
    expect(existsSync(paths.spoolFile(spool.digest, SENDER))).toBe(false)
  })
})

describe('the last byte', () => {
  it('is held back until the whole is verified', async () => {
    const bytes = bytesOf(2 * MIB, 'held')
    const { spool } = await openSpool({ bytes })
    const all = readRange(join(spool), { to: bytes.length })
    const butOne = readRange(join(spool), { to: bytes.length - 1 })
    await feed(spool, bytes)
    expectSame(await butOne, bytes.subarray(0, -1))
    expect(await isStillWaiting(all)).toBe(true)
    await spool.finish()
    expectSame(await all, bytes)
    await spool.release()
  })

  it.each([1, 2, 1000, SMALL_BLOB_MAX_BYTES, SMALL_BLOB_MAX_BYTES + 1])(
    'of a blob of %i bytes, too',
    async (sizeBytes) => {
      const bytes = bytesOf(sizeBytes, 'sizes')
      const { spool } = await openSpool({ bytes })
      const last = join(spool).read(sizeBytes - 1, Buffer.alloc(10))
      await feed(spool, bytes)
      expect(await isStillWaiting(last)).toBe(true)
      await spool.finish()
      expectSame(await last, bytes.subarray(-1))
      await spool.release()
    },
  )

  it.each([1000, 2 * MIB])('of %i wrong bytes is given to nobody', async (sizeBytes) => {
    const bytes = bytesOf(sizeBytes, 'wrong')
    const { digest } = blobOf(sizeBytes, 'right')
    const { paths, spool } = await openSpool({ bytes, digest })
    const readers = [0, sizeBytes - 2, sizeBytes - 1].map((from) => ({ from, source: join(spool) }))
    const results = readers.map(async ({ from, source }) =>
      expect(readRange(source, { from, to: sizeBytes })).rejects.toThrow(ContentMismatchError),
    )
    await feed(spool, bytes)
    await expect(spool.finish()).rejects.toThrow(ContentMismatchError)
    await Promise.all(results)
    expect(spool.isResumable).toBe(false)
    expect(spool.reader()).toBeUndefined()
    await spool.release()
    expect(existsSync(paths.blobs)).toBe(false)
  })
})

describe('a download of the wrong length', () => {
  it('fails at the first byte too many', async () => {
    const bytes = bytesOf(MIB, 'long')
    const { spool } = await openSpool({ bytes, sizeBytes: MIB - 1 })
    const reading = expect(readRange(join(spool), { to: MIB - 1 })).rejects.toThrow(
      ContentMismatchError,
    )
    await spool.append(bytes.subarray(0, MIB - 1))
    expect(() => spool.append(bytes.subarray(MIB - 1))).toThrow(ContentMismatchError)
    await reading
    await spool.release()
  })

  it('fails when it is finished too early, although the digest is right', async () => {
    const bytes = bytesOf(MIB, 'short')
    const { spool } = await openSpool({ bytes, sizeBytes: MIB + 1 })
    const reading = expect(readRange(join(spool), { to: MIB + 1 })).rejects.toThrow(
      ContentMismatchError,
    )
    await feed(spool, bytes)
    await expect(spool.finish()).rejects.toThrow(ContentMismatchError)
    await reading
    await spool.release()
  })
})

describe('a download that was not announced', () => {
  it.each([0, 1, 1000, 3 * MIB])('of %i bytes has its size at the end', async (sizeBytes) => {
    const bytes = bytesOf(sizeBytes, 'unknown')
    const { spool, store } = await openSpool({ bytes, sizeBytes: undefined })
    expect(spool.sizeBytes).toBeUndefined()
    const reading = readRange(join(spool), { to: sizeBytes })
    await feed(spool, bytes)
    expect(sizeBytes > 0 && !(await isStillWaiting(reading))).toBe(false)
    await spool.finish()
    expect(spool.sizeBytes).toBe(sizeBytes)
    expectSame(await reading, bytes)
    await spool.commit(store)
    await spool.release()
    expectSame(await store.readWhole(spool.digest, sizeBytes), bytes)
  })
})

describe('a resumed download', () => {
  const bytes = bytesOf(3 * MIB, 'resumed')
  const part = bytes.subarray(0, MIB + 333)

  const prepare = (paths: StoragePaths, digest: Digest): Promise<void> =>
    writeFile(paths.spoolFile(digest, SENDER), part)

  it('serves what was there at once, and verifies it with the rest', async () => {
    const { spool, store } = await openSpool({ bytes, prepare, resumedBytes: part.length })
    expect(spool.receivedBytes).toBe(part.length)
    expectSame(await readRange(join(spool), { to: part.length }), part)
    const all = readRange(join(spool), { to: bytes.length })
    await feed(spool, bytes.subarray(part.length))
    await spool.finish()
    expectSame(await all, bytes)
    await spool.commit(store)
    await spool.release()
    expectSame(await store.readWhole(spool.digest, bytes.length), bytes)
  })

  it('may have been complete but for the check', async () => {
    const whole = (paths: StoragePaths, digest: Digest): Promise<void> =>
      writeFile(paths.spoolFile(digest, SENDER), bytes)
    const { spool } = await openSpool({ bytes, prepare: whole, resumedBytes: bytes.length })
    const all = readRange(join(spool), { to: bytes.length })
    expect(await isStillWaiting(all)).toBe(true)
    await spool.finish()
    expectSame(await all, bytes)
    await spool.release()
  })

  it('of wrong bytes fails like any other', async () => {
    const wrong = (paths: StoragePaths, digest: Digest): Promise<void> =>
      writeFile(paths.spoolFile(digest, SENDER), Buffer.alloc(part.length))
    const { spool } = await openSpool({ bytes, prepare: wrong, resumedBytes: part.length })
    const all = expect(readRange(join(spool), { to: bytes.length })).rejects.toThrow(
      ContentMismatchError,
    )
    await feed(spool, bytes.subarray(part.length))
    await expect(spool.finish()).rejects.toThrow(ContentMismatchError)
    await all
    await spool.release()
    expect(spool.isResumable).toBe(false)
  })
})
