import { execFile } from 'node:child_process'
import { existsSync } from 'node:fs'
import { mkdir, open, readdir, rm, stat, truncate, writeFile } from 'node:fs/promises'
import path from 'node:path'
import { promisify } from 'node:util'
import { open as openDatabase } from 'lmdb'
import { pino } from 'pino'
import { describe, expect, it } from 'vitest'
import type { Digest } from '../../../../src/oci/digest.ts'
import type { RepositoryName } from '../../../../src/oci/reference.ts'
import type { FileWriter } from '../../../../src/storage/file-writer.ts'
import { StorageError } from '../../../../src/storage/filesystem.ts'
import { ContentIndex, type LinkEntry } from '../../../../src/storage/index/content-index.ts'
import type { IndexChange } from '../../../../src/storage/index/index-changes.ts'
import { StoragePaths } from '../../../../src/storage/paths.ts'
import { blobOf } from '../../../support/images.ts'
import { makeWriter } from '../../../support/storage-thread.ts'
import { makeTempDirectory } from '../../../support/temp-directory.ts'
import { waitFor } from '../../../support/wait-for.ts'

const ALPINE = 'library/alpine' as RepositoryName
const BUSYBOX = 'library/busybox' as RepositoryName
const NOTHING = { blobs: 0, links: 0, tags: 0, directories: 0, allocatedBytes: 0 }

const digestAt = (seed: number | string): Digest => blobOf(8, seed).digest

function entryOf(seed: number | string, fields: Partial<LinkEntry> = {}): LinkEntry {
  return { digest: digestAt(seed), repository: ALPINE, kind: 'blob', lastUsedMs: 1000, ...fields }
}

/** What has to be written so that the entry is there, on bytes of one block. */
function changesFor({ digest, kind, lastUsedMs: atMs, repository }: LinkEntry): IndexChange[] {
  return [
    { change: 'store', digest, allocatedBytes: 4096, isManifest: kind === 'manifest', atMs: 0 },
    { change: 'use', link: { digest, kind, repository }, atMs },
  ]
}

async function put(index: ContentIndex, entries: readonly LinkEntry[]): Promise<void> {
  await index.write(entries.flatMap(changesFor))
}

async function makePaths(): Promise<StoragePaths> {
  const paths = new StoragePaths(await makeTempDirectory())
  await mkdir(paths.temporary, { recursive: true })
  return paths
}

/** Opens the index, hands it to `use`, and closes it. @returns the warnings of the opening */
async function withIndex(
  paths: StoragePaths,
  use: (index: ContentIndex) => unknown = () => undefined,
): Promise<string[]> {
  const lines: string[] = []
  const logger = pino({ level: 'warn' }, { write: (line) => lines.push(line) })
  const index = await ContentIndex.open({ paths, writer: makeWriter(paths), logger })
  try {
    await use(index)
  } finally {
    await index.close()
  }
  return lines.map((line) => String((JSON.parse(line) as { msg: unknown }).msg))
}

async function all<T>(entries: AsyncIterable<T>): Promise<T[]> {
  const found: T[] = []
  for await (const entry of entries) found.push(entry)
  return found
}

const databaseOf = (paths: StoragePaths): string => path.join(paths.index, 'content.mdb')
const markerOf = (paths: StoragePaths): string => path.join(paths.index, 'opening')

const REBUILT = 'the index of the content cannot be read; it is rebuilt'

