// The /v2 wire: what registry:2 answers on a hit, and better on a miss. Reading only: everything that would
// write is refused before its body is read. Answers go straight to Node's response (see exchange.ts); the other
// routes of this server are Hono's (see app.ts).

import type { BlobAnswer, BlobInfoAnswer, Freshness, ManifestAnswer } from '../cache/answer.ts'
import type { BlobCache } from '../cache/blob-cache.ts'
import type { ListingCache, Page } from '../cache/listing-cache.ts'
import type { ManifestCache } from '../cache/manifest-cache.ts'
import type { Address, Repositories, Repository } from '../cache/repositories.ts'
import type { Upstreams } from '../cache/upstreams.ts'
import type { Clock } from '../clock.ts'
import type { Digest } from '../oci/digest.ts'
import { MEDIA_TYPES } from '../oci/manifest.ts'
import { formatReference, type Reference, type RepositoryName } from '../oci/reference.ts'
import { RegistryError } from '../oci/registry-error.ts'
import { parseRegistryHost, type RegistryHost } from '../oci/registry-host.ts'
import type { Exchange, HandlerName, HeaderList } from './exchange.ts'
import { addFreshness } from './freshness-headers.ts'
import { matchesNone, selectRange, type ByteRange } from './range.ts'
import { findBase, parseTarget } from './request-target.ts'
import { sendBytes } from './send-bytes.ts'
import { checkedVia } from './via.ts'

/** Page of `_catalog` when the client does not ask for a size. */
const CATALOG_PAGE_DEFAULT = 100
/** As registry:2 sends it: a digest's content never changes. */
const BLOB_CACHE_CONTROL = 'max-age=31536000'

export interface RegistryRoutesDeps {
  readonly clock: Clock
  readonly repositories: Repositories
  readonly manifests: ManifestCache
  readonly blobs: BlobCache
  readonly listings: ListingCache
  readonly upstreams: Upstreams
}

export interface RegistryRoutesOptions {
  /** `http.prefix`: empty, or `/x` without a trailing slash. */
  readonly prefix: string
  readonly catalogEntriesMax: number
  readonly tagsMax: number
  /** What this cache calls itself in `Via`. */
  readonly viaName: string
}

/** A request, and what it says about the registry that it is for. */
interface Asked {
  readonly exchange: Exchange
  readonly query: URLSearchParams | undefined
  readonly address: Address
  /** What every path of that registry starts with here. */
  readonly basePath: string
}

export class RegistryRoutes {
  readonly #deps: RegistryRoutesDeps
  readonly #options: RegistryRoutesOptions

  constructor(deps: RegistryRoutesDeps, options: RegistryRoutesOptions) {
    this.#deps = deps
    this.#options = options
  }

