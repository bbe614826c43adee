import { readdir, readFile } from 'node:fs/promises'
import { describe, expect, it, vi } from 'vitest'
import { digestOf } from '../../../../src/oci/digest.ts'
import { SMALL_BLOB_MAX_BYTES } from '../../../../src/storage/blob-store.ts'
import { BLOCK_BYTES } from '../../../../src/storage/spool/block-window.ts'
import { bytesOf } from '../../../support/images.ts'
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
import { waitFor, within } from '../../../support/wait-for.ts'

const KIB = 1024
const MIB = 1024 * KIB

describe('bytes are passed on', () => {
  it('at once when they are the first', async () => {
    const bytes = bytesOf(MIB, 'first')
    const { clock, spool } = await openSpool({ bytes })
    const read = join(spool).read(0, Buffer.alloc(KIB))
    void spool.append(bytes.subarray(0, 100))
    expectSame(await within('the first bytes', read), bytes.subarray(0, 100))
    expect(clock.monotonic()).toBe(0)
    await spool.release()
  })

  it('10 ms later when they are few', async () => {
    const bytes = bytesOf(MIB, 'few')
    const { clock, spool } = await openSpool({ bytes })
    const reader = join(spool)
    void spool.append(bytes.subarray(0, 100))
    await within('the first bytes', reader.read(0, Buffer.alloc(KIB)))
    void spool.append(bytes.subarray(100, 150))
    void spool.append(bytes.subarray(150, 200))
    const read = reader.read(100, Buffer.alloc(KIB))
    await waitFor('the timer', () => clock.pendingTimers === 1)
    expect(clock.nextTimerMs).toBe(10)
    await clock.advance(9)
    expect(await isStillWaiting(read)).toBe(true)
    await clock.advance(1)
    expectSame(await within('the next bytes', read), bytes.subarray(100, 200))
    await spool.release()
  })

  it('at once when 10 ms have passed since the last', async () => {
    const bytes = bytesOf(MIB, 'late')
    const { clock, spool } = await openSpool({ bytes })
    const reader = join(spool)
    void spool.append(bytes.subarray(0, 100))
    await within('the first bytes', reader.read(0, Buffer.alloc(KIB)))
    await clock.advance(10)
    void spool.append(bytes.subarray(100, 200))
    expectSame(
      await within('the next bytes', reader.read(100, Buffer.alloc(KIB))),
      bytes.subarray(100, 200),
    )
    expect(clock.pendingTimers).toBe(0)
    await spool.release()
  })

  it('at once when they make a block', async () => {
    const bytes = bytesOf(3 * MIB, 'block')
    const { clock, spool } = await openSpool({ bytes })
    const reader = join(spool)
    void spool.append(bytes.subarray(0, 100))
    await within('the first bytes', reader.read(0, Buffer.alloc(KIB)))
    const read = reader.read(100, Buffer.alloc(KIB))
    void spool.append(bytes.subarray(100, 100 + BLOCK_BYTES - 1))
    expect(await isStillWaiting(read)).toBe(true)
    void spool.append(bytes.subarray(99 + BLOCK_BYTES, 100 + BLOCK_BYTES))
    expectSame(await within('a block', read), bytes.subarray(100, 100 + KIB))
    expect(clock.monotonic()).toBe(0)
    await spool.release()
  })

  it('at once when they are the last', async () => {
    const bytes = bytesOf(200 * KIB, 'last')
    const { clock, spool } = await openSpool({ bytes })
    const reader = join(spool)
    void spool.append(bytes.subarray(0, 100))
    await within('the first bytes', reader.read(0, Buffer.alloc(KIB)))
    void spool.append(bytes.subarray(100))
    const read = reader.read(bytes.length - 2, Buffer.alloc(KIB))
    expectSame(await within('the last but one', read), bytes.subarray(-2, -1))
    expect(clock.pendingTimers).toBe(0)
    await spool.release()
  })

  it('to readers in memory as to those of a file', async () => {
    const bytes = bytesOf(100 * KIB, 'memory')
    const { clock, spool } = await openSpool({ bytes })
    const reader = join(spool)
    void spool.append(bytes.subarray(0, 100))
    await within('the first bytes', reader.read(0, Buffer.alloc(KIB)))
    void spool.append(bytes.subarray(100, 200))
    const read = reader.read(100, Buffer.alloc(KIB))
    expect(await isStillWaiting(read)).toBe(true)
    await clock.advance(10)
    expectSame(await within('the next bytes', read), bytes.subarray(100, 200))
    await spool.release()
  })
})

