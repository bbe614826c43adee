import { pino } from 'pino'
import { mkdir } from 'node:fs/promises'
import { describe, expect, it, onTestFinished } from 'vitest'
import type { Digest } from '../../../../src/oci/digest.ts'
import type { RepositoryName, Tag } from '../../../../src/oci/reference.ts'
import { ContentIndex } from '../../../../src/storage/index/content-index.ts'
import { directoriesOf, type IndexChange } from '../../../../src/storage/index/index-changes.ts'
import { StoragePaths } from '../../../../src/storage/paths.ts'
import { blobOf } from '../../../support/images.ts'
import { makeWriter } from '../../../support/storage-thread.ts'
import { makeTempDirectory } from '../../../support/temp-directory.ts'

const A = 'library/a' as RepositoryName
const B = 'library/b' as RepositoryName
const BLOCK = 4096

const digestAt = (seed: string): Digest => blobOf(8, seed).digest

/** An index whose changes are short to write. Digests are named by words. */
class Sketch {
  readonly index: ContentIndex

  constructor(index: ContentIndex) {
    this.index = index
  }

  apply(...changes: readonly IndexChange[]): Promise<void> {
    return this.index.write(changes)
  }

  async order(): Promise<string[]> {
    const words: string[] = []
    for await (const { digest } of this.index.oldestFirst()) words.push(wordOf(digest))
    return words
  }

  lastUsed(word: string): number | undefined {
    return this.index.blob(digestAt(word))?.lastUsedMs
  }

  namedBy(word: string): number | undefined {
    return this.index.blob(digestAt(word))?.namedBy
  }

  names(word: string): string[] {
    return this.index.namesOf(digestAt(word)).map(wordOf).sort()
  }

  parents(word: string): string[] {
    return this.index.namedBy(digestAt(word)).map(wordOf).sort()
  }
}

const words = new Map<Digest, string>()

function named(word: string): Digest {
  const digest = digestAt(word)
  words.set(digest, word)
  return digest
}

function wordOf(digest: Digest): string {
  return words.get(digest) ?? digest
}

const store = (word: string, atMs: number, isManifest = false): IndexChange => {
  return { change: 'store', digest: named(word), allocatedBytes: BLOCK, isManifest, atMs }
}

const manifest = (word: string, atMs: number): IndexChange => store(word, atMs, true)

const use = (
  word: string,
  atMs: number,
  {
    kind = 'blob',
    repository = A,
  }: { kind?: 'blob' | 'manifest'; repository?: RepositoryName } = {},
): IndexChange => ({ change: 'use', link: { digest: named(word), kind, repository }, atMs })

const pull = (word: string, atMs: number, repository = A): IndexChange =>
  use(word, atMs, { kind: 'manifest', repository })

const name = (
  word: string,
  blobs: readonly string[],
  manifests: readonly string[] = [],
): IndexChange => {
  const children = manifests.map(named)
  return {
    change: 'name',
    digest: named(word),
    names: [...blobs.map(named), ...children],
    manifests: children,
  }
}

const remove = (word: string): IndexChange => ({ change: 'remove', digest: named(word) })

async function openSketch(root?: string): Promise<Sketch> {
  const paths = new StoragePaths(root ?? (await makeTempDirectory()))
  await mkdir(paths.temporary, { recursive: true })
  const logger = pino({ enabled: false })
  const index = await ContentIndex.open({ paths, writer: makeWriter(paths), logger })
  onTestFinished(() => index.close())
  return new Sketch(index)
}

/** An image `m` of two layers, all of it as old as `atMs`. */
const image = (atMs: number): IndexChange[] => [
  manifest('m', atMs),
  store('l1', atMs),
  store('l2', atMs),
  name('m', ['l1', 'l2']),
  pull('m', atMs),
  use('l1', atMs),
  use('l2', atMs),
]