describe('the content index', () => {
  it('gives back what was written, and forgets what was removed', async () => {
    await withIndex(await makePaths(), async (index) => {
      const blob = entryOf(1)
      const other = entryOf(1, { repository: BUSYBOX, lastUsedMs: 2000 })
      await put(index, [blob, other])
      expect(index.link(blob.digest, ALPINE)).toEqual(blob)
      expect(index.link(blob.digest, BUSYBOX)).toEqual(other)
      expect(index.blob(blob.digest)).toEqual({
        digest: blob.digest,
        allocatedBytes: 4096,
        isManifest: false,
        isStored: true,
        mayLackLink: false,
        lastUsedMs: 2000,
        namedBy: 0,
      })
      expect(index.totals).toMatchObject({ blobs: 1, links: 2, allocatedBytes: 4096 })
      await index.write([{ change: 'unlink', digest: blob.digest, repository: ALPINE }])
      expect(index.link(blob.digest, ALPINE)).toBeUndefined()
      expect(index.link(blob.digest, BUSYBOX)).toEqual(other)
      await index.write([{ change: 'remove', digest: blob.digest }])
      expect(index.link(blob.digest, BUSYBOX)).toBeUndefined()
      expect(index.has(blob.digest)).toBe(false)
      expect(index.totals).toEqual(NOTHING)
    })
  })

  it('keeps the latest use', async () => {
    await withIndex(await makePaths(), async (index) => {
      await put(index, [entryOf(1, { lastUsedMs: 1 }), entryOf(1, { lastUsedMs: 2 })])
      await put(index, [entryOf(1, { lastUsedMs: 1_767_225_600_123 })])
      await put(index, [entryOf(1, { lastUsedMs: 3 })])
      expect(await all(index.links())).toEqual([entryOf(1, { lastUsedMs: 1_767_225_600_123 })])
      await index.write([])
    })
  })

  it('tells who holds a digest, and nobody else', async () => {
    await withIndex(await makePaths(), async (index) => {
      const holders = [ALPINE, BUSYBOX].map((repository) => entryOf(1, { repository }))
      await put(index, [...holders, entryOf(2), entryOf(3)])
      expect(index.linksOf(digestAt(1))).toEqual(holders)
      expect(index.linksOf(digestAt('unknown'))).toEqual([])
    })
  })

  it('lists everything once, in the order of digests, however many', async () => {
    await withIndex(await makePaths(), async (index) => {
      // More than two chunks, with neighbours whose keys begin alike.
      const entries = Array.from({ length: 2500 }, (_, seed) => [
        entryOf(seed, { repository: BUSYBOX }),
        entryOf(seed),
      ]).flat()
      await put(index, [...entries, entryOf(1, { digest: blobOf(8, 1, 'sha512').digest })])
      const links = await all(index.links())
      expect(links).toHaveLength(5001)
      const keys = links.map(({ digest, repository }) => `${digest} ${repository}`)
      expect(keys).toEqual([...new Set(keys)].sort())
      const digests = (await all(index.blobs())).map(({ digest }) => digest)
      expect(digests).toHaveLength(2501)
      expect(digests).toEqual([...new Set(digests)].sort())
    })
  })

  it('lists what shares a directory on disk', async () => {
    await withIndex(await makePaths(), async (index) => {
      const entries = Array.from({ length: 600 }, (_, seed) => entryOf(seed))
      await put(index, [...entries, entryOf(1, { digest: blobOf(8, 1, 'sha512').digest })])
      const shard = { algorithm: 'sha256', hexPrefix: 'ff' } as const
      const expected = entries
        .map(({ digest }) => digest)
        .filter((it) => it.startsWith('sha256:ff'))
      expect(expected.length).toBeGreaterThan(0)
      expect((await all(index.blobs(shard))).map(({ digest }) => digest)).toEqual(expected.sort())
    })
  })

  it('can be read while it is changed', async () => {
    await withIndex(await makePaths(), async (index) => {
      await put(
        index,
        Array.from({ length: 5000 }, (_, seed) => entryOf(seed)),
      )
      let seen = 0
      for await (const { digest } of index.links()) {
        seen++
        if (seen % 100 === 0) await index.write([{ change: 'remove', digest }])
      }
      expect(seen).toBe(5000)
      expect(await all(index.links())).toHaveLength(4950)
    })
  })

  it('survives being closed and opened, without a word', async () => {
    const paths = await makePaths()
    await withIndex(paths, async (index) => {
      expect(index.wasComplete).toBe(false)
      await put(index, [entryOf(1), entryOf(2)])
      index.markComplete()
    })
    const warnings = await withIndex(paths, async (index) => {
      expect(index.wasComplete).toBe(true)
      expect(await all(index.links())).toHaveLength(2)
      expect(index.totals).toMatchObject({ blobs: 2, links: 2, allocatedBytes: 8192 })
    })
    // Nobody said so again.
    await withIndex(paths, (index) => expect(index.wasComplete).toBe(false))
    expect(warnings).toEqual([])
    expect(existsSync(markerOf(paths))).toBe(false)
  })

  it('is not complete for the next start, either, if a disk without room has kept it from being opened', async () => {
    const paths = await makePaths()
    await withIndex(paths, (index) => index.markComplete())
    const full = new StorageError('write', paths.index, new Error('no room'))
    const writer = { write: () => Promise.reject(full) } as unknown as FileWriter
    const index = await ContentIndex.open({ paths, writer, logger: pino({ enabled: false }) })
    expect([index.isOpen, index.wasComplete]).toEqual([false, false])
    // What comes is stored as soon as there is room, and the process killed before it is written down.
    await withIndex(paths, (next) => expect(next.wasComplete).toBe(false))
  })

  it('keeps the longest names that there are', async () => {
    await withIndex(await makePaths(), async (index) => {
      const repository = `${'a'.repeat(127)}/${'b'.repeat(127)}` as RepositoryName
      const entry = entryOf(1, { repository, digest: blobOf(8, 1, 'sha512').digest })
      await put(index, [entry])
      expect(index.link(entry.digest, repository)).toEqual(entry)
    })
  })
})

