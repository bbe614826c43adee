// What is on disk, looked at from outside while the cache does not run.

import { createHash } from 'node:crypto'
import { readdirSync, readFileSync, statSync, type Dirent } from 'node:fs'
import { join } from 'node:path'

export interface Volume {
  /** Digests under which there are bytes. */
  readonly blobs: ReadonlySet<string>
  /** `<repository>@<digest>` of every link to a blob or manifest. */
  readonly links: ReadonlySet<string>
  /** `<repository>:<tag>` → digest. */
  readonly tags: ReadonlyMap<string, string>
  /** Unfinished downloads: digest → bytes. */
  readonly parts: ReadonlyMap<string, number>
  readonly temporary: readonly string[]
}

const REGISTRY = 'docker/registry/v2'
const BLOB = /^(\w+)\/..\/(\w+)\/data$/
const LINK = /^(.+)\/(?:_layers|_manifests\/revisions)\/(\w+)\/(\w+)\/link$/
const TAG = /^(.+)\/_manifests\/tags\/([^/]+)\/current\/link$/

/** @throws when a link does not say what it stands for */
export function readVolume(rootDirectory: string): Volume {
  const blobs = new Set<string>()
  for (const file of filesBelow(join(rootDirectory, REGISTRY, 'blobs'))) {
    const [, algorithm = '', hex = ''] = BLOB.exec(file) ?? []
    blobs.add(`${algorithm}:${hex}`)
  }
  const links = new Set<string>()
  const tags = new Map<string, string>()
  const repositories = join(rootDirectory, REGISTRY, 'repositories')
  for (const file of filesBelow(repositories)) {
    // registry keeps notes beside the uploads that are under way.
    if (!file.endsWith('/link')) continue
    const target = readFileSync(join(repositories, file), 'utf8')
    const [, repository, algorithm, hex] = LINK.exec(file) ?? []
    if (hex !== undefined && target !== `${algorithm}:${hex}`)
      throw new Error(`${file} says ${target}`)
    if (hex !== undefined) links.add(`${repository}@${target}`)
    const [, holder, tag] = TAG.exec(file) ?? []
    if (tag !== undefined) tags.set(`${holder}:${tag}`, target)
  }
  const spool = join(rootDirectory, 'layover/spool')
  const parts = filesBelow(spool).map(
    (name) =>
      [name.replace('-', ':').replace(/-.*/, ''), statSync(join(spool, name)).size] as const,
  )
  const temporary = filesBelow(join(rootDirectory, 'layover/temporary'))
  return { blobs, links, tags, parts: new Map(parts), temporary }
}

/** Reads every stored blob. @returns the files whose bytes hash to something else than their name */
export function wrongBlobs(rootDirectory: string): string[] {
  const blobs = join(rootDirectory, REGISTRY, 'blobs')
  return filesBelow(blobs).filter((file) => {
    const [, algorithm = 'sha256', hex] = BLOB.exec(file) ?? []
    const bytes = readFileSync(join(blobs, file))
    return createHash(algorithm).update(bytes).digest('hex') !== hex
  })
}

/** What has bytes and no link, or a link and no bytes. */
export function orphansOf({ blobs, links }: Volume): string[] {
  const linked = new Set([...links].map((link) => link.slice(link.indexOf('@') + 1)))
  const unlinked = [...blobs].filter((digest) => !linked.has(digest))
  return [
    ...unlinked,
    ...[...links].filter((link) => !blobs.has(link.slice(link.indexOf('@') + 1))),
  ]
}

function filesBelow(directory: string): string[] {
  const files: string[] = []
  const pending = ['']
  for (let path = pending.pop(); path !== undefined; path = pending.pop()) {
    for (const entry of entriesOf(join(directory, path))) {
      const list = entry.isDirectory() ? pending : files
      list.push(path === '' ? entry.name : `${path}/${entry.name}`)
    }
  }
  return files
}

function entriesOf(directory: string): Dirent[] {
  try {
    return readdirSync(directory, { withFileTypes: true })
  } catch {
    // It was pruned a moment ago, or never made.
    return []
  }
}
