import { execFileSync } from 'node:child_process'
import { existsSync } from 'node:fs'
import { mkdir, readdir, readFile, symlink, truncate, writeFile } from 'node:fs/promises'
import path from 'node:path'
import { describe, expect, it } from 'vitest'
import { digestOf, hexOf, type Digest } from '../../../src/oci/digest.ts'
import type { BlobFile } from '../../../src/storage/blob-file.ts'
import { BlobStore } from '../../../src/storage/blob-store.ts'
import { StorageError } from '../../../src/storage/filesystem.ts'
import { StoragePaths } from '../../../src/storage/paths.ts'
import { blobOf, type TestBlob } from '../../support/images.ts'
import { canListOpenFiles, openFilesBelow } from '../../support/open-files.ts'
import { makeTempDirectory } from '../../support/temp-directory.ts'
import { waitFor } from '../../support/wait-for.ts'
import { makeBlobStore } from '../../support/storage-thread.ts'

const MIB = 1024 * 1024
const NOBODY = 65_534

/** Root may read everything: for a moment it is somebody else. */
async function withoutPrivileges(action: () => Promise<void>): Promise<void> {
  const isRoot = process.geteuid?.() === 0
  if (isRoot) process.seteuid?.(NOBODY)
  try {
    await action()
  } finally {
    if (isRoot) process.seteuid?.(0)
  }
}

async function makeStore(): Promise<{ paths: StoragePaths; store: BlobStore }> {
  const paths = new StoragePaths(await makeTempDirectory())
  await mkdir(paths.temporary, { recursive: true })
  return { paths, store: makeBlobStore(paths) }
}

/** A verified file, as a download leaves it. */
async function spooled(
  paths: StoragePaths,
  { bytes }: TestBlob,
  name = 'spooled',
): Promise<string> {
  const file = path.join(paths.temporary, name)
  await writeFile(file, bytes)
  return file
}

async function openBlob(store: BlobStore, digest: Digest): Promise<BlobFile> {
  const file = await store.open(digest)
  if (!file) throw new Error(`${digest} is not stored`)
  return file
}

/** Puts something else where a blob's bytes belong. */
async function plant(
  paths: StoragePaths,
  digest: Digest,
  make: (file: string) => Promise<unknown>,
): Promise<void> {
  const file = paths.blobData(digest)
  await mkdir(path.dirname(file), { recursive: true })
  await make(file)
}

async function listed(store: BlobStore): Promise<Digest[]> {
  const digests: Digest[] = []
  for await (const shard of store.shards()) digests.push(...shard.digests)
  return digests.sort()
}

describe('a stored blob', () => {
  it('stands where registry:2 looks for it', async () => {
    const { paths, store } = await makeStore()
    const blob = blobOf(1000, 'place')
    await store.put(blob.digest, blob.bytes)
    const hex = hexOf(blob.digest)
    const place = `docker/registry/v2/blobs/sha256/${hex.slice(0, 2)}/${hex}/data`
    expect(await readFile(path.join(paths.root, place))).toEqual(blob.bytes)
  })

  it('is read from any position, as many bytes at a time as there is room for', async () => {
    const { paths, store } = await makeStore()
    const blob = blobOf(10_000, 'positions')
    await store.adopt(blob.digest, await spooled(paths, blob))
    const file = await openBlob(store, blob.digest)
    expect(file.sizeBytes).toBe(10_000)
    const scratch = Buffer.alloc(4096)
    for (const position of [0, 1, 4095, 9_999]) {
      const bytes = await file.read(position, scratch)
      expect(bytes.equals(blob.bytes.subarray(position, position + bytes.length))).toBe(true)
    }
    file.close()
  })

  it('is known by size without being opened', async () => {
    const { store } = await makeStore()
    const blob = blobOf(123, 'stat')
    await store.put(blob.digest, blob.bytes)
    expect(await store.stat(blob.digest)).toMatchObject({ sizeBytes: 123 })
  })

  it.each(['sha256', 'sha384', 'sha512'] as const)('may be named by %s', async (algorithm) => {
    const { store } = await makeStore()
    const blob = blobOf(64, algorithm, algorithm)
    await store.put(blob.digest, blob.bytes)
    expect(await store.readWhole(blob.digest, 64)).toEqual(blob.bytes)
    expect(await listed(store)).toEqual([blob.digest])
  })

  it('appears whole or not at all: a put that fails leaves nothing, also no temporary file', async () => {
    const { paths, store } = await makeStore()
    const blob = blobOf(1000, 'blocked')
    await plant(paths, blob.digest, (file) => mkdir(file))
    await expect(store.put(blob.digest, blob.bytes)).rejects.toBeInstanceOf(StorageError)
    expect(await readdir(paths.temporary)).toEqual([])
  })

  it('leaves the file that could not be adopted where it was', async () => {
    const { paths, store } = await makeStore()
    const blob = blobOf(1000, 'stays')
    await plant(paths, blob.digest, (file) => mkdir(file))
    const file = await spooled(paths, blob)
    await expect(store.adopt(blob.digest, file)).rejects.toBeInstanceOf(StorageError)
    expect(existsSync(file)).toBe(true)
  })
})

