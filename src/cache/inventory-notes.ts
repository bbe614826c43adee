// What happened to stored content in the last seconds, until it is written into the index.

import type { Digest } from '../oci/digest.ts'
import type { RepositoryName, Tag } from '../oci/reference.ts'
import type { IndexChange } from '../storage/index/index-changes.ts'
import type { Link } from '../storage/repository-index.ts'

export type TagChange = Extract<IndexChange, { change: 'tag' | 'untag' }>

export interface Notes {
  readonly removed: Set<Digest>
  readonly unlinked: Map<string, Extract<IndexChange, { change: 'unlink' }>>
  readonly untagged: Map<string, TagChange>
  readonly uses: Map<string, { readonly link: Link; atMs: number }>
  /** Of the uses. */
  readonly used: Set<Digest>
  readonly stored: Map<Digest, Extract<IndexChange, { change: 'store' }>>
  /** By link, then by tag. */
  readonly tags: Map<string, Map<Tag, TagChange>>
  readonly names: Map<Digest, { readonly names: Set<Digest>; readonly manifests: Set<Digest> }>
  /** What they add to what is stored; an estimate, and rather too much. */
  bytes: number
}

export function emptyNotes(): Notes {
  return {
    removed: new Set(),
    unlinked: new Map(),
    untagged: new Map(),
    tags: new Map(),
    stored: new Map(),
    names: new Map(),
    uses: new Map(),
    used: new Set(),
    bytes: 0,
  }
}

/** What happened after what. The older ones are not to be used any more. */
export function inSequence(older: Notes, newer: Notes): Notes {
  const { bytes, names, removed, stored, tags, unlinked, untagged, used, uses } = older
  for (const digest of newer.removed) stored.delete(digest)
  for (const key of newer.unlinked.keys()) {
    uses.delete(key)
    tags.delete(key)
  }
  for (const { digest, repository, tag } of newer.untagged.values()) {
    tags.get(keyOf(digest, repository))?.delete(tag)
  }
  for (const [key, added] of newer.tags) {
    tags.set(key, new Map([...(tags.get(key) ?? []), ...added]))
  }
  return {
    removed: new Set([...removed, ...newer.removed]),
    unlinked: new Map([...unlinked, ...newer.unlinked]),
    untagged: new Map([...untagged, ...newer.untagged]),
    tags,
    stored: new Map([...stored, ...newer.stored]),
    names: new Map([...names, ...newer.names]),
    uses: new Map([...uses, ...newer.uses]),
    used: new Set([...used, ...newer.used]),
    bytes: bytes + newer.bytes,
  }
}

/**
 * What is gone first: it may have come again since. Bytes before what they name, and uses last: using a manifest
 * renews what it is known to name.
 */
export function changesOf({
  names,
  removed,
  stored,
  tags,
  unlinked,
  untagged,
  uses,
}: Notes): IndexChange[] {
  return [
    ...[...removed].map((digest) => ({ change: 'remove', digest }) as const),
    ...unlinked.values(),
    ...untagged.values(),
    ...stored.values(),
    ...[...tags.values()].flatMap((each) => [...each.values()]),
    ...[...names].map(([digest, note]) => {
      return {
        change: 'name',
        digest,
        names: [...note.names],
        manifests: [...note.manifests],
      } as const
    }),
    ...[...uses.values()].map(({ atMs, link }) => ({ change: 'use', link, atMs }) as const),
  ]
}

/** Notes are of the last seconds, so few; and most often none is of this digest. */
export function isUsedBy(
  { used, uses }: Notes,
  digest: Digest,
  isWanted: (repository: RepositoryName) => boolean,
): boolean {
  if (!used.has(digest)) return false
  for (const { link } of uses.values()) {
    if (link.digest === digest && isWanted(link.repository)) return true
  }
  return false
}

export function isEmpty(notes: Notes): boolean {
  const { names, removed, stored, tags, unlinked, untagged, uses } = notes
  return [names, removed, stored, tags, unlinked, untagged, uses].every(({ size }) => size === 0)
}

export function keyOf(digest: Digest, repository: RepositoryName): string {
  return `${digest} ${repository}`
}