describe('the order of use', () => {
  it('has each stored blob once, the least recently used first', async () => {
    const sketch = await openSketch()
    await sketch.apply(store('a', 1), store('b', 2), store('c', 3))
    expect(await sketch.order()).toEqual(['a', 'b', 'c'])
    await sketch.apply(use('a', 4), use('b', 5), use('a', 6))
    expect(await sketch.order()).toEqual(['c', 'b', 'a'])
    await sketch.apply(remove('b'))
    expect(await sketch.order()).toEqual(['c', 'a'])
  })

  it('does not go back when a note comes late', async () => {
    const sketch = await openSketch()
    await sketch.apply(store('a', 5), store('b', 6), use('a', 9), use('a', 7), store('a', 3))
    expect(sketch.lastUsed('a')).toBe(9)
    expect(await sketch.order()).toEqual(['b', 'a'])
  })

  it('has manifests before what was used at the same time', async () => {
    const sketch = await openSketch()
    await sketch.apply(store('a', 1), store('b', 1), manifest('m', 1), store('c', 1))
    expect((await sketch.order())[0]).toBe('m')
  })

  it('survives times that fit into no number of six bytes', async () => {
    const sketch = await openSketch()
    await sketch.apply(store('past', -5), store('future', 1e17), store('now', 1_767_225_600_000))
    expect(await sketch.order()).toEqual(['past', 'now', 'future'])
    await sketch.apply(remove('past'), remove('future'))
    expect(await sketch.order()).toEqual(['now'])
  })
})

describe('the totals', () => {
  const totals = { blobs: 0, links: 0, tags: 0, directories: 0, allocatedBytes: 0 }

  it('are the sums of what is stored and linked', async () => {
    const sketch = await openSketch()
    await sketch.apply(...image(1), pull('m', 2, B))
    expect(sketch.index.totals).toEqual({
      blobs: 3,
      links: 4,
      tags: 0,
      directories: 2 * directoriesOf(A),
      allocatedBytes: 3 * BLOCK,
    })
    await sketch.apply({ change: 'unlink', digest: named('m'), repository: A })
    await sketch.apply({ change: 'unlink', digest: named('m'), repository: A })
    expect(sketch.index.totals).toMatchObject({ links: 3, directories: 2 * directoriesOf(A) })
    await sketch.apply(remove('m'), remove('m'), remove('l1'), remove('l2'))
    expect(sketch.index.totals).toEqual(totals)
  })

  it('count each tag once for each digest, until it or the link goes', async () => {
    const sketch = await openSketch()
    const tag = (digest: string, text: string, repository = A) => {
      return { change: 'tag', digest: named(digest), repository, tag: text as Tag } as const
    }
    await sketch.apply(...image(1), tag('m', 'a'), tag('m', 'a'), tag('m', 'b'), tag('m', 'a', B))
    await sketch.apply(tag('not stored', 'a', B))
    expect(sketch.index.totals).toMatchObject({ tags: 4, directories: 2 * directoriesOf(A) })
    expect(sketch.index.tagsOf(named('m'), A)).toEqual(['a', 'b'])
    await sketch.apply({ ...tag('m', 'b'), change: 'untag' }, { ...tag('m', 'b'), change: 'untag' })
    expect(sketch.index.totals).toMatchObject({ tags: 3 })
    await sketch.apply({ change: 'unlink', digest: named('m'), repository: A })
    expect(sketch.index.totals).toMatchObject({ tags: 2 })
    await sketch.apply({ ...tag('not stored', 'a', B), change: 'untag' })
    await sketch.apply({ ...tag('m', 'a', B), change: 'untag' }, remove('m'))
    await sketch.apply(remove('l1'), remove('l2'))
    expect(sketch.index.totals).toEqual(totals)
  })

  it('count bytes that are stored again once, at their latest size', async () => {
    const sketch = await openSketch()
    await sketch.apply(store('a', 1), store('a', 2))
    expect(sketch.index.totals).toMatchObject({ blobs: 1, allocatedBytes: BLOCK })
    await sketch.apply({
      change: 'store',
      digest: named('a'),
      allocatedBytes: 10 * BLOCK,
      isManifest: false,
      atMs: 3,
    })
    expect(sketch.index.totals).toMatchObject({ blobs: 1, allocatedBytes: 10 * BLOCK })
  })

  it('know no link to bytes that are not there', async () => {
    const sketch = await openSketch()
    await sketch.apply(use('gone', 1), store('a', 1), use('a', 1), remove('a'), use('a', 2))
    expect(sketch.index.totals).toEqual(totals)
    expect(sketch.index.linksOf(named('a'))).toEqual([])
  })

  it('are right after a crash between two chunks of changes', async () => {
    const root = await makeTempDirectory()
    const before = await openSketch(root)
    const changes = Array.from({ length: 520 }, (_, number) => store(`blob ${number}`, number))
    // The third chunk cannot be written: the second is on disk, and the process ends.
    const spoilt = { ...store('spoilt', 1), allocatedBytes: -1 } as IndexChange
    await expect(before.apply(...changes, spoilt)).rejects.toThrow()
    // Nothing of the content: an index whose last write has failed is left open.
    await before.index.markSeen()
    await before.index.close()
    const after = await openSketch(root)
    const { allocatedBytes, blobs } = after.index.totals
    expect(await after.order()).toHaveLength(blobs)
    expect(blobs).toBe(500)
    expect(allocatedBytes).toBe(blobs * BLOCK)
  })
})