describe('reading a blob whole', () => {
  it('gives its bytes, also when there are none', async () => {
    const { store } = await makeStore()
    for (const blob of [blobOf(5000, 'whole'), blobOf(0, 'empty')]) {
      await store.put(blob.digest, blob.bytes)
      expect(await store.readWhole(blob.digest, 5000)).toEqual(blob.bytes)
    }
  })

  it('takes a longer blob than expected for absent, and leaves it alone', async () => {
    const { store } = await makeStore()
    const blob = blobOf(5001, 'long')
    await store.put(blob.digest, blob.bytes)
    expect(await store.readWhole(blob.digest, 5000)).toBeUndefined()
    expect(await store.stat(blob.digest)).toBeDefined()
  })

  it.each([
    ['has a flipped bit', (bytes: Buffer) => Buffer.from(bytes).fill((bytes[7] ?? 0) ^ 1, 7, 8)],
    ['is cut short', (bytes: Buffer) => bytes.subarray(0, 99)],
    ['is empty', () => Buffer.alloc(0)],
    ['has a byte too many', (bytes: Buffer) => Buffer.concat([bytes, Buffer.alloc(1)])],
  ])('sets a blob aside that %s, and reports it absent', async (_what, spoil) => {
    const { paths, store } = await makeStore()
    const blob = blobOf(5000, 'spoiled')
    await plant(paths, blob.digest, (file) => writeFile(file, spoil(blob.bytes)))
    expect(await store.readWhole(blob.digest, MIB)).toBeUndefined()
    expect(await store.open(blob.digest)).toBeUndefined()
    expect(await readFile(paths.quarantined(blob.digest))).toEqual(spoil(blob.bytes))
    expect(await listed(store)).toEqual([])
    await store.put(blob.digest, blob.bytes)
    expect(await store.readWhole(blob.digest, MIB)).toEqual(blob.bytes)
  })

  it('sets a wrong blob aside once, when several clients find out together', async () => {
    const { paths, store } = await makeStore()
    const { digest } = blobOf(5000, 'together')
    await plant(paths, digest, (file) => writeFile(file, 'wrong'))
    const reads = Array.from({ length: 8 }, () => store.readWhole(digest, MIB))
    expect(await Promise.all(reads)).toEqual(Array.from({ length: 8 }, () => undefined))
    expect(await readdir(paths.quarantine)).toHaveLength(1)
  })
})

describe('an open blob', () => {
  it('stays readable when the blob is removed', async () => {
    const { store } = await makeStore()
    const blob = blobOf(100_000, 'removed')
    await store.put(blob.digest, blob.bytes)
    const file = await openBlob(store, blob.digest)
    expect(await store.remove(blob.digest)).toBe(true)
    const bytes = await file.read(50_000, Buffer.alloc(50_000))
    expect(bytes.equals(blob.bytes.subarray(50_000))).toBe(true)
    file.close()
  })

  it('fails when somebody has cut the file short, and does not end', async () => {
    const { paths, store } = await makeStore()
    const blob = blobOf(1000, 'truncated')
    await store.put(blob.digest, blob.bytes)
    const file = await openBlob(store, blob.digest)
    await truncate(paths.blobData(blob.digest), 500)
    await expect(file.read(500, Buffer.alloc(10))).rejects.toThrow('ends at byte 500')
    file.close()
  })

  it('finishes the read that runs while it is closed, and refuses the next', async () => {
    const { store } = await makeStore()
    const blob = blobOf(MIB, 'closing')
    await store.put(blob.digest, blob.bytes)
    const file = await openBlob(store, blob.digest)
    const running = file.read(0, Buffer.alloc(MIB))
    file.close()
    file.close()
    await expect(file.read(0, Buffer.alloc(1))).rejects.toThrow(StorageError)
    const bytes = await running
    expect(bytes.equals(blob.bytes.subarray(0, bytes.length))).toBe(true)
  })

  it.runIf(canListOpenFiles)('is closed after the last read, and only once', async () => {
    const { paths, store } = await makeStore()
    const blob = blobOf(MIB, 'descriptors')
    await store.put(blob.digest, blob.bytes)
    const closed = await Promise.all(
      Array.from({ length: 20 }, async () => {
        const file = await openBlob(store, blob.digest)
        const reads = [0, 10].map((position) => file.read(position, Buffer.alloc(1000)))
        file.close()
        file.close()
        return Promise.all(reads)
      }),
    )
    expect(closed).toHaveLength(20)
    const allClosed = async (): Promise<boolean> => (await openFilesBelow(paths.root)).length === 0
    await waitFor('all files to be closed', allClosed)
  })
})

