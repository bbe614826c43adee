// What can happen to the content index, one change at a time, inside a transaction of its database: what is read
// here is what the changes before have written. Keeps the tables true to each other: the order has each stored
// blob once, `namedBy` counts the stored manifests that name it, the totals are the sums.

import type { Digest } from '../../oci/digest.ts'
import type { RepositoryName, Tag } from '../../oci/reference.ts'
import type { Link } from '../repository-index.ts'
import type { IndexDatabase } from './index-database.ts'
import {
  blobRecord,
  blobValue,
  countIn,
  countValue,
  digestKey,
  digestsIn,
  digestsValue,
  keyAfter,
  linkKey,
  linkOfKey,
  linkRecord,
  linkValue,
  orderKey,
  repositoryKey,
  tagKey,
  tagsKey,
  type BlobRecord,
} from './index-records.ts'
import { GROUP_MAX, drop, put, reach, takeOut } from './index-tables.ts'

export type IndexChange =
  /** The bytes are on disk. */
  | {
      readonly change: 'store'
      readonly digest: Digest
      readonly allocatedBytes: number
      readonly isManifest: boolean
      readonly atMs: number
      /** Until somebody links it. Not given: as before. */
      readonly mayLackLink?: true
    }
  /** A link to stored bytes was used, or made. Renews with it what belongs to the same image. */
  | { readonly change: 'use'; readonly link: Link; readonly atMs: number }
  /**
   * A manifest goes along with these: what it names, and what refers to it. Adds to what is known. Of a manifest
   * that is not stored only stored manifests are noted, which refer to it; what it names is told when it comes.
   */
  | {
      readonly change: 'name'
      readonly digest: Digest
      readonly names: readonly Digest[]
      /** Those among them that are manifests. */
      readonly manifests: readonly Digest[]
    }
  /** The bytes count as used, whoever holds them. */
  | { readonly change: 'renew'; readonly digest: Digest; readonly atMs: number }
  /** No use can be later than this: the clock that said so was wrong. */
  | { readonly change: 'rewind'; readonly digest: Digest; readonly atMs: number }
  /** A tag points to a digest, or once did. Whether that is stored makes no difference: its files are there. */
  | {
      readonly change: 'tag' | 'untag'
      readonly digest: Digest
      readonly repository: RepositoryName
      readonly tag: Tag
    }
  /** A link is gone, and with it the tags that pointed to its digest. */
  | { readonly change: 'unlink'; readonly digest: Digest; readonly repository: RepositoryName }
  /** The bytes are gone, and with them every link to them. */
  | { readonly change: 'remove'; readonly digest: Digest }

export interface Totals {
  readonly blobs: number
  readonly links: number
  /** One for each digest that a tag has, or once had. */
  readonly tags: number
  /** That repositories have beside those of their links and tags. */
  readonly directories: number
  /** Of blobs and manifests. */
  readonly allocatedBytes: number
}

/** Manifests that are remembered to name one manifest. */
const NAMED_MAX = 1_000
const PRESENT = Buffer.of(1)
/** `_layers`, `_manifests` and `_uploads`, and what stands in them before the first link and tag. */
const REPOSITORY_DIRECTORIES = 7

/** @returns the totals after the change, and about how many entries of tables it took */
export function applyChange(
  database: IndexDatabase,
  change: IndexChange,
  before: Totals,
): { readonly totals: Totals; readonly writes: number } {
  const writer = new ChangeWriter(database, before)
  writer.apply(change)
  return writer
}

class ChangeWriter {
  totals: Totals
  writes = 1
  readonly #database: IndexDatabase

  constructor(database: IndexDatabase, totals: Totals) {
    this.#database = database
    this.totals = totals
  }