describe('an index that cannot be used', () => {
  const spoilt: readonly [string, (paths: StoragePaths) => Promise<unknown>][] = [
    ['is gone', ({ index }) => rm(index, { recursive: true })],
    ['is a directory', (paths) => replaceByDirectory(databaseOf(paths))],
  ]

  it.each(spoilt)('because it %s begins anew', async (_what, spoil) => {
    const paths = await makePaths()
    await withIndex(paths, async (index) => {
      await put(index, [entryOf(1)])
      index.markComplete()
    })
    await spoil(paths)
    await withIndex(paths, async (index) => {
      expect(index.wasComplete).toBe(false)
      expect(await all(index.links())).toEqual([])
      expect(index.totals).toEqual(NOTHING)
      await put(index, [entryOf(2)])
    })
    const warnings = await withIndex(paths, async (index) =>
      expect(await all(index.links())).toEqual([entryOf(2)]),
    )
    expect(warnings).toEqual([])
  })

  it('because the file is empty begins anew', async () => {
    const paths = await makePaths()
    await mkdir(paths.index)
    await writeFile(databaseOf(paths), '')
    await withIndex(paths, async (index) => expect(await all(index.links())).toEqual([]))
  })

  it('because a file stands in place of its directory begins anew', async () => {
    const paths = await makePaths()
    await writeFile(paths.index, '')
    await withIndex(paths, async (index) => expect(await all(index.links())).toEqual([]))
  })

  it('because it is of another format begins anew', async () => {
    const paths = await makePaths()
    await withIndex(paths, (index) => put(index, [entryOf(1)]))
    const database = openDatabase<unknown, string>({ path: databaseOf(paths), maxDbs: 8 })
    await database.openDB<unknown, string>({ name: 'meta' }).put('format', 999)
    await database.close()
    const warnings = await withIndex(paths, async (index) => {
      expect(await all(index.links())).toEqual([])
      await put(index, [entryOf(2)])
    })
    expect(warnings).toEqual([REBUILT])
    await withIndex(paths, async (index) => expect(await all(index.links())).toEqual([entryOf(2)]))
  })

  it('because the last opening did not come back begins anew, once', async () => {
    const paths = await makePaths()
    await withIndex(paths, (index) => put(index, [entryOf(1)]))
    await writeFile(markerOf(paths), '')
    const warnings = await withIndex(paths, async (index) => {
      expect(await all(index.links())).toEqual([])
      await put(index, [entryOf(2)])
    })
    expect(warnings).toEqual([REBUILT])
    await withIndex(paths, async (index) => expect(await all(index.links())).toEqual([entryOf(2)]))
  })

  it.each(['damaged', 'writing.3'])('because of the mark %s begins anew, once', async (mark) => {
    const paths = await makePaths()
    await withIndex(paths, (index) => put(index, [entryOf(1)]))
    await writeFile(path.join(paths.index, mark), '')
    const warnings = await withIndex(paths, async (index) => {
      expect(await all(index.links())).toEqual([])
      await put(index, [entryOf(2)])
    })
    expect(warnings).toEqual([REBUILT])
    await withIndex(paths, async (index) => expect(await all(index.links())).toEqual([entryOf(2)]))
  })

  it.each([
    ['running', 'writing.1'],
    ['writing.2', 'writing.3'],
  ])('because of the mark %s does not; the next write is %s', async (mark, next) => {
    const paths = await makePaths()
    await withIndex(paths, (index) => put(index, [entryOf(1)]))
    await writeFile(path.join(paths.index, mark), '')
    const marks = async (): Promise<string[]> =>
      (await readdir(paths.index)).filter((name) => /^(running|writing)/.test(name))
    const warnings = await withIndex(paths, async (index) => {
      expect(await marks()).toEqual(['running'])
      const writing = put(
        index,
        Array.from({ length: 3000 }, (_, seed) => entryOf(seed)),
      )
      await waitFor('the mark', async () => (await marks()).includes(next))
      await writing
      expect(await marks()).toEqual(['running'])
      expect(await all(index.links())).toHaveLength(3000)
    })
    expect(warnings).toEqual([])
    expect(await marks()).toEqual([])
  })

  it('after some writes that succeed, earlier runs do not count any more', async () => {
    const paths = await makePaths()
    await mkdir(paths.index)
    await writeFile(path.join(paths.index, 'writing.2'), '')
    await withIndex(paths, async (index) => {
      for (let seed = 0; seed < 5; seed++) await put(index, [entryOf(seed)])
      const writing = put(
        index,
        Array.from({ length: 3000 }, (_, seed) => entryOf(seed)),
      )
      await waitFor('the mark', async () => (await readdir(paths.index)).includes('writing.1'))
      await writing
    })
  })

  it('removes the databases of other versions', async () => {
    const paths = await makePaths()
    await mkdir(paths.index)
    await writeFile(path.join(paths.index, 'usage.mdb'), 'of another version')
    await withIndex(paths)
    expect(existsSync(path.join(paths.index, 'usage.mdb'))).toBe(false)
  })

  it('skips entries that are not entries', async () => {
    const paths = await makePaths()
    await withIndex(paths, (index) => put(index, [entryOf(1)]))
    const database = openDatabase<unknown, string>({ path: databaseOf(paths), maxDbs: 8 })
    const garbage = [Buffer.of(0), Buffer.from('sha256:short'), Buffer.alloc(40, 7)]
    for (const name of ['blobs', 'order', 'links', 'names', 'named']) {
      const table = database.openDB<Buffer, Buffer>({
        name,
        keyEncoding: 'binary',
        encoding: 'binary',
      })
      for (const key of garbage) await table.put(key, Buffer.from('entirely'))
    }
    await database.close()
    await withIndex(paths, async (index) => {
      expect(await all(index.links())).toEqual([entryOf(1)])
      expect((await all(index.blobs())).map(({ digest }) => digest)).toEqual([digestAt(1)])
      expect((await all(index.oldestFirst())).map(({ digest }) => digest)).toEqual([digestAt(1)])
      expect(index.linksOf(digestAt(1))).toEqual([entryOf(1)])
    })
  })
})