describe('a blob that is being stored', () => {
  it.each(['memory', 'a file'])('from %s counts as in use until it is there', async (from) => {
    const { paths, store } = await makeStore()
    const blob = blobOf(1000, 'arriving')
    const file = await spooled(paths, blob)
    const arriving =
      from === 'memory' ? store.put(blob.digest, blob.bytes) : store.adopt(blob.digest, file)
    expect(store.isBeingRead(blob.digest)).toBe(true)
    await arriving
    expect(store.isBeingRead(blob.digest)).toBe(false)
    expect(await store.readWhole(blob.digest, 1000)).toEqual(blob.bytes)
  })
})

describe('removing a blob', () => {
  it('leaves no empty directories, and those of others alone', async () => {
    const { paths, store } = await makeStore()
    const [first, second] = [blobOf(10, 1), blobOf(10, 2)]
    await store.put(first.digest, first.bytes)
    await store.put(second.digest, second.bytes)
    expect(await store.remove(first.digest)).toBe(true)
    expect(await readdir(paths.blobs, { recursive: true })).toHaveLength(4)
    expect(await store.remove(second.digest)).toBe(true)
    expect(await readdir(paths.blobs)).toEqual([])
  })

  it('says so when it was not stored', async () => {
    const { store } = await makeStore()
    expect(await store.remove(blobOf(10, 'never').digest)).toBe(false)
  })

  it('clears away the directory of a blob whose bytes are gone', async () => {
    const { paths, store } = await makeStore()
    const { digest } = blobOf(10, 'hollow')
    await mkdir(path.dirname(paths.blobData(digest)), { recursive: true })
    expect(await store.remove(digest)).toBe(false)
    expect(await readdir(paths.blobs)).toEqual([])
  })

  it('never takes a blob that arrives at the same time without saying so', async () => {
    const { paths, store } = await makeStore()
    const blob = blobOf(10, 'race')
    for (let round = 0; round < 300; round++) {
      const file = await spooled(paths, blob)
      const [removed] = await Promise.all([
        store.remove(blob.digest),
        store.adopt(blob.digest, file),
      ])
      const isStored = (await store.stat(blob.digest)) !== undefined
      expect({ round, isStored }).toEqual({ round, isStored: !removed })
      await store.remove(blob.digest)
    }
  })

  it('never makes an arrival fail, however many arrive and go at once', async () => {
    const { paths, store } = await makeStore()
    const blob = blobOf(10, 'crowd')
    for (let round = 0; round < 40; round++) {
      const files = await Promise.all(
        Array.from({ length: 8 }, (_, index) => spooled(paths, blob, `file-${index}`)),
      )
      const moves = files.flatMap((file) => [
        store.adopt(blob.digest, file),
        store.remove(blob.digest),
        store.remove(blob.digest),
      ])
      await Promise.all(moves)
    }
    const bytes = await store.readWhole(blob.digest, 10)
    expect([undefined, blob.bytes]).toContainEqual(bytes)
  })
})