  /** Whether a request is for these routes. */
  matches(url: string): boolean {
    return findBase(pathOf(url), this.#options.prefix) !== undefined
  }

  /**
   * Answers. Without waiting where memory suffices.
   *
   * @throws {RegistryError} and whatever a bug throws; if the headers are out, the connection is ended
   */
  handle(exchange: Exchange): void | Promise<void> {
    const { method, url = '' } = exchange.request
    if (method !== 'GET' && method !== 'HEAD') throw new RegistryError('UNSUPPORTED')
    const queryAt = url.indexOf('?')
    const query = queryAt < 0 ? undefined : new URLSearchParams(url.slice(queryAt + 1))
    const path = queryAt < 0 ? url : ownCopy(url.slice(0, queryAt))
    const base = findBase(path, this.#options.prefix)
    if (base && path.length < base.path.length) {
      exchange.send(301, ['Location', base.path])
      return
    }
    const target = base && parseTarget(path.slice(base.path.length))
    if (!target) throw new RegistryError('NAME_UNKNOWN', { detail: { path: path.slice(0, 255) } })
    exchange.handler = target.kind
    const address = addressOf(exchange, base.registry, query)
    const asked: Asked = { exchange, query, address, basePath: base.path }
    switch (target.kind) {
      case 'base':
        this.#deps.repositories.scopeOf(address)
        exchange.send(200, ['Content-Type', 'application/json'], '{}')
        return
      case 'catalog':
        return this.#catalog(asked)
      case 'manifest':
        return this.#manifest(exchange, this.#locate(asked, target.name), target.reference)
      case 'blob':
        return this.#blob(exchange, this.#locate(asked, target.name), target.digest)
      case 'tags':
        return this.#tags(asked, target.name)
      case 'referrers':
        return this.#referrers(asked, target.name, target.digest)
    }
  }

  #locate({ address, exchange }: Asked, name: RepositoryName): Repository {
    const trace = { via: exchange.header('via'), userAgent: exchange.header('user-agent') }
    const via = checkedVia(trace, this.#options.viaName)
    const code = exchange.handler === 'blob' ? 'BLOB_UNKNOWN' : 'MANIFEST_UNKNOWN'
    const repository = this.#deps.repositories.locate(address, name, code, via)
    exchange.repository = repository.storedName
    exchange.upstream = repository.upstream.name
    exchange.upstreamLabel = repository.upstream.label
    exchange.namespace = repository.namespace
    return repository
  }

  #manifest(
    exchange: Exchange,
    repository: Repository,
    reference: Reference,
  ): void | Promise<void> {
    const { manifests } = this.#deps
    const { deadlineMs } = exchange
    exchange.reference = formatReference(reference)
    const answer =
      reference.kind === 'tag'
        ? manifests.byTag(repository, reference.tag, deadlineMs)
        : manifests.byDigest(repository, reference.digest, deadlineMs)
    if (reference.kind === 'tag' && !acceptsLists(exchange)) {
      return this.#withoutList(exchange, repository, answer)
    }
    return answer instanceof Promise
      ? answer.then((late) => this.#sendManifest(exchange, late))
      : this.#sendManifest(exchange, answer)
  }

  /** A client from before manifest lists gets the image for linux/amd64, as registry:2 gives it. */
  async #withoutList(
    exchange: Exchange,
    repository: Repository,
    pending: ManifestAnswer | Promise<ManifestAnswer>,
  ): Promise<void> {
    const { manifests } = this.#deps
    const answer = await pending
    const isList = answer.mediaType === MEDIA_TYPES.dockerList
    const image = isList && (await manifests.amd64Of(repository, answer, exchange.deadlineMs))
    this.#sendManifest(exchange, image || answer)
  }

  #sendManifest(exchange: Exchange, { bytes, digest, freshness, mediaType }: ManifestAnswer): void {
    exchange.digest = digest
    const headers = ['Content-Type', mediaType, 'Docker-Content-Digest', digest]
    headers.push('Etag', `"${digest}"`)
    this.#addFreshness(exchange, freshness, headers)
    const isChanged = matchesNone(exchange.header('if-none-match'), digest)
    exchange.send(isChanged ? 200 : 304, headers, bytes)
  }

  #blob(exchange: Exchange, repository: Repository, digest: Digest): void | Promise<void> {
    exchange.digest = digest
    if (exchange.isHead) {
      const answer = this.#deps.blobs.info(repository, digest, exchange.deadlineMs)
      const send = ({ freshness, sizeBytes }: BlobInfoAnswer): void => {
        const headers = this.#blobHeaders(exchange, digest, freshness)
        const { part, status } = selectPart(exchange, digest, sizeBytes, headers)
        if (status !== 304) addLength(headers, part)
        exchange.begin(status, headers)
        exchange.response.end()
      }
      return answer instanceof Promise ? answer.then(send) : send(answer)
    }
    const answer = this.#deps.blobs.get(repository, digest, exchange.deadlineMs)
    return answer instanceof Promise
      ? answer.then((late) => this.#sendBlob(exchange, digest, late))
      : this.#sendBlob(exchange, digest, answer)
  }