describe('an image', () => {
  it('ages as one: who uses the manifest uses all of it', async () => {
    const sketch = await openSketch()
    await sketch.apply(...image(1), store('other', 2), pull('m', 3))
    expect(['m', 'l1', 'l2'].map((word) => sketch.lastUsed(word))).toEqual([3, 3, 3])
    expect((await sketch.order())[0]).toBe('other')
    expect(sketch.index.link(named('l1'), A)?.lastUsedMs).toBe(3)
  })

  it('says nothing of the links of other repositories', async () => {
    const sketch = await openSketch()
    await sketch.apply(...image(1), use('l1', 1, { repository: B }), pull('m', 3))
    expect(sketch.index.link(named('l1'), B)?.lastUsedMs).toBe(1)
  })

  it('is not used by who uses a layer, which others may share', async () => {
    const sketch = await openSketch()
    await sketch.apply(...image(1), use('l1', 5))
    expect(sketch.lastUsed('m')).toBe(1)
    expect(sketch.lastUsed('l2')).toBe(1)
  })

  it('belongs to its index, with all the other platforms', async () => {
    const sketch = await openSketch()
    await sketch.apply(...image(1), manifest('arm', 1), store('l3', 1), name('arm', ['l3']))
    await sketch.apply(manifest('index', 1), name('index', [], ['m', 'arm']), pull('m', 7))
    for (const word of ['index', 'm', 'arm', 'l1', 'l2', 'l3']) {
      expect(sketch.lastUsed(word), word).toBe(7)
    }
  })

  it('is never younger than what it names, in whatever order that becomes known', async () => {
    const sketch = await openSketch()
    await sketch.apply(...image(1), manifest('index', 9), pull('index', 9))
    await sketch.apply(name('index', [], ['m']))
    expect(['m', 'l1', 'l2'].map((word) => sketch.lastUsed(word))).toEqual([9, 9, 9])
  })

  it('counts who names a layer while they are stored, once each', async () => {
    const sketch = await openSketch()
    await sketch.apply(...image(1), manifest('n', 1), name('n', ['l1', 'l1']), name('n', ['l1']))
    expect(sketch.namedBy('l1')).toBe(2)
    await sketch.apply(remove('n'))
    expect(sketch.namedBy('l1')).toBe(1)
    expect(sketch.names('n')).toEqual([])
    await sketch.apply(manifest('n', 2), name('n', ['l1']))
    expect(sketch.namedBy('l1')).toBe(2)
  })

  it('remembers what it names when that is removed, and comes again', async () => {
    const sketch = await openSketch()
    await sketch.apply(...image(1), remove('l1'))
    expect(sketch.index.has(named('l1'))).toBe(false)
    await sketch.apply(store('l1', 2))
    expect(sketch.namedBy('l1')).toBe(1)
    await sketch.apply(pull('m', 5))
    expect(sketch.lastUsed('l1')).toBe(5)
  })

  it('leaves nothing of itself when it is gone', async () => {
    const sketch = await openSketch()
    await sketch.apply(...image(1), manifest('index', 1), name('index', [], ['m', 'never pulled']))
    for (const word of ['index', 'm', 'l1', 'l2']) await sketch.apply(remove(word))
    for (const word of ['index', 'm', 'l1', 'l2', 'never pulled']) {
      expect(sketch.index.blob(named(word)), word).toBeUndefined()
      expect([...sketch.names(word), ...sketch.parents(word)], word).toEqual([])
    }
  })

  it('does not name itself', async () => {
    const sketch = await openSketch()
    await sketch.apply(manifest('m', 1), name('m', ['m'], ['m']))
    expect(sketch.namedBy('m')).toBe(0)
  })

  it('that was never stored is not known by what it names', async () => {
    const sketch = await openSketch()
    await sketch.apply(store('l1', 1), name('passed through', ['l1', 'l2'], ['child']))
    expect(sketch.names('passed through')).toEqual([])
    expect(sketch.parents('child')).toEqual([])
    expect(sketch.namedBy('l1')).toBe(0)
  })

  it('stays a manifest for who asks for it as a blob, too', async () => {
    const sketch = await openSketch()
    await sketch.apply(...image(1), use('m', 2))
    expect(sketch.index.link(named('m'), A)).toMatchObject({ kind: 'manifest', lastUsedMs: 2 })
    expect(sketch.index.totals).toMatchObject({ links: 3 })
  })

  it('of more parts than any has is not taken to be one', async () => {
    const sketch = await openSketch()
    const parts = Array.from({ length: 5_001 }, (_, number) => `part ${number}`)
    await sketch.apply(manifest('m', 1), name('m', parts))
    expect(sketch.names('m')).toEqual([])
  })
})

