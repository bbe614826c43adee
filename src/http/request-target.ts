// What a request under /v2/ asks for. Names contain slashes, and a component may itself be called `manifests` or
// `blobs`; so the path is taken apart from its end. It is read raw: nothing is decoded but the colon of a digest.

import { parseDigest, type Digest } from '../oci/digest.ts'
import {
  parseReference,
  parseRepositoryName,
  type Reference,
  type RepositoryName,
} from '../oci/reference.ts'
import { RegistryError } from '../oci/registry-error.ts'

export type RequestTarget =
  | { readonly kind: 'base' }
  | { readonly kind: 'catalog' }
  | { readonly kind: 'manifest'; readonly name: RepositoryName; readonly reference: Reference }
  | { readonly kind: 'blob'; readonly name: RepositoryName; readonly digest: Digest }
  | { readonly kind: 'tags'; readonly name: RepositoryName }
  | { readonly kind: 'referrers'; readonly name: RepositoryName; readonly digest: Digest }

/**
 * @param path the request's path after `/v2/`, without the query
 * @returns undefined for a path that no registry has
 * @throws {RegistryError} NAME_INVALID, TAG_INVALID, DIGEST_INVALID
 */
export function parseTarget(path: string): RequestTarget | undefined {
  if (path === '') return { kind: 'base' }
  if (path === '_catalog') return { kind: 'catalog' }
  const plain = path.includes('%') ? path.replace(/%3A/gi, ':') : path
  const lastSlash = plain.lastIndexOf('/')
  const keywordSlash = plain.lastIndexOf('/', lastSlash - 1)
  if (keywordSlash < 0) return undefined
  const last = plain.slice(lastSlash + 1)
  const name = plain.slice(0, keywordSlash)
  switch (plain.slice(keywordSlash + 1, lastSlash)) {
    case 'manifests':
      return { kind: 'manifest', name: nameIn(name), reference: referenceIn(last) }
    case 'blobs':
      return { kind: 'blob', name: nameIn(name), digest: digestIn(last) }
    case 'referrers':
      return { kind: 'referrers', name: nameIn(name), digest: digestIn(last) }
    case 'tags':
      return last === 'list' ? { kind: 'tags', name: nameIn(name) } : undefined
    default:
      return undefined
  }
}

function nameIn(text: string): RepositoryName {
  const name = parseRepositoryName(text)
  if (!name) throw new RegistryError('NAME_INVALID', { detail: { name: text.slice(0, 255) } })
  return name
}

function referenceIn(text: string): Reference {
  const reference = parseReference(text)
  if (reference) return reference
  const code = text.includes(':') ? 'DIGEST_INVALID' : 'TAG_INVALID'
  throw new RegistryError(code, { detail: { reference: text.slice(0, 255) } })
}

function digestIn(text: string): Digest {
  const digest = parseDigest(text)
  if (!digest) throw new RegistryError('DIGEST_INVALID', { detail: { digest: text.slice(0, 255) } })
  return digest
}
