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
import { parsePathName, pathNameOf, type RegistryHost } from '../oci/registry-host.ts'

export type RequestTarget =
  | { readonly kind: 'base' }
  | { readonly kind: 'catalog' }
  | { readonly kind: 'manifest'; readonly name: RepositoryName; readonly reference: Reference }
  | { readonly kind: 'blob'; readonly name: RepositoryName; readonly digest: Digest }
  | { readonly kind: 'tags'; readonly name: RepositoryName }
  | { readonly kind: 'referrers'; readonly name: RepositoryName; readonly digest: Digest }

/** Where the registry's own part of a path begins. */
export interface RegistryBase {
  /** All up to and including `/v2/`. */
  readonly path: string
  /** The registry that stands before it, as in `/ghcr.io/v2/`. */
  readonly registry: RegistryHost | undefined
}

/**
 * @param path the request's, without the query
 * @param prefix `http.prefix`: empty, or `/x`
 * @returns undefined for what is not the registry's
 */
export function findBase(path: string, prefix: string): RegistryBase | undefined {
  const usual = `${prefix}/v2/`
  if (path.startsWith(usual) || path === usual.slice(0, -1)) {
    return { path: usual, registry: undefined }
  }
  if (!path.startsWith(`${prefix}/`)) return undefined
  const [, component = ''] = /^([^/]+)\/v2(?:\/|$)/.exec(path.slice(prefix.length + 1)) ?? []
  const registry = parsePathName(component)
  return registry && { path: `${prefix}/${component}/v2/`, registry }
}

/**
 * @param path the request's path after `/v2/`, without the query
 * @returns undefined for a path that no registry has
 * @throws {RegistryError} NAME_INVALID, DIGEST_INVALID, MANIFEST_UNKNOWN for what cannot be a tag, NAME_UNKNOWN for a
 *   name that begins with a host and its port
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
  if (name) return name
  const [first = ''] = text.split('/', 1)
  const host = first.includes(':') && parsePathName(first)
  if (host) {
    // Clients go elsewhere after 404 only.
    const reason = `here a registry with a port is written ${pathNameOf(host)}`
    throw new RegistryError('NAME_UNKNOWN', { detail: { reason } })
  }
  throw new RegistryError('NAME_INVALID', { detail: { name: text.slice(0, 255) } })
}

function referenceIn(text: string): Reference {
  const reference = parseReference(text)
  if (reference) return reference
  // No registry has such a tag, and the specification's own tests want to hear just that.
  const code = text.includes(':') ? 'DIGEST_INVALID' : 'MANIFEST_UNKNOWN'
  throw new RegistryError(code, { detail: { invalidReference: text.slice(0, 255) } })
}

function digestIn(text: string): Digest {
  const digest = parseDigest(text)
  if (!digest) throw new RegistryError('DIGEST_INVALID', { detail: { digest: text.slice(0, 255) } })
  return digest
}
