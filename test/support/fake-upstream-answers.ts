// The right answers: what a registry that follows the distribution-spec says. Pure; faults are applied to
// its results afterwards.
// https://github.com/opencontainers/distribution-spec/blob/main/spec.md#pull

import type { FakeUpstreamContent } from './fake-upstream-content.ts'
import { MEDIA_TYPES } from '../../src/oci/manifest.ts'
import type { UpstreamRequest } from './fake-upstream-requests.ts'

export type AnswerHeaders = Readonly<Record<string, string | readonly string[]>>

export interface Answer {
  readonly status: number
  readonly headers: AnswerHeaders
  /** Of a GET; a HEAD is answered with the same headers. */
  readonly body: Buffer
}

export interface AnswerOptions {
  /** False: the endpoint does not exist, as in registries before OCI 1.1. */
  readonly referrers: boolean
  readonly referrersPerPage: number
  /** Precedes paths that clients are sent to. */
  readonly pathPrefix: string
}

const EMPTY = Buffer.alloc(0)

/** Answers all but tokens and redirects. */
export function registryAnswer(
  request: UpstreamRequest,
  url: URL,
  content: FakeUpstreamContent,
  options: AnswerOptions,
): Answer {
  if (request.method !== 'GET' && request.method !== 'HEAD') {
    return errorAnswer(405, 'UNSUPPORTED', { Allow: 'GET, HEAD' })
  }
  const { kind, repository = '', reference = '' } = request
  switch (kind) {
    case 'ping':
      return jsonAnswer({})
    case 'manifest-tag':
    case 'manifest-digest':
      return manifestAnswer(content, repository, reference)
    case 'blob':
    case 'cdn':
      return blobAnswer(content, repository, reference)
    case 'tags':
      return tagsAnswer(content, repository, url, options)
    case 'referrers':
      return referrersAnswer(content, repository, reference, url, options)
    case 'token':
    case 'hop':
    case 'other':
      break
  }
  return NOT_HERE
}

/** What Go's mux says of a path that nobody serves. */
const NOT_HERE: Answer = {
  status: 404,
  headers: { 'Content-Type': 'text/plain; charset=utf-8', 'X-Content-Type-Options': 'nosniff' },
  body: Buffer.from('404 page not found\n'),
}

export function jsonAnswer(json: unknown, headers: AnswerHeaders = {}, status = 200): Answer {
  return {
    status,
    headers: { 'Content-Type': 'application/json', ...headers },
    body: Buffer.from(JSON.stringify(json)),
  }
}

export function errorAnswer(status: number, code: string, headers: AnswerHeaders = {}): Answer {
  const message = code.toLowerCase().replaceAll('_', ' ')
  return jsonAnswer({ errors: [{ code, message, detail: null }] }, headers, status)
}

export function redirectAnswer(location: string, status = 307): Answer {
  return { status, headers: { Location: location }, body: EMPTY }
}

function manifestAnswer(content: FakeUpstreamContent, name: string, reference: string): Answer {
  const manifest = content.manifest(name, reference)
  if (!manifest) {
    const known = content.tags(name) !== undefined
    return errorAnswer(404, known ? 'MANIFEST_UNKNOWN' : 'NAME_UNKNOWN')
  }
  const headers = {
    'Content-Type': manifest.mediaType,
    'Docker-Content-Digest': manifest.digest,
    ETag: `"${manifest.digest}"`,
  }
  return { status: 200, headers, body: manifest.bytes }
}

function blobAnswer(content: FakeUpstreamContent, name: string, digest: string): Answer {
  const blob = content.blob(name, digest)
  if (!blob) return errorAnswer(404, 'BLOB_UNKNOWN')
  const headers = {
    'Content-Type': 'application/octet-stream',
    'Accept-Ranges': 'bytes',
    'Docker-Content-Digest': digest,
    ETag: `"${digest}"`,
  }
  return { status: 200, headers, body: blob.bytes }
}

