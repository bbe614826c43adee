// Repository names and references: the grammar of the distribution-spec, parsed once at the edge.
// What has the type is safe in a path and in an upstream URL: no `..`, no empty part, no `%`, no NUL.

import { parseDigest, type Digest } from './digest.ts'

/** For example `library/alpine`. At most 255 characters. */
export type RepositoryName = string & { readonly __brand: 'RepositoryName' }

/** For example `3.20`. At most 128 characters. */
export type Tag = string & { readonly __brand: 'Tag' }

export type Reference =
  { readonly kind: 'tag'; readonly tag: Tag } | { readonly kind: 'digest'; readonly digest: Digest }

/** Of a repository's name. */
export const NAME_LENGTH_MAX = 255
const NAME = /^[a-z0-9]+(?:(?:\.|_|__|-+)[a-z0-9]+)*(?:\/[a-z0-9]+(?:(?:\.|_|__|-+)[a-z0-9]+)*)*$/
const TAG = /^[a-zA-Z0-9_][a-zA-Z0-9._-]{0,127}$/

/** @see https://github.com/opencontainers/distribution-spec/blob/main/spec.md#pulling-manifests */
export function parseRepositoryName(text: string): RepositoryName | undefined {
  return text.length <= NAME_LENGTH_MAX && NAME.test(text) ? (text as RepositoryName) : undefined
}

/**
 * What repository names are sorted by: registry compares them component by component, so that `a/b` comes
 * before `a-b`.
 */
export function sortKeyOf(name: string): string {
  return name.replaceAll('/', '\u0000')
}

export function parseTag(text: string): Tag | undefined {
  return TAG.test(text) ? (text as Tag) : undefined
}

/**
 * What a tag such as `sha256-<hex>.sig` belongs to: where signatures, attestations and referrers are kept by
 * registries that have no referrers API.
 *
 * @see https://github.com/opencontainers/distribution-spec/blob/main/spec.md#referrers-tag-schema
 */
export function subjectOfTag(tag: Tag): Digest | undefined {
  const match = /^(sha\d+)-([0-9a-f]+)(?:\.\w+)?$/.exec(tag)
  return match ? parseDigest(`${match[1]}:${match[2]}`) : undefined
}

/** What follows `/manifests/`: anything with a colon can only be a digest. */
export function parseReference(text: string): Reference | undefined {
  if (text.includes(':')) {
    const digest = parseDigest(text)
    return digest && { kind: 'digest', digest }
  }
  const tag = parseTag(text)
  return tag && { kind: 'tag', tag }
}

export function formatReference(reference: Reference): string {
  return reference.kind === 'tag' ? reference.tag : reference.digest
}