  apply(change: IndexChange): void {
    switch (change.change) {
      case 'store':
        this.#store(change)
        return
      case 'use':
        this.#use(change.link, change.atMs)
        return
      case 'name':
        this.#name(change)
        return
      case 'renew':
        for (const digest of this.#groupOf(change.digest)) this.#renew(digest, change.atMs)
        return
      case 'rewind':
        this.#rewind(change.digest, change.atMs)
        return
      case 'unlink':
        this.#unlink(change.digest, change.repository)
        return
      case 'tag':
        this.#tag(change)
        return
      case 'untag':
        this.#untag(change.repository, tagKey(change.digest, change.repository, change.tag))
        return
      case 'remove':
        this.#remove(change.digest)
    }
  }

  #store({
    allocatedBytes,
    atMs,
    digest,
    isManifest,
    mayLackLink,
  }: Extract<IndexChange, { change: 'store' }>): void {
    const before = this.#blob(digest)
    this.#putBlob(digest, before, {
      allocatedBytes,
      isManifest: isManifest || (before?.isManifest ?? false),
      isStored: true,
      lastUsedMs: Math.max(atMs, before?.lastUsedMs ?? 0),
      namedBy: before?.namedBy ?? 0,
      mayLackLink: mayLackLink ?? before?.mayLackLink ?? false,
    })
    if (before?.isStored) return
    // What refers to it may have come before it.
    for (const child of this.#names(digest)) this.#countNamed(child, 1, atMs)
  }

  /** Using a manifest uses its image; using a layer, which many images share, says nothing of any of them. */
  #use({ digest, kind, repository }: Link, atMs: number): void {
    // Removed meanwhile: there is no link to nothing.
    const blob = this.#blob(digest)
    if (!blob?.isStored) return
    if (blob.mayLackLink) this.#putBlob(digest, blob, { ...blob, mayLackLink: false })
    const key = linkKey(digest, repository)
    const before = linkRecord(this.#database.links.get(key))
    // A manifest that is asked for as a blob too remains one.
    const linkKind = before?.kind === 'manifest' ? 'manifest' : kind
    if (!before) {
      this.totals = { ...this.totals, links: this.totals.links + 1 }
      this.#countInRepository(repository, 1)
    }
    const lastUsedMs = Math.max(atMs, before?.lastUsedMs ?? 0)
    put(this.#database.links, key, linkValue({ kind: linkKind, lastUsedMs }))
    this.#renew(digest, atMs)
    if (kind !== 'manifest') return
    for (const member of this.#groupOf(digest)) {
      if (member === digest) continue
      this.#renew(member, atMs)
      this.#renewLink(member, repository, atMs)
    }
  }

  #renewLink(digest: Digest, repository: RepositoryName, atMs: number): void {
    const key = linkKey(digest, repository)
    const before = linkRecord(this.#database.links.get(key))
    if (!before || before.lastUsedMs >= atMs) return
    put(this.#database.links, key, linkValue({ ...before, lastUsedMs: atMs }))
  }

  #renew(digest: Digest, atMs: number): void {
    const before = this.#blob(digest)
    if (!before?.isStored || before.lastUsedMs >= atMs) return
    this.#putBlob(digest, before, { ...before, lastUsedMs: atMs })
  }

  #rewind(digest: Digest, atMs: number): void {
    const before = this.#blob(digest)
    if (before?.isStored) {
      this.#putBlob(digest, before, { ...before, lastUsedMs: Math.min(before.lastUsedMs, atMs) })
    }
    for (const { key, value } of this.#linksOf(digest)) {
      const link = linkRecord(value)
      if (!link || link.lastUsedMs <= atMs) continue
      put(this.#database.links, key, linkValue({ ...link, lastUsedMs: atMs }))
    }
  }

  /** All of them, since they may be changed while one looks. */
  #linksOf(digest: Digest): { key: Buffer; value: Buffer }[] {
    const start = digestKey(digest)
    return [...this.#database.links.getRange({ start, end: keyAfter(start) })]
  }

  #name({ digest, manifests, names }: Extract<IndexChange, { change: 'name' }>): void {
    const parent = this.#blob(digest)
    const known = new Set(this.#names(digest))
    const children = new Set(manifests)
    const added = [...new Set(names)].filter((name) => {
      if (known.has(name)) return false
      const isManifest = children.has(name)
      if (!parent?.isStored && !(isManifest && this.#blob(name)?.isStored)) return false
      return !(name === digest || (isManifest && this.#leadsTo(name, digest)))
    })
    if (added.length === 0 || known.size + added.length > GROUP_MAX) return
    put(this.#database.names, digestKey(digest), digestsValue([...known, ...added]))
    for (const child of added) {
      if (children.has(child)) this.#addNamed(child, digest)
      if (parent?.isStored) this.#countNamed(child, 1, parent.lastUsedMs)
    }
  }

  /**
   * Whether a manifest would go along with itself: tags can claim that two manifests belong to each other, and
   * neither would ever be the first to go. In doubt it would.
   */
  #leadsTo(from: Digest, target: Digest): boolean {
    const reached = this.#reach(from)
    return reached.has(target) || reached.size >= GROUP_MAX
  }

  #countNamed(child: Digest, by: 1 | -1, atMs: number): void {
    const record = this.#blob(child) ?? NAMED_ONLY
    this.#putBlob(child, record, { ...record, namedBy: Math.max(0, record.namedBy + by) })
    if (by < 0 || record.lastUsedMs >= atMs) return
    for (const member of this.#reach(child)) this.#renew(member, atMs)
  }

  #addNamed(child: Digest, by: Digest): void {
    const key = digestKey(child)
    const known = digestsIn(this.#database.named.get(key))
    if (known.includes(by) || known.length >= NAMED_MAX) return
    put(this.#database.named, key, digestsValue([...known, by]))
  }

  #unlink(digest: Digest, repository: RepositoryName): void {
    const key = linkKey(digest, repository)
    if (this.#database.links.get(key)) {
      drop(this.#database.links, key)
      this.totals = { ...this.totals, links: this.totals.links - 1 }
      this.#countInRepository(repository, -1)
    }
    const start = tagsKey(digest, repository)
    const tags = [...this.#database.tags.getKeys({ start, end: keyAfter(start) })]
    for (const tag of tags) this.#untag(repository, tag)
  }

  #tag({ digest, repository, tag }: Extract<IndexChange, { change: 'tag' | 'untag' }>): void {
    const key = tagKey(digest, repository, tag)
    if (this.#database.tags.get(key)) return
    put(this.#database.tags, key, PRESENT)
    this.totals = { ...this.totals, tags: this.totals.tags + 1 }
    this.#countInRepository(repository, 1)
  }

  #untag(repository: RepositoryName, key: Buffer): void {
    if (!this.#database.tags.get(key)) return
    this.writes++
    drop(this.#database.tags, key)
    this.totals = { ...this.totals, tags: this.totals.tags - 1 }
    this.#countInRepository(repository, -1)
  }

  /** A repository has directories of its own as long as there is anything in them. */
  #countInRepository(repository: RepositoryName, by: 1 | -1): void {
    const { repositories } = this.#database
    const key = repositoryKey(repository)
    const before = countIn(repositories.get(key))
    const after = Math.max(0, before + by)
    if (after > 0) put(repositories, key, countValue(after))
    else drop(repositories, key)
    const difference = directoriesOf(repository) * (Number(after > 0) - Number(before > 0))
    this.totals = { ...this.totals, directories: this.totals.directories + difference }
  }

  #remove(digest: Digest): void {
    const before = this.#blob(digest)
    if (!before?.isStored) return
    for (const { key } of this.#linksOf(digest)) {
      const link = linkOfKey(key)
      if (link) this.#unlink(digest, link.repository)
    }
    this.#putBlob(digest, before, {
      ...before,
      isStored: false,
      allocatedBytes: 0,
      mayLackLink: false,
    })
    for (const child of this.#names(digest)) {
      this.#countNamed(child, -1, 0)
      takeOut(this.#database.named, child, digest)
    }
    drop(this.#database.names, digestKey(digest))
    for (const parent of digestsIn(this.#database.named.get(digestKey(digest)))) {
      // A manifest that was never here is known only for the sake of what refers to it.
      if (this.#blob(parent)?.isStored) continue
      takeOut(this.#database.names, parent, digest)
      takeOut(this.#database.named, digest, parent)
    }
  }

  #names(digest: Digest): Digest[] {
    return digestsIn(this.#database.names.get(digestKey(digest)))
  }

  #blob(digest: Digest): BlobRecord | undefined {
    return blobRecord(this.#database.blobs.get(digestKey(digest)))
  }

  #putBlob(digest: Digest, before: BlobRecord | undefined, after: BlobRecord): void {
    const { blobs, order } = this.#database
    this.writes += 3
    if (before?.isStored) drop(order, orderKey(digest, before))
    if (after.isStored) put(order, orderKey(digest, after), PRESENT)
    if (after.isStored || after.namedBy > 0) put(blobs, digestKey(digest), blobValue(after))
    else drop(blobs, digestKey(digest))
    const wasStored = before?.isStored ? 1 : 0
    const isStored = after.isStored ? 1 : 0
    const { allocatedBytes, blobs: count } = this.totals
    this.totals = {
      ...this.totals,
      blobs: count + isStored - wasStored,
      allocatedBytes:
        allocatedBytes +
        after.allocatedBytes * isStored -
        (before?.allocatedBytes ?? 0) * wasStored,
    }
  }

  /** A manifest with the indexes above it, and all that goes along with any of these. */
  #groupOf(digest: Digest): Set<Digest> {
    const { named } = this.#database
    return this.#reach(reach(digest, (from) => digestsIn(named.get(digestKey(from)))))
  }

  /** All that goes along, the start included. */
  #reach(start: Digest | Iterable<Digest>): Set<Digest> {
    return reach(start, (from) => this.#names(from))
  }
}

/** Those that a repository has beside those of its links and tags; of its name too, which it may share. */
export function directoriesOf(repository: RepositoryName): number {
  return repository.split('/').length + REPOSITORY_DIRECTORIES
}

const NAMED_ONLY: BlobRecord = {
  allocatedBytes: 0,
  isManifest: false,
  isStored: false,
  lastUsedMs: 0,
  mayLackLink: false,
  namedBy: 0,
}