describe('the writer', () => {
  it('is asked to wait when it is more than a megabyte ahead of the disk', async () => {
    const bytes = bytesOf(4 * MIB, 'ahead')
    const { spool } = await openSpool({ bytes })
    expect(spool.append(bytes.subarray(0, MIB))).toBeUndefined()
    const written = spool.append(bytes.subarray(MIB, MIB + 1))
    expect(written).toBeInstanceOf(Promise)
    await written
    expect(spool.append(bytes.subarray(MIB + 1, MIB + 2))).toBeUndefined()
    await spool.release()
  })

  it('may hand in one chunk that is larger than everything', async () => {
    const bytes = bytesOf(6 * MIB, 'huge')
    const { spool } = await openSpool({ bytes })
    const reading = readRange(join(spool), { to: bytes.length })
    await spool.append(bytes)
    await spool.finish()
    expectSame(await reading, bytes)
    await spool.release()
  })

  it('may use its buffer again at once', async () => {
    const bytes = bytesOf(2 * MIB, 'reused')
    const { spool } = await openSpool({ bytes })
    const reading = readRange(join(spool), { to: bytes.length })
    const chunk = Buffer.alloc(64 * KIB)
    for (let start = 0; start < bytes.length; start += chunk.length) {
      bytes.copy(chunk, 0, start, start + chunk.length)
      const written = spool.append(chunk)
      chunk.fill(0)
      await written
    }
    await spool.finish()
    expectSame(await reading, bytes)
    await spool.release()
  })
})

describe('a small blob', () => {
  it('never touches the spool directory', async () => {
    const bytes = bytesOf(SMALL_BLOB_MAX_BYTES, 'small')
    const { paths, spool, store } = await openSpool({ bytes })
    const reading = readRange(join(spool), { to: bytes.length })
    await feed(spool, bytes, 1000)
    expect(await readdir(paths.spool)).toEqual([])
    await spool.finish()
    expectSame(spool.wholeInMemory(), bytes)
    expect(spool.isKept).toBe(true)
    await spool.commit(store)
    expect(spool.isCommitted).toBe(true)
    await spool.release()
    expectSame(await reading, bytes)
    expect(await readdir(paths.spool)).toEqual([])
    expectSame(await store.readWhole(spool.digest, bytes.length), bytes)
  })

  it('lets all that somebody waits for be written first', async () => {
    const bytes = bytesOf(100, 'small')
    const { spool, store } = await openSpool({ bytes })
    await feed(spool, bytes)
    await spool.finish()
    const put = vi.spyOn(store, 'put')
    await spool.commit(store)
    expect(put).toHaveBeenCalledWith(spool.digest, expect.anything(), [], { isPatient: true })
    await spool.release()
  })

  it('may be empty', async () => {
    const { spool, store } = await openSpool({ bytes: Buffer.alloc(0) })
    await spool.finish()
    await spool.commit(store)
    await spool.release()
    expect(await store.stat(spool.digest)).toMatchObject({ sizeBytes: 0 })
  })

  it('is the largest that is given whole', async () => {
    const bytes = bytesOf(SMALL_BLOB_MAX_BYTES + 1, 'larger')
    const { paths, spool } = await openSpool({ bytes })
    await feed(spool, bytes)
    await spool.finish()
    expect(spool.wholeInMemory()).toBeUndefined()
    expectSame(await readFile(paths.spoolFile(spool.digest, SENDER)), bytes)
    await spool.release()
  })
})

