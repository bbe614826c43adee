import { existsSync } from 'node:fs'
import { mkdir, readdir, readFile, rename, rm, symlink, writeFile } from 'node:fs/promises'
import path from 'node:path'
import { describe, expect, it } from 'vitest'
import { hexOf, type Digest } from '../../../src/oci/digest.ts'
import type { RepositoryName, Tag } from '../../../src/oci/reference.ts'
import { StoragePaths } from '../../../src/storage/paths.ts'
import { RepositoryIndex, type Link, type LinkKind } from '../../../src/storage/repository-index.ts'
import { blobOf } from '../../support/images.ts'
import { makeTempDirectory } from '../../support/temp-directory.ts'
import { makeWriter } from '../../support/storage-thread.ts'

const LATEST = 'latest' as Tag
const ALPINE = 'library/alpine' as RepositoryName

const digestAt = (seed: number | string): Digest => blobOf(8, seed).digest
const linkOf = (repository: string, digest: Digest, kind: LinkKind = 'blob'): Link => ({
  repository: repository as RepositoryName,
  digest,
  kind,
})

async function makeIndex(): Promise<{ index: RepositoryIndex; paths: StoragePaths }> {
  const paths = new StoragePaths(await makeTempDirectory())
  await mkdir(paths.temporary, { recursive: true })
  return { index: new RepositoryIndex({ paths, writer: makeWriter(paths) }), paths }
}

/** Files below the repositories, in order, as registry:2 would find them. */
async function filesIn({ repositories }: StoragePaths): Promise<string[]> {
  const entries = await readdir(repositories, { recursive: true, withFileTypes: true })
  return entries
    .filter((entry) => entry.isFile())
    .map((entry) => path.join(path.relative(repositories, entry.parentPath), entry.name))
    .sort()
}

async function linksOf(index: RepositoryIndex): Promise<Link[]> {
  const links: Link[] = []
  for await (const repository of index.repositories()) {
    for await (const link of index.linksOf(repository)) links.push(link)
  }
  return links.sort((left, right) => (JSON.stringify(left) < JSON.stringify(right) ? -1 : 1))
}

async function write(file: string, content: string): Promise<void> {
  await mkdir(path.dirname(file), { recursive: true })
  await writeFile(file, content)
}

describe('on disk', () => {
  it('links and tags are the files that registry:2 writes', async () => {
    const { index, paths } = await makeIndex()
    const [layer, manifest] = [digestAt('layer'), digestAt('manifest')]
    await index.link(linkOf(ALPINE, layer))
    await index.link(linkOf(ALPINE, manifest, 'manifest'))
    await index.setTag(ALPINE, LATEST, manifest)
    const place = `library/alpine/_manifests`
    expect(await filesIn(paths)).toEqual([
      `library/alpine/_layers/sha256/${hexOf(layer)}/link`,
      `${place}/revisions/sha256/${hexOf(manifest)}/link`,
      `${place}/tags/latest/current/link`,
      `${place}/tags/latest/index/sha256/${hexOf(manifest)}/link`,
    ])
  })

  it('a link is the digest: 71 bytes, no newline', async () => {
    const { index, paths } = await makeIndex()
    const digest = digestAt('bytes')
    await index.link(linkOf(ALPINE, digest))
    await index.setTag(ALPINE, LATEST, digest)
    for (const file of [paths.layerLink(ALPINE, digest), paths.tagLink(ALPINE, LATEST)]) {
      const bytes = await readFile(file)
      expect(bytes).toHaveLength(71)
      expect(bytes.toString('latin1')).toBe(digest)
    }
  })

  it('are written also after somebody has removed everything, our own directories too', async () => {
    const { index, paths } = await makeIndex()
    const layer = digestAt('layer')
    await rm(paths.root, { recursive: true })
    await index.link(linkOf(ALPINE, layer))
    expect(await filesIn(paths)).toEqual([`library/alpine/_layers/sha256/${hexOf(layer)}/link`])
    expect(await readdir(paths.temporary)).toEqual([])
  })

  it('no temporary file stays behind', async () => {
    const { index, paths } = await makeIndex()
    await index.link(linkOf(ALPINE, digestAt(1)))
    await index.setTag(ALPINE, LATEST, digestAt(1))
    expect(await readdir(paths.temporary)).toEqual([])
  })
})

