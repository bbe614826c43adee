// What each repository holds: links and tags, in registry:2's layout. A link says "the upstream has this
// under that name"; it gives the right to the bytes, which are stored once for all. A link whose content is
// not its digest (torn by a crash of an older registry) counts as absent.

import path from 'node:path'
import { parseDigest, type Digest } from '../oci/digest.ts'
import {
  NAME_LENGTH_MAX,
  parseRepositoryName,
  parseTag,
  sortKeyOf,
  type RepositoryName,
  type Tag,
} from '../oci/reference.ts'
import {
  listDirectory,
  pruneEmptyDirectories,
  readSmallFile,
  realPath,
  removeFile,
} from './filesystem.ts'
import type { FileWriter } from './file-writer.ts'
import type { FileContent } from './filesystem.ts'
import type { StoragePaths } from './paths.ts'

export type LinkKind = 'blob' | 'manifest'

export interface Link {
  readonly repository: RepositoryName
  readonly digest: Digest
  readonly kind: LinkKind
}

export class RepositoryIndex {
  readonly #paths: StoragePaths
  readonly #writer: FileWriter

  constructor(deps: { paths: StoragePaths; writer: FileWriter }) {
    this.#paths = deps.paths
    this.#writer = deps.writer
  }

  async has({ repository, digest, kind }: Link): Promise<boolean> {
    const target = await this.#readLink(this.#linkPath(repository, digest, kind))
    return target === digest
  }

  async link(link: Link): Promise<void> {
    await this.#writer.writeAll([this.linkFile(link)])
  }

