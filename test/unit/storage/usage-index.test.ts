import { execFile } from 'node:child_process'
import { existsSync } from 'node:fs'
import { mkdir, rm, stat, truncate, writeFile } from 'node:fs/promises'
import path from 'node:path'
import { promisify } from 'node:util'
import { open as openDatabase } from 'lmdb'
import { pino } from 'pino'
import { describe, expect, it } from 'vitest'
import type { Digest } from '../../../src/oci/digest.ts'
import type { RepositoryName } from '../../../src/oci/reference.ts'
import { StoragePaths } from '../../../src/storage/paths.ts'
import { UsageIndex, type UsageEntry } from '../../../src/storage/usage-index.ts'
import { blobOf } from '../../support/images.ts'
import { makeTempDirectory } from '../../support/temp-directory.ts'
import { makeWriter } from '../../support/storage-thread.ts'

const ALPINE = 'library/alpine' as RepositoryName
const BUSYBOX = 'library/busybox' as RepositoryName

const digestAt = (seed: number | string): Digest => blobOf(8, seed).digest

function entryOf(seed: number | string, fields: Partial<UsageEntry> = {}): UsageEntry {
  return { digest: digestAt(seed), repository: ALPINE, kind: 'blob', lastUsedMs: 1000, ...fields }
}

async function makePaths(): Promise<StoragePaths> {
  const paths = new StoragePaths(await makeTempDirectory())
  await mkdir(paths.temporary, { recursive: true })
  return paths
}

/** Opens the index, hands it to `use`, and closes it. @returns the warnings of the opening */
async function withIndex(
  paths: StoragePaths,
  use: (index: UsageIndex) => unknown = () => undefined,
): Promise<string[]> {
  const lines: string[] = []
  const logger = pino({ level: 'warn' }, { write: (line) => lines.push(line) })
  const index = await UsageIndex.open({ paths, writer: makeWriter(paths), logger })
  try {
    await use(index)
  } finally {
    await index.close()
  }
  return lines.map((line) => String((JSON.parse(line) as { msg: unknown }).msg))
}

async function entriesOf(index: UsageIndex): Promise<UsageEntry[]> {
  const entries: UsageEntry[] = []
  for await (const entry of index.entries()) entries.push(entry)
  return entries
}

const databaseOf = (paths: StoragePaths): string => path.join(paths.index, 'usage.mdb')
const markerOf = (paths: StoragePaths): string => path.join(paths.index, 'opening')

const REBUILT = 'the index of last uses cannot be read; it is rebuilt'