function tagsAnswer(
  content: FakeUpstreamContent,
  name: string,
  url: URL,
  { pathPrefix }: AnswerOptions,
): Answer {
  const all = content.tags(name)
  if (!all) return errorAnswer(404, 'NAME_UNKNOWN')
  const last = url.searchParams.get('last') ?? ''
  const count = url.searchParams.has('n') ? Number(url.searchParams.get('n')) : all.length
  if (!Number.isInteger(count) || count < 0) return errorAnswer(400, 'PAGINATION_NUMBER_INVALID')
  const after = all.filter((tag) => tag > last)
  const tags = after.slice(0, count)
  const query = new URLSearchParams({ last: tags.at(-1) ?? '', n: String(count) })
  const link = `<${pathPrefix}/v2/${name}/tags/list?${query.toString()}>; rel="next"`
  const hasMore = tags.length > 0 && tags.length < after.length
  return jsonAnswer({ name, tags }, hasMore ? { Link: link } : {})
}

interface ManifestJson {
  readonly subject?: { readonly digest?: string }
  readonly artifactType?: string
  readonly annotations?: object
  readonly config?: { readonly mediaType?: string }
}

function referrersAnswer(
  content: FakeUpstreamContent,
  name: string,
  subject: string,
  url: URL,
  { referrers, referrersPerPage, pathPrefix }: AnswerOptions,
): Answer {
  if (!referrers) return NOT_HERE
  const wantedType = url.searchParams.get('artifactType') ?? undefined
  const page = Number(url.searchParams.get('page') ?? 0)
  const all = content.manifests(name).flatMap(({ bytes, digest, mediaType }) => {
    const json = parsed(bytes)
    const artifactType = json.artifactType ?? json.config?.mediaType
    if (json.subject?.digest !== subject) return []
    if (wantedType !== undefined && artifactType !== wantedType) return []
    const { annotations } = json
    return [{ mediaType, size: bytes.length, digest, artifactType, annotations }]
  })
  // Infinity for "all on the first page": times 0 it is not a number.
  const start = page === 0 ? 0 : page * referrersPerPage
  const manifests = all.slice(start, start + referrersPerPage)
  const query = new URLSearchParams(url.searchParams)
  query.set('page', String(page + 1))
  const link = `<${pathPrefix}/v2/${name}/referrers/${subject}?${query.toString()}>; rel="next"`
  return jsonAnswer(
    { schemaVersion: 2, mediaType: MEDIA_TYPES.ociIndex, manifests },
    {
      'Content-Type': MEDIA_TYPES.ociIndex,
      ...(wantedType !== undefined && { 'OCI-Filters-Applied': 'artifactType' }),
      ...(start + referrersPerPage < all.length && { Link: link }),
    },
  )
}

function parsed(bytes: Buffer): ManifestJson {
  try {
    const json: ManifestJson = JSON.parse(bytes.toString())
    return json
  } catch {
    return {}
  }
}

/**
 * The part of a 200 that `range` asks for, as 206 or 416. Several ranges, and what is no range, get the
 * whole, as RFC 9110 §14.2 allows.
 *
 * @param shiftBytes moves the answered range away from the one asked for
 */
export function rangeAnswer(answer: Answer, range: string | undefined, shiftBytes = 0): Answer {
  const [, first, last] = /^bytes=(\d*)-(\d*)$/.exec(range ?? '') ?? []
  if (answer.status !== 200 || first === undefined || last === undefined) return answer
  const sizeBytes = answer.body.length
  if (first === '' && last === '') return answer
  const start = (first === '' ? Math.max(sizeBytes - Number(last), 0) : Number(first)) + shiftBytes
  const asked = first === '' || last === '' ? sizeBytes - 1 : Number(last) + shiftBytes
  if (asked < start && start < sizeBytes) return answer
  if (start >= sizeBytes) {
    return errorAnswer(416, 'RANGE_INVALID', { 'Content-Range': `bytes */${sizeBytes}` })
  }
  const end = Math.min(asked, sizeBytes - 1)
  return {
    status: 206,
    headers: { ...answer.headers, 'Content-Range': `bytes ${start}-${end}/${sizeBytes}` },
    body: answer.body.subarray(start, end + 1),
  }
}