describe('a link', () => {
  it('belongs to one repository, and is of one kind', async () => {
    const { index } = await makeIndex()
    const digest = digestAt('kind')
    await index.link(linkOf('a', digest))
    expect(await index.has(linkOf('a', digest))).toBe(true)
    expect(await index.has(linkOf('a', digest, 'manifest'))).toBe(false)
    expect(await index.has(linkOf('a/b', digest))).toBe(false)
    expect(await index.has(linkOf('a', digestAt('other')))).toBe(false)
  })

  it.each([
    ['empty', ''],
    ['torn', digestAt('torn').slice(0, 40)],
    ['garbage', '\0\0\0\0'],
    ['of another digest', digestAt('another')],
    ['of an algorithm that cannot be checked', `md5:${'0'.repeat(32)}`],
  ])('counts as absent when it is %s, and is mended by linking again', async (_what, content) => {
    const { index, paths } = await makeIndex()
    const link = linkOf(ALPINE, digestAt('torn'))
    await write(paths.layerLink(ALPINE, link.digest), content)
    expect(await index.has(link)).toBe(false)
    await index.link(link)
    expect(await index.has(link)).toBe(true)
  })

  it('written with a newline, as by hand, is understood', async () => {
    const { index, paths } = await makeIndex()
    const link = linkOf(ALPINE, digestAt('newline'))
    await write(paths.layerLink(ALPINE, link.digest), `${link.digest}\n`)
    expect(await index.has(link)).toBe(true)
  })

  it('is absent where a file stands in place of a directory', async () => {
    const { index, paths } = await makeIndex()
    const link = linkOf(ALPINE, digestAt('file'))
    await write(path.join(paths.repository(ALPINE), '_layers'), '')
    expect(await index.has(link)).toBe(false)
    await index.unlink(link)
  })

  it('that cannot be read is an error, and not absent', async () => {
    const { index, paths } = await makeIndex()
    const link = linkOf(ALPINE, digestAt('directory'))
    await mkdir(paths.layerLink(ALPINE, link.digest), { recursive: true })
    const error = { name: 'StorageError', code: 'EISDIR' }
    await expect(index.has(link)).rejects.toMatchObject(error)
  })

  it('survives being made and removed at the same time', async () => {
    const { index } = await makeIndex()
    const link = linkOf('a/b/c', digestAt('race'))
    for (let round = 0; round < 100; round++) {
      await Promise.all([index.link(link), index.unlink(link), index.link(link)])
    }
    await index.link(link)
    expect(await index.has(link)).toBe(true)
  })
})

describe('unlinking', () => {
  it('leaves no empty directory', async () => {
    const { index, paths } = await makeIndex()
    const [blob, manifest] = [linkOf('a/b', digestAt(1)), linkOf('a/b', digestAt(2), 'manifest')]
    await index.link(blob)
    await index.link(manifest)
    await index.unlink(blob)
    expect(existsSync(path.join(paths.repository(blob.repository), '_layers'))).toBe(false)
    expect(await index.has(manifest)).toBe(true)
    await index.unlink(manifest)
    expect(await readdir(paths.repositories)).toEqual([])
  })

  it('takes along the empty _uploads that registry:2 leaves', async () => {
    const { index, paths } = await makeIndex()
    const link = linkOf('a/b', digestAt(1))
    await index.link(link)
    await mkdir(path.join(paths.repository(link.repository), '_uploads'))
    await index.unlink(link)
    expect(await readdir(paths.repositories)).toEqual([])
  })

  it('does not take an upload that somebody may still want', async () => {
    const { index, paths } = await makeIndex()
    const link = linkOf('a/b', digestAt(1))
    await index.link(link)
    const upload = path.join(paths.repository(link.repository), '_uploads', 'some-id', 'data')
    await write(upload, 'half an upload')
    await index.unlink(link)
    expect(existsSync(upload)).toBe(true)
  })

  it('does not disturb a repository below or above it', async () => {
    const { index } = await makeIndex()
    const [upper, lower] = [linkOf('a', digestAt(1)), linkOf('a/b', digestAt(1))]
    await index.link(upper)
    await index.link(lower)
    await index.unlink(upper)
    expect(await index.has(lower)).toBe(true)
    await index.link(upper)
    await index.unlink(lower)
    expect(await index.has(upper)).toBe(true)
  })

  it('what is not linked does nothing', async () => {
    const { index, paths } = await makeIndex()
    await index.unlink(linkOf('a', digestAt(1)))
    expect(existsSync(paths.repositories)).toBe(false)
  })
})