  #sendBlob(exchange: Exchange, digest: Digest, answer: BlobAnswer): void | Promise<void> {
    const headers = this.#blobHeaders(exchange, digest, answer.freshness)
    const { part, status } = selectPart(exchange, digest, answer.sizeBytes, headers)
    if (status === 200 || status === 206) {
      return this.#sendPart(exchange, answer, { headers, part, status })
    }
    answer.discard()
    if (status === 416 && answer.confirmed) {
      // Beyond an end that is only announced: if that is wrong, the range is right.
      return answer.confirmed().then(() => exchange.send(status, headers))
    }
    exchange.send(status, headers)
  }

  #sendPart(
    exchange: Exchange,
    answer: BlobAnswer,
    { headers, part, status }: { headers: HeaderList; part: ByteRange; status: number },
  ): void | Promise<void> {
    const bytes = answer.open(part.first, part.last)
    if (Buffer.isBuffer(bytes)) {
      exchange.send(status, headers, bytes.subarray(part.first, part.last + 1))
      return
    }
    addLength(headers, part)
    exchange.begin(status, headers)
    return sendBytes(exchange.response, bytes, part, (count) => {
      exchange.sentBytes += count
    })
  }

  #blobHeaders(exchange: Exchange, digest: Digest, freshness: Freshness): HeaderList {
    const headers = ['Accept-Ranges', 'bytes', 'Cache-Control', BLOB_CACHE_CONTROL]
    headers.push('Content-Type', 'application/octet-stream')
    headers.push('Docker-Content-Digest', digest, 'Etag', `"${digest}"`)
    return this.#addFreshness(exchange, freshness, headers)
  }

  async #tags(asked: Asked, name: RepositoryName): Promise<void> {
    const { exchange, query } = asked
    const repository = this.#locate(asked, name)
    const count = countIn(query)
    const page: Page = {
      // Renovate asks for 10,000 at a time; a shorter page with a link is what the specification offers.
      count: count === undefined ? undefined : Math.min(count, this.#options.tagsMax),
      last: query?.get('last') ?? undefined,
    }
    const isEmpty = page.count === 0
    const { freshness, next, tags } = await this.#deps.listings.tags(
      repository,
      isEmpty ? { ...page, count: undefined } : page,
    )
    const headers = this.#addFreshness(exchange, freshness, [])
    if (next && !isEmpty) headers.push('Link', linkTo(asked, `${name}/tags/list`, pageQuery(next)))
    // The name as the client spelled it: that is the one it knows.
    exchange.sendJson(200, headers, { name, tags: isEmpty ? [] : tags })
  }

  async #catalog(asked: Asked): Promise<void> {
    const { address, exchange, query } = asked
    const { listings, repositories: all, upstreams } = this.#deps
    const scope = all.scopeOf(address)
    const count = countIn(query) ?? Math.min(CATALOG_PAGE_DEFAULT, this.#options.catalogEntriesMax)
    if (count > this.#options.catalogEntriesMax) {
      throw new RegistryError('PAGINATION_NUMBER_INVALID', { detail: { n: count } })
    }
    const last = query?.get('last') ?? undefined
    const { next, repositories } = await listings.catalog(
      { count, last },
      scope && ((storedName) => upstreams.nameAt(scope, storedName)),
    )
    const headers = next ? ['Link', linkTo(asked, '_catalog', pageQuery(next))] : []
    exchange.sendJson(200, headers, { repositories })
  }

  async #referrers(asked: Asked, name: RepositoryName, digest: Digest): Promise<void> {
    const { exchange, query } = asked
    const repository = this.#locate(asked, name)
    exchange.digest = digest
    const artifactType = query?.get('artifactType') ?? undefined
    const page = query?.get('page') ?? undefined
    const answer = await this.#deps.listings.referrers(repository, digest, { artifactType, page })
    const headers = this.#addFreshness(exchange, answer.freshness, [])
    headers.push('Content-Type', MEDIA_TYPES.ociIndex)
    if (answer.filtersApplied) headers.push('OCI-Filters-Applied', answer.filtersApplied)
    if (answer.nextPage !== undefined) {
      const parameters = new URLSearchParams({ page: answer.nextPage })
      if (artifactType !== undefined) parameters.set('artifactType', artifactType)
      headers.push('Link', linkTo(asked, `${name}/referrers/${digest}`, parameters))
    }
    exchange.send(200, headers, answer.bytes)
  }

  #addFreshness(exchange: Exchange, freshness: Freshness, headers: HeaderList): HeaderList {
    exchange.freshness = freshness
    return addFreshness(headers, freshness, this.#deps.clock.now())
  }
}

