import { existsSync } from 'node:fs'
import { mkdir, open, rm, truncate, utimes, writeFile } from 'node:fs/promises'
import { describe, expect, it, onTestFinished, vi } from 'vitest'
import type { BlobFile } from '../../../src/storage/blob-file.ts'
import type { BlobStore } from '../../../src/storage/blob-store.ts'
import type { ByteSource } from '../../../src/storage/byte-source.ts'
import type { StorageError } from '../../../src/storage/filesystem.ts'
import { StoragePaths } from '../../../src/storage/paths.ts'
import { ContentMismatchError } from '../../../src/storage/spool/spool-error.ts'
import { TRUSTED_MS, UNREADABLE_MS, VerifiedBlobs } from '../../../src/storage/verified-blobs.ts'
import { FakeClock } from '../../support/fake-clock.ts'
import { blobOf, type TestBlob } from '../../support/images.ts'
import { expectSame, readRange } from '../../support/spool-rig.ts'
import { makeBlobStore } from '../../support/storage-thread.ts'
import { makeTempDirectory } from '../../support/temp-directory.ts'

const MIB = 1024 * 1024

interface Rig {
  readonly blob: TestBlob
  readonly clock: FakeClock
  readonly paths: StoragePaths
  readonly store: BlobStore
  readonly verified: VerifiedBlobs
  /** How far each run was told to hash, the last position of each. */
  readonly hashedBytes: number[]
  readonly wrong: string[]
  readonly unreadable: StorageError[]
  /** Opens the blob for an answer; closed with the test, if not before. */
  open(options?: { isWhole?: boolean }): Promise<{ file: BlobFile; reader: ByteSource }>
  /** Reads all of it. */
  readAll(): Promise<Buffer>
}

/** A blob on disk, as an earlier process has left it. */
async function setUp(sizeBytes = 2 * MIB): Promise<Rig> {
  const blob = blobOf(sizeBytes, 'verified')
  const paths = new StoragePaths(await makeTempDirectory())
  await mkdir(paths.temporary, { recursive: true })
  const store = makeBlobStore(paths)
  await store.put(blob.digest, blob.bytes)
  const hashedBytes: number[] = []
  const hash = store.hash.bind(store)
  vi.spyOn(store, 'hash').mockImplementation((digest) => {
    const run = hash(digest)
    const at = hashedBytes.push(0) - 1
    const advance = (availableBytes: number): void => {
      hashedBytes[at] = availableBytes
      run.advance(availableBytes)
    }
    return { ...run, advance }
  })
  const clock = new FakeClock()
  const wrong: string[] = []
  const unreadable: StorageError[] = []
  const verified = new VerifiedBlobs({
    clock,
    blobs: store,
    onWrong: async (digest, file) => {
      wrong.push(digest)
      await store.quarantine(digest, file)
    },
    onUnreadable: (_digest, error) => void unreadable.push(error),
  })
  const openForAnswer: Rig['open'] = async ({ isWhole = true } = {}) => {
    const file = await store.open(blob.digest)
    if (!file) throw new Error('the blob is not stored')
    const reader = verified.reader(blob.digest, file, { isWhole })
    onTestFinished(() => reader.close())
    return { file, reader }
  }
  return {
    blob,
    clock,
    paths,
    store,
    verified,
    hashedBytes,
    wrong,
    unreadable,
    open: openForAnswer,
    readAll: async () => readRange((await openForAnswer()).reader, { to: sizeBytes }),
  }
}

/** Changes one byte in place. */
async function flip({ blob, paths }: Rig, position: number): Promise<void> {
  const handle = await open(paths.blobData(blob.digest), 'r+')
  await handle.write(Buffer.of((blob.bytes[position] ?? 0) ^ 1), 0, 1, position)
  await handle.close()
}

/** Reads as far as it gets. @returns how far, and why it ended */
async function readUntilError(
  reader: ByteSource,
  sizeBytes: number,
): Promise<{ readBytes: number; error: unknown }> {
  const scratch = Buffer.alloc(64 * 1024)
  let readBytes = 0
  try {
    while (readBytes < sizeBytes) {
      const wanted = scratch.subarray(0, sizeBytes - readBytes)
      readBytes += (await reader.read(readBytes, wanted)).length
    }
    return { readBytes, error: undefined }
  } catch (error) {
    return { readBytes, error }
  } finally {
    reader.close()
  }
}