describe('a tag', () => {
  it('has the digest that it was last set to', async () => {
    const { index } = await makeIndex()
    expect(await index.readTag(ALPINE, LATEST)).toBeUndefined()
    await index.setTag(ALPINE, LATEST, digestAt(1))
    await index.setTag(ALPINE, LATEST, digestAt(2))
    expect(await index.readTag(ALPINE, LATEST)).toBe(digestAt(2))
  })

  it('remembers the digests that it had', async () => {
    const { index, paths } = await makeIndex()
    for (const seed of [1, 2, 1]) await index.setTag(ALPINE, LATEST, digestAt(seed))
    for (const seed of [1, 2]) {
      expect(existsSync(paths.tagHistoryLink(ALPINE, LATEST, digestAt(seed)))).toBe(true)
    }
  })

  it.each(['', 'sha256:123', 'garbage'])('that reads "%s" is not known', async (content) => {
    const { index, paths } = await makeIndex()
    await write(paths.tagLink(ALPINE, LATEST), content)
    expect(await index.readTag(ALPINE, LATEST)).toBeUndefined()
    await index.setTag(ALPINE, LATEST, digestAt(1))
    expect(await index.readTag(ALPINE, LATEST)).toBe(digestAt(1))
  })

  it('that is removed leaves no empty directory, whatever its history', async () => {
    const { index, paths } = await makeIndex()
    for (const seed of [1, 2, 3]) await index.setTag(ALPINE, LATEST, digestAt(seed))
    await index.setTag(ALPINE, LATEST, blobOf(8, 1, 'sha512').digest)
    await index.removeTag(ALPINE, LATEST)
    expect(await readdir(paths.repositories)).toEqual([])
  })

  it.each(['index', 'index/sha256', `index/sha256/${'a'.repeat(64)}`, 'current'])(
    'is removed with the empty %s that a crash has left',
    async (directory) => {
      const { index, paths } = await makeIndex()
      await mkdir(path.join(paths.tag(ALPINE, LATEST), directory), { recursive: true })
      await index.removeTag(ALPINE, LATEST)
      expect(await readdir(paths.repositories)).toEqual([])
    },
  )

  it('that is removed does not take others along', async () => {
    const { index } = await makeIndex()
    for (const tag of ['1', '2'] as Tag[]) await index.setTag(ALPINE, tag, digestAt(1))
    await index.removeTag(ALPINE, '1' as Tag)
    expect(await index.listTags(ALPINE)).toEqual(['2'])
    expect(await index.readTag(ALPINE, '2' as Tag)).toBe(digestAt(1))
  })
})