/** @throws {RegistryError} for an `ns` that is no registry's name */
function addressOf(
  { boundUpstream, handler, request }: Exchange,
  prefix: RegistryHost | undefined,
  query: URLSearchParams | undefined,
): Address {
  const [ns, otherNs] = query ? namedIn(query, handler) : []
  return { bound: boundUpstream, host: request.headers.host, prefix, ns, otherNs }
}

/** @throws {RegistryError} for what is no registry's name */
function namedIn(query: URLSearchParams, handler: HandlerName): Set<RegistryHost> {
  const named = new Set<RegistryHost>()
  for (const text of query.getAll('ns')) {
    const host = parseRegistryHost(text)
    if (host) named.add(host)
    if (host || text === '') continue
    const code = handler === 'blob' ? 'BLOB_UNKNOWN' : 'MANIFEST_UNKNOWN'
    const reason = `this cache does not serve the registry ${text.slice(0, 255)}`
    throw new RegistryError(code, { detail: { reason } })
  }
  return named
}

/** To the next page, addressed as this one was. */
function linkTo({ address, basePath }: Asked, path: string, parameters: URLSearchParams): string {
  if (address.ns) parameters.set('ns', address.ns)
  return `<${basePath}${path}?${parameters.toString()}>; rel="next"`
}

/** Which part of a blob is asked for, and how it is answered. Adds `Content-Range` to the headers. */
function selectPart(
  exchange: Exchange,
  digest: Digest,
  sizeBytes: number,
  headers: HeaderList,
): { status: 200 | 206 | 304 | 416; part: ByteRange } {
  const nothing = { first: 0, last: -1 }
  if (!matchesNone(exchange.header('if-none-match'), digest)) return { status: 304, part: nothing }
  const { range: rangeHeader } = exchange.request.headers
  const content = { etag: `"${digest}"`, sizeBytes }
  const range = selectRange(rangeHeader, exchange.header('if-range'), content)
  if (range === 'whole') return { status: 200, part: { first: 0, last: sizeBytes - 1 } }
  if (range === 'unsatisfiable') {
    headers.push('Content-Range', `bytes */${sizeBytes}`)
    return { status: 416, part: nothing }
  }
  headers.push('Content-Range', `bytes ${range.first}-${range.last}/${sizeBytes}`)
  return { status: 206, part: range }
}

function addLength(headers: HeaderList, { first, last }: ByteRange): void {
  headers.push('Content-Length', String(last - first + 1))
}

/** A part of a string keeps the whole of it: names are remembered for long, and a query may be 16 KiB. */
function ownCopy(part: string): string {
  return Buffer.from(part, 'latin1').toString('latin1')
}

function pathOf(url: string): string {
  const queryAt = url.indexOf('?')
  return queryAt < 0 ? url : url.slice(0, queryAt)
}

function pageQuery({ count, last }: Page): URLSearchParams {
  const parameters = new URLSearchParams()
  if (last !== undefined) parameters.set('last', last)
  if (count !== undefined) parameters.set('n', String(count))
  return parameters
}

function countIn(query: URLSearchParams | undefined): number | undefined {
  const text = query?.get('n')
  if (text === null || text === undefined || text === '') return undefined
  if (!/^\d{1,9}$/.test(text)) {
    throw new RegistryError('PAGINATION_NUMBER_INVALID', { detail: { n: text.slice(0, 32) } })
  }
  return Number(text)
}

/** No `Accept` at all (curl) takes anything. */
function acceptsLists(exchange: Exchange): boolean {
  const accept = exchange.header('accept')
  if (accept === undefined || accept === '') return true
  return accept.includes('*/*') || accept.includes('application/*') || accept.includes('list.v2')
}