describe('an index whose last page was given up before it was written', () => {
  it('is as good as any', async () => {
    const paths = await makePaths()
    await withIndex(paths, async (index) => {
      await put(index, [entryOf(1)])
      index.markComplete()
    })
    const file = await open(databaseOf(paths), 'r+')
    const { buffer: head } = await file.read(Buffer.alloc(52), 0, 52, 0)
    const pageBytes = head.readUInt32LE(48)
    const lastPage = Buffer.alloc(8)
    lastPage.writeBigUInt64LE(BigInt((await file.stat()).size / pageBytes))
    // In each of the two pages that the file begins with.
    for (const at of [144, pageBytes + 144]) await file.write(lastPage, 0, lastPage.length, at)
    await file.close()
    const warnings = await withIndex(paths, async (index) => {
      expect(index.wasComplete).toBe(true)
      expect(await all(index.links())).toEqual([entryOf(1)])
      await put(index, [entryOf(2)])
    })
    expect(warnings).toEqual([])
    await withIndex(paths, async (index) => expect(await all(index.links())).toHaveLength(2))
  })
})

function cutTo(length: number): [string, (file: string) => Promise<void>] {
  return [`being cut to ${length} bytes`, (file) => truncate(file, length)]
}

function cutToPart(part: number): [string, (file: string, sizeBytes: number) => Promise<void>] {
  const cut = (file: string, sizeBytes: number): Promise<void> =>
    truncate(file, Math.floor(sizeBytes * part))
  return [`being cut to ${part * 100} %`, cut]
}

