// What a purge is for, from what an operator asks. All conditions that are given have to be met. An image or a
// repository that is named in full is meant, whether or not it is pinned; a pattern, an upstream or an age is not
// that: what is pinned stays, unless force says otherwise.

import { parseDigest, type Digest } from '../../oci/digest.ts'
import { parsePattern, type Pattern } from '../../oci/pattern.ts'
import { parseTag, type RepositoryName } from '../../oci/reference.ts'
import type { StoredNames } from './stored-names.ts'

export interface PurgeRequest {
  /** `repository`, `repository:tag` or `repository@sha256:…`; with wildcards in both parts. */
  readonly image?: string | undefined
  /** A repository, or a pattern for repositories. */
  readonly repository?: string | undefined
  readonly upstream?: string | undefined
  readonly unusedForMs?: number | undefined
  /** What is pinned goes too. */
  readonly isForced?: boolean | undefined
}

/** A request that makes no sense; the message says what would. */
export class PurgeRequestError extends Error {
  override readonly name = 'PurgeRequestError'
}

/** Part of a repository. */
export type PurgeRoot =
  | { readonly kind: 'digest'; readonly digest: Digest }
  | { readonly kind: 'tags'; readonly matches: Pattern }

export interface PurgeSelection {
  /** When one is named in full. */
  readonly repository: RepositoryName | undefined
  /** Undefined: all that a repository has. */
  readonly root: PurgeRoot | undefined
  /** Only what was last used before; undefined: whenever it was. */
  readonly usedBeforeMs: number | undefined
  readonly includesPinned: boolean
  /** Whether bytes that no repository holds are meant too. */
  readonly includesUnlinked: boolean
  matchesRepository(repository: RepositoryName): boolean
}

interface Target {
  /** Undefined: it is a pattern. */
  readonly repository: RepositoryName | undefined
  readonly matches: (repository: RepositoryName) => boolean
  readonly root: PurgeRoot | undefined
  readonly isExact: boolean
}

/** Anything, of any repository. */
const EVERYTHING: Target = {
  repository: undefined,
  matches: () => true,
  root: undefined,
  isExact: false,
}

/** @throws {PurgeRequestError} */
export function selectionOf(
  request: PurgeRequest,
  { names, nowMs }: { names: StoredNames; nowMs: number },
): PurgeSelection {
  const { image, repository, unusedForMs, upstream } = request
  if (image !== undefined && repository !== undefined) {
    throw new PurgeRequestError('expected either an image or a repository, got both')
  }
  if ([image, repository, upstream, unusedForMs].every((part) => part === undefined)) {
    throw new PurgeRequestError(
      'nothing selected: name an image, a repository, an upstream, or a time without use',
    )
  }
  const target = targetOf(request, names)
  const includesUnlinked = [image, repository, upstream].every((part) => part === undefined)
  return {
    repository: target.repository,
    root: target.root,
    usedBeforeMs: unusedForMs === undefined ? undefined : nowMs - unusedForMs,
    includesPinned: target.isExact || request.isForced === true,
    includesUnlinked,
    matchesRepository: (name) =>
      target.matches(name) &&
      (upstream === undefined || names.isSameUpstream(names.upstreamOf(name), upstream)),
  }
}

function targetOf({ image, repository }: PurgeRequest, names: StoredNames): Target {
  if (repository !== undefined) return repositoryTarget(repository, undefined, names)
  if (image === undefined) return EVERYTHING
  const at = image.indexOf('@')
  if (at >= 0) {
    const digest = parseDigest(image.slice(at + 1))
    if (!digest) throw new PurgeRequestError(`${image}: expected sha256:<64 digits> after the @`)
    return repositoryTarget(image.slice(0, at), { kind: 'digest', digest }, names)
  }
  // A colon before the last slash is that of a port.
  const colon = image.indexOf(':', image.lastIndexOf('/') + 1)
  if (colon < 0) return repositoryTarget(image, undefined, names)
  const tag = image.slice(colon + 1)
  const matches = parsePattern(tag)
  if (!matches || tag.includes('/')) throw new PurgeRequestError(`${image}: ${tag} is no tag`)
  const target = repositoryTarget(image.slice(0, colon), { kind: 'tags', matches }, names)
  return { ...target, isExact: target.isExact && parseTag(tag) !== undefined }
}

function repositoryTarget(text: string, root: PurgeRoot | undefined, names: StoredNames): Target {
  if (!/[*?]/.test(text)) {
    const repository = names.storedNameOf(text)
    if (!repository) throw new PurgeRequestError(`${text} is no name of a repository`)
    return { repository, matches: (name) => name === repository, root, isExact: true }
  }
  const matches = parsePattern(names.storedTextOf(text))
  if (!matches) throw new PurgeRequestError(`${text} is no pattern for repositories`)
  return { repository: undefined, matches, root, isExact: false }
}
