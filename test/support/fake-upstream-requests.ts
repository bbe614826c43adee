// What a request to the fake upstream asks for, and which requests a fault, a gate or a count means.

import type { IncomingHttpHeaders } from 'node:http'

/** `cdn`: blob bytes behind a redirect; `hop`: a step of a redirect chain that a fault has made. */
export type RequestKind =
  | 'ping'
  | 'manifest-tag'
  | 'manifest-digest'
  | 'blob'
  | 'tags'
  | 'referrers'
  | 'token'
  | 'cdn'
  | 'hop'
  | 'other'

export interface UpstreamRequest {
  readonly method: string
  readonly kind: RequestKind
  /** For a token: that of its scope. */
  readonly repository: string | undefined
  /** A tag or a digest; for a token, its scope. */
  readonly reference: string | undefined
  /** As sent, with the query. */
  readonly path: string
  readonly headers: IncomingHttpHeaders
  /** Of the answer; undefined until its headers are sent. */
  status: number | undefined
}

/** What is given must be equal; what is left out matches anything. */
export interface RequestMatch {
  readonly method?: string
  readonly kind?: RequestKind | readonly RequestKind[]
  readonly repository?: string
  readonly reference?: string
}

export function matches(match: RequestMatch, request: UpstreamRequest): boolean {
  const kinds = match.kind === undefined ? [request.kind] : [match.kind].flat()
  return (
    kinds.includes(request.kind) &&
    (match.method === undefined || match.method === request.method) &&
    (match.repository === undefined || match.repository === request.repository) &&
    (match.reference === undefined || match.reference === request.reference)
  )
}

type Target = Pick<UpstreamRequest, 'kind' | 'repository' | 'reference'>

/** Parsed from the right, since names have slashes too. */
const ROUTES: readonly (readonly [RegExp, (name: string, rest: string) => Target])[] = [
  [
    /^\/v2\/(.+)\/manifests\/([^/]+)$/,
    (repository, reference) => ({
      kind: reference.includes(':') ? 'manifest-digest' : 'manifest-tag',
      repository,
      reference,
    }),
  ],
  [
    /^\/v2\/(.+)\/blobs\/([^/]+)$/,
    (repository, reference) => ({ kind: 'blob', repository, reference }),
  ],
  [
    /^\/v2\/(.+)\/tags\/list()$/,
    (repository) => ({ kind: 'tags', repository, reference: undefined }),
  ],
  [
    /^\/v2\/(.+)\/referrers\/([^/]+)$/,
    (repository, reference) => ({ kind: 'referrers', repository, reference }),
  ],
  [/^\/cdn\/(.+)\/([^/]+)$/, (repository, reference) => ({ kind: 'cdn', repository, reference })],
]

/** What `url` asks for; a prefix that is configured is no part of it any more. */
export function targetOf(url: URL): Target {
  const path = decodeURIComponent(url.pathname)
  if (path === '/v2/' || path === '/v2') return bare('ping')
  if (path === '/token') {
    const scope = url.searchParams.get('scope') ?? undefined
    return { kind: 'token', repository: scope?.split(':')[1], reference: scope }
  }
  const hop = /^\/hop\/\d+(\/.*)$/.exec(path)
  if (hop?.[1]) return { ...targetOf(new URL(hop[1], url)), kind: 'hop' }
  for (const [pattern, target] of ROUTES) {
    const match = pattern.exec(path)
    if (match) return target(match[1] ?? '', match[2] ?? '')
  }
  return bare('other')
}

function bare(kind: RequestKind): Target {
  return { kind, repository: undefined, reference: undefined }
}