describe('a stored blob that is right', () => {
  it('is hashed the first time that it is read whole, and no more', async () => {
    const rig = await setUp()
    for (let time = 0; time < 5; time++) expectSame(await rig.readAll(), rig.blob.bytes)
    expect(rig.hashedBytes).toEqual([2 * MIB])
    expect(rig.wrong).toEqual([])
  })

  it('is not hashed at all if it was verified when it was stored', async () => {
    const rig = await setUp()
    const info = await rig.store.stat(rig.blob.digest)
    if (info) rig.verified.noteStored(rig.blob.digest, info)
    expectSame(await rig.readAll(), rig.blob.bytes)
    expect(rig.hashedBytes).toEqual([])
  })

  it('is hashed again after a day, whatever the clock on the wall says meanwhile', async () => {
    const rig = await setUp()
    await rig.readAll()
    rig.clock.jump(2 * TRUSTED_MS)
    await rig.clock.advance(TRUSTED_MS - 1)
    await rig.readAll()
    expect(rig.hashedBytes).toHaveLength(1)
    rig.clock.jump(-4 * TRUSTED_MS)
    await rig.clock.advance(1)
    await rig.readAll()
    expect(rig.hashedBytes).toHaveLength(2)
  })

  it.each<[string, (file: string, bytes: Buffer) => Promise<void>]>([
    ['was written to', (file) => utimes(file, new Date(0), new Date(0))],
    [
      'was replaced',
      async (file, bytes) => {
        await rm(file)
        await writeFile(file, bytes)
      },
    ],
  ])('is hashed again if the file %s', async (_what, change) => {
    const rig = await setUp()
    await rig.readAll()
    await change(rig.paths.blobData(rig.blob.digest), rig.blob.bytes)
    expectSame(await rig.readAll(), rig.blob.bytes)
    expect(rig.hashedBytes).toHaveLength(2)
  })

  it('is not hashed when only a part is read', async () => {
    const rig = await setUp()
    const { reader } = await rig.open({ isWhole: false })
    const bytes = await readRange(reader, { from: MIB, to: 2 * MIB })
    expectSame(bytes, rig.blob.bytes.subarray(MIB))
    expect(rig.hashedBytes).toEqual([])
  })

  it('is hashed once for all who read it, though some of them leave', async () => {
    const rig = await setUp()
    const readers = await Promise.all(Array.from({ length: 4 }, () => rig.open()))
    for (const [index, { reader }] of readers.entries()) {
      await reader.read(0, Buffer.alloc(index * 1000 + 1))
    }
    const [first, second, ...others] = readers
    first?.reader.close()
    second?.reader.close()
    const bodies = await Promise.all(others.map(({ reader }) => readRange(reader, { to: 2 * MIB })))
    for (const body of bodies) expectSame(body, rig.blob.bytes)
    expect(rig.hashedBytes).toEqual([2 * MIB])
  })

  it('is hashed no further than the fastest reader has come, and from anew when all have left', async () => {
    const rig = await setUp()
    const { reader: fast } = await rig.open()
    const { reader: slow } = await rig.open()
    await fast.read(0, Buffer.alloc(1000))
    await slow.read(0, Buffer.alloc(10))
    expect(rig.hashedBytes).toEqual([1000])
    fast.close()
    slow.close()
    expectSame(await rig.readAll(), rig.blob.bytes)
    expect(rig.hashedBytes).toEqual([1000, 2 * MIB])
  })

  it('is served whole though it is removed while it is read', async () => {
    const rig = await setUp()
    const { reader } = await rig.open()
    await rig.store.remove(rig.blob.digest)
    expectSame(await readRange(reader, { to: 2 * MIB }), rig.blob.bytes)
    expect(rig.wrong).toEqual([])
  })
})