  /** What stands on disk for a link, for whoever writes it together with the bytes. */
  linkFile({ repository, digest, kind }: Link): FileContent {
    return { file: this.#linkPath(repository, digest, kind), bytes: digest }
  }

  /** Removes the link and the directories that it leaves empty. */
  async unlink({ repository, digest, kind }: Link): Promise<void> {
    const file = this.#linkPath(repository, digest, kind)
    await removeFile(file)
    await this.#prune(repository, path.dirname(file))
  }

  /** @returns the digest that the tag had when the upstream was last asked */
  readTag(repository: RepositoryName, tag: Tag): Promise<Digest | undefined> {
    return this.#readLink(this.#paths.tagLink(repository, tag))
  }

  /** @returns what the tag points to, and what it once did, as far as that is not forgotten */
  async readTagHistory(repository: RepositoryName, tag: Tag): Promise<Set<Digest>> {
    const current = await this.readTag(repository, tag)
    const digests = new Set(current === undefined ? [] : [current])
    const history = this.#history(repository, tag)
    for (const algorithm of await listDirectory(history)) {
      for (const { name } of await listDirectory(path.join(history, algorithm.name))) {
        const digest = parseDigest(`${algorithm.name}:${name}`)
        if (digest) digests.add(digest)
      }
    }
    return digests
  }

  async setTag(repository: RepositoryName, tag: Tag, digest: Digest): Promise<void> {
    await this.#writer.writeAll([
      { file: this.#paths.tagHistoryLink(repository, tag, digest), bytes: digest },
      { file: this.#paths.tagLink(repository, tag), bytes: digest },
    ])
  }

  /** @returns the digests that it had */
  async removeTag(repository: RepositoryName, tag: Tag): Promise<Digest[]> {
    const current = this.#paths.tagLink(repository, tag)
    await removeFile(current)
    const history = this.#history(repository, tag)
    const digests: Digest[] = []
    for (const algorithm of await listDirectory(history)) {
      const algorithmPath = path.join(history, algorithm.name)
      for (const entry of await listDirectory(algorithmPath)) {
        const digest = parseDigest(`${algorithm.name}:${entry.name}`)
        if (digest) digests.push(digest)
        await removeFile(path.join(algorithmPath, entry.name, 'link'))
        await this.#prune(repository, path.join(algorithmPath, entry.name))
      }
      await this.#prune(repository, algorithmPath)
    }
    await this.#prune(repository, history)
    await this.#prune(repository, path.dirname(current))
    return digests
  }

  /** Forgets that a tag once had this digest. */
  async removeFromHistory(repository: RepositoryName, tag: Tag, digest: Digest): Promise<void> {
    const link = this.#paths.tagHistoryLink(repository, tag, digest)
    if (await removeFile(link)) await this.#prune(repository, path.dirname(link))
  }

  /** @returns the tags of a repository in lexical order */
  async listTags(repository: RepositoryName): Promise<Tag[]> {
    const entries = await listDirectory(this.#paths.tags(repository))
    return entries.flatMap((entry) => parseTag(entry.name) ?? []).sort()
  }

  /** Repositories with at least one manifest, as registry:2 lists them: `a`, `a/b`, `a-b`. */
  async listRepositories(): Promise<RepositoryName[]> {
    const names: RepositoryName[] = []
    for await (const { name, parts } of this.#walkRepositories()) {
      if (parts.has('_manifests')) names.push(name)
    }
    return names.sort(compareNames)
  }

  /** Names of repositories, in no order, as they are found. */
  async *repositories(): AsyncGenerator<RepositoryName> {
    for await (const { name } of this.#walkRepositories()) yield name
  }

  /** Pushes that registry:2 has begun, and its own downloads: what is left of them after a crash. */
  async *uploads(repository: RepositoryName): AsyncGenerator<string> {
    const uploads = path.join(this.#paths.repository(repository), '_uploads')
    for (const { name } of await listDirectory(uploads)) yield path.join(uploads, name)
  }

  /** Every link of a repository, one kind after the other; by default what manifests name comes before them. */
  async *linksOf(
    repository: RepositoryName,
    kinds: readonly LinkKind[] = ['blob', 'manifest'],
  ): AsyncGenerator<Link> {
    for (const kind of kinds) yield* this.#linksOfKind(repository, kind)
  }

  async *#linksOfKind(repository: RepositoryName, kind: LinkKind): AsyncGenerator<Link> {
    const directory =
      kind === 'blob'
        ? path.join(this.#paths.repository(repository), '_layers')
        : path.join(this.#paths.manifests(repository), 'revisions')
    for (const algorithm of await listDirectory(directory)) {
      for (const entry of await listDirectory(path.join(directory, algorithm.name))) {
        const digest = parseDigest(`${algorithm.name}:${entry.name}`)
        if (digest) yield { repository, digest, kind }
      }
    }
  }

  /**
   * Yields each directory that is a repository: one with a part that starts with `_`. Symbolic links are followed, but
   * none that leads back to where it was come from.
   */
  async *#walkRepositories(): AsyncGenerator<{ name: RepositoryName; parts: Set<string> }> {
    const pending: string[][] = [[]]
    for (let components = pending.pop(); components; components = pending.pop()) {
      const entries = await listDirectory(path.join(this.#paths.repositories, ...components))
      const names = entries.map((entry) => entry.name)
      const parts = new Set(names.filter((name) => name.startsWith('_')))
      const name = parts.size > 0 ? parseRepositoryName(components.join('/')) : undefined
      if (name) yield { name, parts }
      for (const entry of entries) {
        const child = [...components, entry.name]
        if (parts.has(entry.name) || child.join('/').length > NAME_LENGTH_MAX) continue
        if (entry.isSymbolicLink() && (await this.#isDeadEnd(child))) continue
        pending.push(child)
      }
    }
  }

  /** Whether a symbolic link leads nowhere, or to a directory that it is in. @throws {StorageError} */
  async #isDeadEnd(components: readonly string[]): Promise<boolean> {
    const { repositories } = this.#paths
    // Of the links among these, too: two may lead to each other.
    const parents = components.map((_, count) =>
      path.join(repositories, ...components.slice(0, count)),
    )
    const target = await realPath(path.join(repositories, ...components))
    if (target === undefined) return true
    for (const parent of parents) if ((await realPath(parent)) === target) return true
    return false
  }

  #linkPath(repository: RepositoryName, digest: Digest, kind: LinkKind): string {
    return kind === 'blob'
      ? this.#paths.layerLink(repository, digest)
      : this.#paths.revisionLink(repository, digest)
  }

  #history(repository: RepositoryName, tag: Tag): string {
    return path.join(this.#paths.tag(repository, tag), 'index')
  }

  async #readLink(file: string): Promise<Digest | undefined> {
    const bytes = await readSmallFile(file)
    return bytes && parseDigest(bytes.toString('utf8').trim())
  }

  /** An empty `_uploads`, which registry:2 leaves in each repository, must not keep a repository alive. */
  async #prune(repository: RepositoryName, directory: string): Promise<void> {
    await pruneEmptyDirectories(directory, this.#paths.repositories)
    const uploads = path.join(this.#paths.repository(repository), '_uploads')
    const left = await listDirectory(this.#paths.repository(repository))
    if (left.length === 1 && left[0]?.name === '_uploads') {
      await pruneEmptyDirectories(uploads, this.#paths.repositories)
    }
  }
}

function compareNames(left: string, right: string): number {
  const a = sortKeyOf(left)
  const b = sortKeyOf(right)
  return a < b ? -1 : a > b ? 1 : 0
}