describe('listings', () => {
  it('have tags in lexical order', async () => {
    const { index } = await makeIndex()
    expect(await index.listTags(ALPINE)).toEqual([])
    const tags = ['latest', '3.9', '3.20', 'Edge', '3'] as Tag[]
    for (const tag of tags) await index.setTag(ALPINE, tag, digestAt(1))
    expect(await index.listTags(ALPINE)).toEqual(['3', '3.20', '3.9', 'Edge', 'latest'])
  })

  it('have repositories with manifests, component by component, nested ones after their parent', async () => {
    const { index } = await makeIndex()
    const names = ['b', 'a-b', 'a/b', 'a', 'a/b/c', 'a.b', 'ab']
    for (const name of names) await index.link(linkOf(name, digestAt(1), 'manifest'))
    await index.link(linkOf('only/layers', digestAt(1)))
    expect(await index.listRepositories()).toEqual(['a', 'a/b', 'a/b/c', 'a-b', 'a.b', 'ab', 'b'])
  })

  it('are empty before anything was stored, and skip what is not a repository', async () => {
    const { index, paths } = await makeIndex()
    expect(await index.listRepositories()).toEqual([])
    await write(path.join(paths.repositories, 'file'), '')
    await mkdir(path.join(paths.repositories, 'UPPER', '_manifests'), { recursive: true })
    await mkdir(path.join(paths.repositories, '_manifests'), { recursive: true })
    expect(await index.listRepositories()).toEqual([])
    expect(await linksOf(index)).toEqual([])
  })

  it('are found through symbolic links, of which those that lead back are not followed', async () => {
    const { index, paths } = await makeIndex()
    const { repositories } = paths
    const elsewhere = await makeTempDirectory()
    const digest = digestAt(1)
    for (const name of ['a/b', 'c']) await index.setTag(name as RepositoryName, LATEST, digest)
    await write(path.join(elsewhere, 'd', '_manifests', 'tags', 'x'), '')
    await symlink(elsewhere, path.join(repositories, 'linked'))
    await symlink(path.join(elsewhere, 'd'), path.join(repositories, 'a', 'alias'))
    await symlink(repositories, path.join(repositories, 'loop'))
    await symlink('..', path.join(repositories, 'a', 'up'))
    await symlink('.', path.join(repositories, 'c', 'here'))
    await symlink('itself', path.join(repositories, 'itself'))
    await symlink('nowhere', path.join(repositories, 'dangling'))
    // To each other.
    await symlink(path.join(repositories, 'a'), path.join(elsewhere, 'back'))
    expect(await index.listRepositories()).toEqual([
      'a/alias',
      'a/b',
      'c',
      'linked/back/alias',
      'linked/back/b',
      'linked/d',
    ])
    expect((await linksOf(index)).length).toBe(0)
  })

  it('are not looked for deeper than a name can be long', async () => {
    const { index, paths } = await makeIndex()
    const deepest = `${'a/'.repeat(127)}b`
    await write(path.join(paths.repositories, deepest, '_manifests', 'x'), '')
    // Whoever went to its end would come to a path that is too long for the system.
    const half = path.join(...Array.from({ length: 12 }, () => 'l'.repeat(200)))
    const [upper, lower] = [path.join(paths.repositories, half), path.join(paths.root, 'other')]
    await mkdir(upper, { recursive: true })
    await mkdir(path.join(lower, half), { recursive: true })
    await rename(lower, path.join(upper, 'other'))
    try {
      expect(await index.listRepositories()).toEqual([deepest])
    } finally {
      await rename(path.join(upper, 'other'), lower)
    }
  })

  it('have every link of every repository', async () => {
    const { index, paths } = await makeIndex()
    const links = ['a', 'a/b', 'ghcr.io/org/image'].flatMap((name) => [
      linkOf(name, digestAt(1)),
      linkOf(name, blobOf(8, 1, 'sha512').digest),
      linkOf(name, digestAt(2), 'manifest'),
    ])
    for (const link of links) await index.link(link)
    await index.setTag('a' as RepositoryName, LATEST, digestAt(2))
    await mkdir(path.join(paths.repositories, 'a', '_uploads', 'x'), { recursive: true })
    await mkdir(path.join(paths.repositories, 'a', '_layers', 'sha256', 'x'), { recursive: true })
    const expected = links.map((link) => JSON.stringify(link, ['repository', 'digest', 'kind']))
    const found = (await linksOf(index)).map((link) =>
      JSON.stringify(link, ['repository', 'digest', 'kind']),
    )
    expect(found.sort()).toEqual(expected.sort())
  })
})