describe('what is not there', () => {
  it('is absent: no directory, no file, or a file where a directory should be', async () => {
    const { paths, store } = await makeStore()
    const { digest } = blobOf(10, 'absent')
    const isAbsent = async (): Promise<void> => {
      expect(await store.open(digest)).toBeUndefined()
      expect(await store.stat(digest)).toBeUndefined()
      expect(await store.readWhole(digest, 10)).toBeUndefined()
      expect(await store.remove(digest)).toBe(false)
    }
    await isAbsent()
    await mkdir(path.dirname(path.dirname(paths.blobData(digest))), { recursive: true })
    await isAbsent()
    await mkdir(path.dirname(path.dirname(paths.blobData(digest))), { recursive: true })
    await writeFile(path.dirname(paths.blobData(digest)), 'a file')
    await isAbsent()
  })

  it('is not what cannot be read: a loop of links, or a directory instead of bytes', async () => {
    const { paths, store } = await makeStore()
    const loop = blobOf(10, 'loop').digest
    await plant(paths, loop, (file) => symlink(file, file))
    await expect(store.open(loop)).rejects.toMatchObject({ name: 'StorageError', code: 'ELOOP' })
    await expect(store.stat(loop)).rejects.toMatchObject({ name: 'StorageError', code: 'ELOOP' })
    const directory = blobOf(10, 'directory').digest
    await plant(paths, directory, (file) => mkdir(file))
    const error = { name: 'StorageError', code: 'EISDIR' }
    await expect(store.readWhole(directory, MIB)).rejects.toMatchObject(error)
    await expect(store.remove(directory)).rejects.toBeInstanceOf(StorageError)
  })

  it.skipIf(process.platform === 'win32')(
    'is not a pipe, for whose bytes nobody waits',
    async () => {
      const { paths, store } = await makeStore()
      const { digest } = blobOf(10, 'pipe')
      await plant(paths, digest, async (file) => execFileSync('mkfifo', [file]))
      await expect(store.open(digest)).rejects.toThrow(StorageError)
      const info = await store.stat(digest)
      if (!info) throw new Error('nothing is there')
      expect(await store.verify(digest, info)).toBe(false)
      expect(await store.stat(digest)).toBeUndefined()
    },
  )

  it('is not what we may not read', async () => {
    const { paths, store } = await makeStore()
    const { digest } = blobOf(10, 'forbidden')
    await plant(paths, digest, (file) => writeFile(file, 'secret', { mode: 0 }))
    await withoutPrivileges(() =>
      expect(store.open(digest)).rejects.toMatchObject({ code: 'EACCES' }),
    )
  })

  it.runIf(process.platform === 'linux')('is not what the disk fails to read', async () => {
    const { paths, store } = await makeStore()
    const { digest } = blobOf(10, 'broken disk')
    // Address 0 of a process is never mapped: reading it is an I/O error.
    await plant(paths, digest, (file) => symlink('/proc/self/mem', file))
    const file = await openBlob(store, digest)
    const failure = { name: 'StorageError', operation: 'read', code: 'EIO' }
    await expect(file.read(0, Buffer.alloc(1))).rejects.toMatchObject(failure)
    file.close()
  })
})

describe('the list of blobs', () => {
  it('has every blob, and nothing that is not named like one', async () => {
    const { paths, store } = await makeStore()
    const blobs = [1, 2, 3, 4, 5].map((seed) => blobOf(10, seed))
    for (const { bytes, digest } of blobs) await store.put(digest, bytes)
    await mkdir(path.join(paths.blobs, 'sha256', 'aa', 'not-a-digest'), { recursive: true })
    await mkdir(path.join(paths.blobs, 'md5', 'aa', 'a'.repeat(32)), { recursive: true })
    await writeFile(path.join(paths.blobs, 'sha256', 'file'), '')
    expect(await listed(store)).toEqual(blobs.map(({ digest }) => digest).sort())
  })

  it('is empty before anything was stored', async () => {
    const { store } = await makeStore()
    expect(await listed(store)).toEqual([])
  })

  it('goes on while blobs are removed under it', async () => {
    const { store } = await makeStore()
    const blobs = Array.from({ length: 20 }, (_, seed) => blobOf(10, seed))
    for (const { bytes, digest } of blobs) await store.put(digest, bytes)
    const seen = new Set<Digest>()
    for await (const { digests } of store.shards()) {
      for (const digest of digests) {
        seen.add(digest)
        await store.remove(digest)
      }
    }
    expect(seen.size).toBe(20)
  })

  it('is of digests: what it names hashes to it', async () => {
    const { store } = await makeStore()
    const blob = blobOf(10, 'named')
    await store.put(blob.digest, blob.bytes)
    for (const digest of await listed(store)) {
      const bytes = await store.readWhole(digest, 10)
      expect(bytes && digestOf(bytes)).toBe(digest)
    }
  })
})