describe('what refers to an image', () => {
  const signature = [manifest('sig', 1), store('payload', 1), name('sig', ['payload'])]

  it('ages with it', async () => {
    const sketch = await openSketch()
    await sketch.apply(...image(1), ...signature, name('m', [], ['sig']), pull('m', 4))
    expect(sketch.lastUsed('sig')).toBe(4)
    expect(sketch.lastUsed('payload')).toBe(4)
    await sketch.apply(pull('sig', 6))
    expect(sketch.lastUsed('l1')).toBe(6)
  })

  it('may come before it', async () => {
    const sketch = await openSketch()
    await sketch.apply(...signature, name('m', [], ['sig']))
    expect(sketch.namedBy('sig')).toBe(0)
    await sketch.apply(...image(3))
    expect(sketch.names('m')).toEqual(['l1', 'l2', 'sig'])
    expect(sketch.namedBy('sig')).toBe(1)
    expect(sketch.lastUsed('payload')).toBe(3)
  })

  it('is forgotten with what it refers to, if that never came', async () => {
    const sketch = await openSketch()
    await sketch.apply(...signature, name('m', [], ['sig']), remove('sig'))
    expect(sketch.names('m')).toEqual([])
    expect(sketch.parents('sig')).toEqual([])
  })

  it('is remembered by what is stored, and belongs to it again when it comes again', async () => {
    const sketch = await openSketch()
    await sketch.apply(...image(1), ...signature, name('m', [], ['sig']), remove('sig'))
    await sketch.apply(manifest('sig', 2))
    expect(sketch.namedBy('sig')).toBe(1)
    await sketch.apply(pull('m', 8))
    expect(sketch.lastUsed('sig')).toBe(8)
  })

  it('cannot belong to what belongs to it: then neither could go first', async () => {
    const sketch = await openSketch()
    await sketch.apply(...image(1), ...signature, name('m', [], ['sig']), name('sig', [], ['m']))
    expect(sketch.namedBy('m')).toBe(0)
    expect(sketch.namedBy('sig')).toBe(1)
    await sketch.apply(manifest('far', 1), name('sig', [], ['far']), name('far', [], ['m']))
    expect(sketch.namedBy('m')).toBe(0)
    expect(sketch.names('far')).toEqual([])
  })
})