describe('a download that fails', () => {
  it('gives readers what there is, and then the reason', async () => {
    const bytes = bytesOf(3 * MIB, 'failing')
    const { clock, spool } = await openSpool({ bytes })
    const [ahead, behind] = [join(spool), join(spool)]
    await feed(spool, bytes.subarray(0, 2 * MIB))
    const waiting = expect(readRange(ahead, { to: bytes.length })).rejects.toThrow('upstream gone')
    await passOn(clock, join(spool).read(2 * MIB - 1, Buffer.alloc(1)))
    spool.fail(new Error('upstream gone'))
    spool.fail(new Error('a second reason'))
    await waiting
    const scratch = Buffer.alloc(10)
    expectSame(await behind.read(MIB, scratch), bytes.subarray(MIB, MIB + 10))
    await expect(behind.read(2 * MIB, scratch)).rejects.toThrow('upstream gone')
    expect(spool.reader()).toBeUndefined()
    expect(spool.isOver).toBe(true)
    behind.close()
    await spool.release()
    expect(spool.isResumable).toBe(true)
  })

  it('has no more use for its timer, nor for the disk', async () => {
    const bytes = bytesOf(2 * MIB, 'timer')
    const { clock, failures, spool } = await openSpool({ bytes })
    // The first bytes are being written when the next arrive, which then wait for their turn.
    void spool.append(bytes.subarray(0, 100))
    void spool.append(bytes.subarray(100, 200))
    spool.fail(new Error('upstream gone'))
    await spool.release()
    expect(clock.pendingTimers).toBe(0)
    await clock.advance(1000)
    expect(failures).toEqual([])
  })

  it('cannot be finished any more', async () => {
    const bytes = bytesOf(2 * MIB, 'finished')
    const { spool } = await openSpool({ bytes })
    await feed(spool, bytes)
    spool.fail(new Error('upstream gone'))
    await expect(within('an answer', spool.finish())).rejects.toThrow()
    await spool.release()
  })

  it('while it is being verified ends the verification', async () => {
    const bytes = bytesOf(2 * MIB, 'verified')
    const { spool } = await openSpool({ bytes })
    const reading = expect(readRange(join(spool), { to: bytes.length })).rejects.toThrow('gone')
    await feed(spool, bytes)
    const finished = expect(within('an answer', spool.finish())).rejects.toThrow()
    spool.fail(new Error('gone'))
    await finished
    await reading
    await spool.release()
  })
})

const closed = (root: string): Promise<unknown> =>
  waitFor('the file to be closed', async () => (await openFilesBelow(root)).length === 0)

describe.runIf(canListOpenFiles)('the file', () => {
  it('is closed when the writer is done and nobody reads', async () => {
    const bytes = bytesOf(MIB, 'closed')
    const { paths, spool, store } = await openSpool({ bytes })
    await feed(spool, bytes)
    await spool.finish()
    await spool.commit(store)
    await spool.release()
    await closed(paths.root)
    await spool.release()
  })

  it('is closed after the last reader, and not before', async () => {
    const bytes = bytesOf(4 * MIB, 'readers')
    const { paths, spool } = await openSpool({ bytes })
    const readers = [join(spool), join(spool)]
    await feed(spool, bytes)
    await spool.finish()
    await spool.release()
    for (const reader of readers) {
      expect(spool.isJoinable).toBe(true)
      expect((await openFilesBelow(paths.root)).length).toBeGreaterThan(0)
      expectSame(await readRange(reader, { to: bytes.length }), bytes)
    }
    await closed(paths.root)
  })

  it('stays open for the read that runs when its reader leaves', async () => {
    const bytes = bytesOf(4 * MIB, 'running')
    const { paths, spool } = await openSpool({ bytes })
    const reader = join(spool)
    await feed(spool, bytes)
    await spool.finish()
    await spool.release()
    const read = reader.read(0, Buffer.alloc(MIB))
    reader.close()
    const part = await read
    expectSame(part, bytes.subarray(0, part.length))
    await closed(paths.root)
  })

  it('is closed also when the download fails, and when readers fail with it', async () => {
    const bytes = bytesOf(MIB, 'failed')
    const { paths, spool } = await openSpool({ bytes })
    const reading = expect(readRange(join(spool), { to: bytes.length })).rejects.toThrow('gone')
    await feed(spool, bytes.subarray(0, 600 * KIB))
    spool.fail(new Error('gone'))
    await reading
    await spool.release()
    await closed(paths.root)
  })

  it('is closed when wrong bytes arrived', async () => {
    const bytes = bytesOf(MIB, 'wrong')
    const { paths, spool } = await openSpool({ bytes, digest: digestOf(Buffer.from('right')) })
    await feed(spool, bytes)
    await expect(spool.finish()).rejects.toThrow('hash to')
    await spool.release()
    await closed(paths.root)
  })
})