describe('a stored blob that is damaged', () => {
  it.each([0, MIB, 2 * MIB - 1])(
    'at byte %i is not given to its end, and is set aside',
    async (position) => {
      const rig = await setUp()
      await flip(rig, position)
      const { reader } = await rig.open()
      const { error, readBytes } = await readUntilError(reader, 2 * MIB)
      expect(readBytes).toBe(2 * MIB - 1)
      expect(error).toBeInstanceOf(ContentMismatchError)
      expect(rig.wrong).toEqual([rig.blob.digest])
      expect(await rig.store.open(rig.blob.digest)).toBeUndefined()
      expect(existsSync(rig.paths.quarantined(rig.blob.digest))).toBe(true)
    },
  )

  it('is found out though it was right a moment ago', async () => {
    const rig = await setUp()
    await rig.readAll()
    await flip(rig, 7)
    const { reader } = await rig.open()
    expect((await readUntilError(reader, 2 * MIB)).error).toBeInstanceOf(ContentMismatchError)
  })

  it('is reported once, and given to nobody, when several read it', async () => {
    const rig = await setUp()
    await flip(rig, MIB)
    const readers = await Promise.all(Array.from({ length: 5 }, () => rig.open()))
    const endings = await Promise.all(readers.map(({ reader }) => readUntilError(reader, 2 * MIB)))
    for (const { error } of endings) expect(error).toBeInstanceOf(ContentMismatchError)
    expect(rig.wrong).toEqual([rig.blob.digest])
  })

  it('is known as bad while it stays where it is, until it is replaced', async () => {
    const rig = await setUp()
    vi.spyOn(rig.store, 'quarantine').mockResolvedValue(false)
    await flip(rig, MIB)
    const { file, reader } = await rig.open()
    expect(rig.verified.isBad(rig.blob.digest, file)).toBe(false)
    await readUntilError(reader, 2 * MIB)
    const again = await rig.open()
    expect(rig.verified.isBad(rig.blob.digest, again.file)).toBe(true)
    await rig.store.put(rig.blob.digest, rig.blob.bytes)
    const mended = await rig.open()
    expect(rig.verified.isBad(rig.blob.digest, mended.file)).toBe(false)
    expectSame(await readRange(mended.reader, { to: 2 * MIB }), rig.blob.bytes)
  })

  it('does not take the right one along that has replaced it while it was read', async () => {
    const rig = await setUp()
    await flip(rig, MIB)
    const { reader } = await rig.open()
    await rig.store.put(rig.blob.digest, rig.blob.bytes)
    const { error } = await readUntilError(reader, 2 * MIB)
    expect(error).toBeInstanceOf(ContentMismatchError)
    expectSame(await rig.readAll(), rig.blob.bytes)
  })

  it('is told apart from a right one before anything of it is read', async () => {
    const rig = await setUp()
    const right = await rig.open()
    expect(await rig.verified.verify(rig.blob.digest, right.file)).toBe(true)
    await truncate(rig.paths.blobData(rig.blob.digest), MIB)
    const cut = await rig.open()
    expect(await rig.verified.verify(rig.blob.digest, cut.file)).toBe(false)
    expect(rig.wrong).toEqual([rig.blob.digest])
  })
})

describe('a stored blob that cannot be read', () => {
  it('is reported, and known as bad for a minute', async () => {
    const rig = await setUp()
    const { file, reader } = await rig.open({ isWhole: false })
    await truncate(rig.paths.blobData(rig.blob.digest), MIB)
    const { readBytes } = await readUntilError(reader, 2 * MIB)
    expect(readBytes).toBe(MIB)
    expect(rig.unreadable.map(({ operation }) => operation)).toEqual(['read'])
    expect(rig.verified.isBad(rig.blob.digest, file)).toBe(true)
    await rig.clock.advance(UNREADABLE_MS)
    expect(rig.verified.isBad(rig.blob.digest, file)).toBe(false)
  })

  it('is no such blob if it was its reader that has left', async () => {
    const rig = await setUp()
    const { reader } = await rig.open()
    reader.close()
    await expect(reader.read(0, Buffer.alloc(1))).rejects.toThrow('already closed')
    expect(rig.unreadable).toEqual([])
  })
})