describe('the usage index', () => {
  it('gives back what was put, and forgets what was removed', async () => {
    await withIndex(await makePaths(), async (index) => {
      const blob = entryOf(1)
      const manifest = entryOf(1, { repository: BUSYBOX, kind: 'manifest', lastUsedMs: 2000 })
      const unlinked = entryOf(2, { repository: undefined })
      await index.put([blob, manifest, unlinked])
      expect(index.get(blob.digest, ALPINE)).toEqual(blob)
      expect(index.get(blob.digest, BUSYBOX)).toEqual(manifest)
      expect(index.get(unlinked.digest, undefined)).toEqual(unlinked)
      expect(index.get(blob.digest, undefined)).toBeUndefined()
      await index.remove(blob.digest, ALPINE)
      expect(index.get(blob.digest, ALPINE)).toBeUndefined()
      expect(index.get(blob.digest, BUSYBOX)).toEqual(manifest)
      await index.remove(blob.digest, ALPINE)
    })
  })

  it('replaces the last use', async () => {
    await withIndex(await makePaths(), async (index) => {
      await index.put([entryOf(1, { lastUsedMs: 1 }), entryOf(1, { lastUsedMs: 2 })])
      await index.put([entryOf(1, { lastUsedMs: 1_767_225_600_123 })])
      expect(await entriesOf(index)).toEqual([entryOf(1, { lastUsedMs: 1_767_225_600_123 })])
      await index.put([])
    })
  })

  it('tells who holds a digest, and nobody else', async () => {
    await withIndex(await makePaths(), async (index) => {
      const holders = [undefined, ALPINE, BUSYBOX].map((repository) => entryOf(1, { repository }))
      await index.put([...holders, entryOf(2), entryOf(3)])
      expect(index.ofDigest(digestAt(1))).toEqual(holders)
      expect(index.ofDigest(digestAt('unknown'))).toEqual([])
    })
  })

  it('lists every entry once, in the order of digests, however many', async () => {
    await withIndex(await makePaths(), async (index) => {
      // More than two chunks, with neighbours whose names begin alike.
      const entries = Array.from({ length: 2500 }, (_, seed) => [
        entryOf(seed, { repository: undefined }),
        entryOf(seed),
      ]).flat()
      await index.put([...entries, entryOf(1, { digest: blobOf(8, 1, 'sha512').digest })])
      const found = await entriesOf(index)
      expect(found).toHaveLength(5001)
      const keys = found.map(({ digest, repository }) => `${digest} ${repository ?? ''}`)
      expect(keys).toEqual([...new Set(keys)].sort())
    })
  })

  it('can be read while it is changed', async () => {
    await withIndex(await makePaths(), async (index) => {
      await index.put(Array.from({ length: 5000 }, (_, seed) => entryOf(seed)))
      let seen = 0
      for await (const { digest, repository } of index.entries()) {
        seen++
        if (seen % 100 === 0) await index.remove(digest, repository)
      }
      expect(seen).toBe(5000)
      expect(await entriesOf(index)).toHaveLength(4950)
    })
  })

  it('survives being closed and opened, without a word', async () => {
    const paths = await makePaths()
    await withIndex(paths, async (index) => {
      expect(index.isComplete).toBe(false)
      await index.put([entryOf(1), entryOf(2)])
      await index.markComplete(true)
    })
    const warnings = await withIndex(paths, async (index) => {
      expect(index.isComplete).toBe(true)
      expect(await entriesOf(index)).toHaveLength(2)
      await index.markComplete(false)
    })
    await withIndex(paths, (index) => expect(index.isComplete).toBe(false))
    expect(warnings).toEqual([])
    expect(existsSync(markerOf(paths))).toBe(false)
  })

  it('keeps the longest names that there are', async () => {
    await withIndex(await makePaths(), async (index) => {
      const repository = `${'a'.repeat(127)}/${'b'.repeat(127)}` as RepositoryName
      const entry = entryOf(1, { repository, digest: blobOf(8, 1, 'sha512').digest })
      await index.put([entry])
      expect(index.get(entry.digest, repository)).toEqual(entry)
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
      await index.put([entryOf(1)])
      await index.markComplete(true)
    })
    await spoil(paths)
    await withIndex(paths, async (index) => {
      expect(index.isComplete).toBe(false)
      expect(await entriesOf(index)).toEqual([])
      await index.put([entryOf(2)])
    })
    const warnings = await withIndex(paths, async (index) =>
      expect(await entriesOf(index)).toEqual([entryOf(2)]),
    )
    expect(warnings).toEqual([])
  })

  it('because the file is empty begins anew', async () => {
    const paths = await makePaths()
    await mkdir(paths.index)
    await writeFile(databaseOf(paths), '')
    await withIndex(paths, async (index) => expect(await entriesOf(index)).toEqual([]))
  })

  it('because a file stands in place of its directory begins anew', async () => {
    const paths = await makePaths()
    await writeFile(paths.index, '')
    await withIndex(paths, async (index) => expect(await entriesOf(index)).toEqual([]))
  })

  it('because it is of another format begins anew', async () => {
    const paths = await makePaths()
    await mkdir(paths.index)
    const database = openDatabase<unknown, string>({ path: databaseOf(paths) })
    await database.put('!complete', 999)
    await database.put(`${digestAt(1)} ${ALPINE}`, [0, 1000])
    await database.close()
    const warnings = await withIndex(paths, async (index) => {
      expect(await entriesOf(index)).toEqual([])
      await index.put([entryOf(2)])
    })
    expect(warnings).toEqual([REBUILT])
    await withIndex(paths, async (index) => expect(await entriesOf(index)).toEqual([entryOf(2)]))
  })

  it('because the last opening did not come back begins anew, once', async () => {
    const paths = await makePaths()
    await withIndex(paths, (index) => index.put([entryOf(1)]))
    await writeFile(markerOf(paths), '')
    const warnings = await withIndex(paths, async (index) => {
      expect(await entriesOf(index)).toEqual([])
      await index.put([entryOf(2)])
    })
    expect(warnings).toEqual([REBUILT])
    await withIndex(paths, async (index) => expect(await entriesOf(index)).toEqual([entryOf(2)]))
  })

  it('skips entries that are not entries', async () => {
    const paths = await makePaths()
    await mkdir(paths.index)
    const database = openDatabase<unknown, string>({ path: databaseOf(paths) })
    await database.put(`${digestAt(1)} ${ALPINE}`, [0, 1000])
    await database.put(`${digestAt(1)} NOT A NAME`, [0, 1000])
    await database.put(`${digestAt(2)} `, ['0', '1000'])
    await database.put('sha256:short library/alpine', [0, 1000])
    await database.put('something else', 'entirely')
    await database.close()
    await withIndex(paths, async (index) => {
      expect(await entriesOf(index)).toEqual([entryOf(1)])
      expect(index.ofDigest(digestAt(1))).toEqual([entryOf(1)])
    })
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
  return JSON.stringify(new URL(`../../../dist/storage/${name}.js`, import.meta.url).href)
}

describe('an index whose file is damaged', () => {
  /** It may kill the process that reads it: it is mapped into memory. So another one has to. */
  const script = `
    import { pino } from 'pino'
    import { StoragePaths } from ${urlOf('paths')}
    import { FileWriter } from ${urlOf('file-writer')}
    import { StorageThread } from ${urlOf('storage-thread')}
    import { UsageIndex } from ${urlOf('usage-index')}
    const paths = new StoragePaths(process.argv[1])
    const thread = new StorageThread({ workerUrl: new URL(${urlOf('storage-worker')}) })
    const writer = new FileWriter({ thread, paths })
    const index = await UsageIndex.open({ paths, writer, logger: pino({ enabled: false }) })
    let count = 0
    for await (const entry of index.entries()) count += entry ? 1 : 0
    await index.put([])
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
      index.put(Array.from({ length: 3000 }, (_, seed) => entryOf(seed))),
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