function urlOf(name: string): string {
  return JSON.stringify(new URL(`../../../../dist/storage/${name}.js`, import.meta.url).href)
}

describe('an index whose file is damaged', () => {
  /** It may kill the process that reads it: it is mapped into memory. So another one has to. */
  const script = `
    import { pino } from 'pino'
    import { StoragePaths } from ${urlOf('paths')}
    import { FileWriter } from ${urlOf('file-writer')}
    import { StorageThread } from ${urlOf('storage-thread')}
    import { ContentIndex } from ${urlOf('index/content-index')}
    const paths = new StoragePaths(process.argv[1])
    const thread = new StorageThread({ workerUrl: new URL(${urlOf('storage-worker')}) })
    const writer = new FileWriter({ thread, paths })
    const index = await ContentIndex.open({ paths, writer, logger: pino({ enabled: false }) })
    let count = 0
    for await (const entry of index.links()) count += entry ? 1 : 0
    for await (const entry of index.oldestFirst()) count += entry ? 1 : 0
    await index.write([])
    await index.close()
    await thread.close()
    process.stdout.write('opened ' + count)
  `

  const damages: readonly [string, (file: string, sizeBytes: number) => Promise<void>][] = [
    ...[0, 1, 100, 4096, 8192, 12_288].map(cutTo),
    ...[0.25, 0.5, 0.75, 0.99].map(cutToPart),
    ['being a byte of garbage', (file) => writeFile(file, 'x')],
    ['being a lot of garbage', (file) => writeFile(file, 'x'.repeat(100_000))],
    ['being nothing but zeros', (file, sizeBytes) => writeFile(file, Buffer.alloc(sizeBytes))],
  ]

  it.each(damages)('by %s costs one crash at most', async (_what, damage) => {
    const paths = await makePaths()
    await withIndex(paths, (index) =>
      put(
        index,
        Array.from({ length: 3000 }, (_, seed) => entryOf(seed)),
      ),
    )
    const { size } = await stat(databaseOf(paths))
    await damage(databaseOf(paths), size)
    const first = await runScript(paths)
    const second = first.startsWith('opened') ? first : await runScript(paths)
    expect(second).toMatch(/^opened \d+$/)
    expect(existsSync(markerOf(paths))).toBe(false)
  })

  /** @returns what it printed, or how it ended */
  async function runScript({ root }: StoragePaths): Promise<string> {
    const args = ['--input-type=module', '--eval', script, root]
    try {
      return (await promisify(execFile)(process.execPath, args, { timeout: 20_000 })).stdout
    } catch (error) {
      const { code, signal, stderr } = error as {
        code?: unknown
        signal?: unknown
        stderr?: string
      }
      return `ended with ${String(signal ?? code)}: ${stderr ?? ''}`
    }
  }
})

async function replaceByDirectory(file: string): Promise<void> {
  await rm(file)
  await mkdir(path.join(file, 'inner'), { recursive: true })
}
