// The remote registry, as this cache sees it: pull-only, one client per upstream. Says what the upstream
// said, typed and bounded; verifies nothing (digests are the caller's to check) and remembers no content.

import { setMaxListeners } from 'node:events'
import type { Clock } from '../clock.ts'
import { DOCKER_HUB_NAMES } from '../oci/registry-host.ts'
import type { Digest } from '../oci/digest.ts'
import { MANIFEST_ACCEPT, MANIFEST_SIZE_MAX_BYTES, MEDIA_TYPES } from '../oci/manifest.ts'
import { parseTag, type RepositoryName } from '../oci/reference.ts'
import {
  contentDigest,
  contentLength,
  contentRange,
  mediaType,
  nextPageQuery,
  nextTagsCursor,
  pageMarkerOf,
} from './answer-headers.ts'
import { CallBudget } from './call-budget.ts'
import type {
  BlobOptions,
  CallOptions,
  ManifestHead,
  OpenRegistry,
  ReferrersOptions,
  ReferrersPage,
  TagsOptions,
  TagsPage,
  UpstreamBlob,
  UpstreamManifest,
} from './remote-registry.ts'
import { decoded, discard, drop, isEncoded, parseObject, readContent } from './response-body.ts'
import type { TransportResponse } from './transport.ts'
import { UpstreamError } from './upstream-error.ts'
import {
  UpstreamSession,
  type Call,
  type UpstreamDeps,
  type UpstreamOptions,
} from './upstream-session.ts'
import { warmUpHttp } from './warm-up.ts'

export type { UpstreamDeps, UpstreamOptions } from './upstream-session.ts'

/** Clients give up after 30 s without headers: by then they must have ours. */
export const CALL_LIMIT_MS = 25_000

/** A hundred thousand long tags. */
const TAGS_SIZE_MAX_BYTES = 16 * 1024 * 1024

/** An index is a manifest, and clients read no larger one. */
const REFERRERS_SIZE_MAX_BYTES = MANIFEST_SIZE_MAX_BYTES

/** What upstreams answer that know HEAD for blobs not at all, or not for everyone. */
const HEAD_REFUSED: ReadonlySet<number | undefined> = new Set([401, 403, 405, 501])

/**
 * Every call has its headers within its limit, retries and token included (and its whole body, unless that is a
 * blob's), and before its `deadlineMs`, or fails with an `UpstreamError`; once `signal` is aborted, with the
 * signal's reason.
 */
export class UpstreamClient implements OpenRegistry {
  readonly name: string
  readonly isDockerHub: boolean
  readonly #clock: Clock
  readonly #session: UpstreamSession
  readonly #closing = new AbortController()
  readonly #callLimitMs: number
  #refusesHeadBlob = false
  /** It denies by HEAD what it gives to a GET, as caches do that fetch for a GET only (Harbor). */
  #hidesFromHead = false

  /**
   * @throws {TypeError} if `remoteUrl` is not a URL
   * @throws {CredentialsError} if a credential helper cannot be one
   */
  constructor(deps: UpstreamDeps, options: UpstreamOptions) {
    this.name = options.name
    this.isDockerHub = DOCKER_HUB_NAMES.has(new URL(options.remoteUrl).hostname)
    this.#clock = deps.clock
    this.#callLimitMs = options.callLimitMs ?? CALL_LIMIT_MS
    // One listener for each call that runs: many are no leak.
    setMaxListeners(0, this.#closing.signal)
    const { isDockerHub } = this
    const { signal: closing } = this.#closing
    this.#session = new UpstreamSession(deps, { ...options, closing, isDockerHub })
  }

  get problems(): string[] {
    return this.#session.problems
  }

  reluctance(method: 'GET' | 'HEAD'): UpstreamError | undefined {
    return this.#session.reluctance(method)
  }

  /**
   * A 404 is believed of Docker Hub, where each GET counts. Others are asked again with a GET: caches among
   * them have by HEAD only what they have fetched already.
   */
  headManifest(
    repository: RepositoryName,
    reference: string,
    options: CallOptions = {},
  ): Promise<ManifestHead> {
    const ask = async (method: 'GET' | 'HEAD', budget: CallBudget): Promise<ManifestHead> => {
      const call = { ...manifestCall(method, repository, reference), via: options.via }
      const { headers, body } = await this.#session.call(call, budget)
      if (method === 'HEAD') discard(body, this.#clock)
      else drop(body)
      return {
        digest: contentDigest(headers),
        sizeBytes: contentLength(headers),
        mediaType: mediaType(headers),
      }
    }
    return this.#within(options, async (budget) => {
      try {
        return await ask('HEAD', budget)
      } catch (error) {
        if (this.isDockerHub || !isNotFound(error)) throw error
        const head = await ask('GET', budget)
        this.#hidesFromHead = true
        return head
      }
    })
  }

  getManifest(
    repository: RepositoryName,
    reference: string,
    options: CallOptions = {},
  ): Promise<UpstreamManifest> {
    return this.#within(options, async (budget) => {
      const call = { ...manifestCall('GET', repository, reference), via: options.via }
      const answer = await this.#session.call(call, budget)
      const bytes = await readContent(answer, MANIFEST_SIZE_MAX_BYTES, budget.signal)
      const { headers } = answer
      return {
        bytes,
        digest: contentDigest(headers),
        mediaType: mediaType(headers),
        sentBy: this.name,
      }
    })
  }

  /** Where HEAD is refused (public.ecr.aws does), asks with a GET for one byte, now and from then on. */
  headBlob(
    repository: RepositoryName,
    digest: Digest,
    options: CallOptions = {},
  ): Promise<{ sizeBytes: number | undefined }> {
    return this.#within(options, async (budget) => {
      let isRefused = false
      if (!this.#refusesHeadBlob) {
        try {
          const head = { ...blobCall('HEAD', repository, digest), via: options.via }
          const { headers, body } = await this.#session.call(head, budget)
          discard(body, this.#clock)
          return { sizeBytes: contentLength(headers) }
        } catch (error) {
          const isHidden = this.#hidesFromHead && isNotFound(error)
          isRefused = error instanceof UpstreamError && HEAD_REFUSED.has(error.status)
          if (!isHidden && !isRefused) throw error
        }
      }
      const probe = {
        ...blobCall('GET', repository, digest),
        via: options.via,
        headers: { range: 'bytes=0-0' },
        // 416 is the right answer for a blob of no bytes.
        expected: [200, 206, 416],
      }
      const { status, headers, body } = await this.#session.call(probe, budget)
      drop(body)
      this.#refusesHeadBlob ||= isRefused
      if (status === 200) return { sizeBytes: contentLength(headers) }
      return { sizeBytes: contentRange(headers)?.totalBytes }
    })
  }

  async getBlob(
    repository: RepositoryName,
    digest: Digest,
    options: BlobOptions = {},
  ): Promise<UpstreamBlob> {
    const { offset = 0 } = options
    const call = { ...blobCall('GET', repository, digest), via: options.via }
    const part = { headers: { range: `bytes=${offset}-` }, expected: [200, 206] }
    const budget = this.#budget(options)
    try {
      const answer = await this.#session.call(offset > 0 ? { ...call, ...part } : call, budget)
      budget.stopClock()
      answer.body.once('close', () => budget.release())
      return this.#blob(answer, offset)
    } catch (error) {
      budget.release()
      throw error
    }
  }

  listTags(repository: RepositoryName, options: TagsOptions = {}): Promise<TagsPage> {
    const { count, last, via } = options
    const query = new URLSearchParams()
    if (count !== undefined) query.set('n', String(count))
    if (last !== undefined) query.set('last', last)
    return this.#within(options, async (budget) => {
      const answer = await this.#session.call(
        {
          kind: 'tags',
          method: 'GET',
          repository,
          path: 'tags/list',
          query: query.toString(),
          headers: { accept: 'application/json' },
          via,
        },
        budget,
      )
      const { host } = answer.url
      const bytes = await readContent(answer, TAGS_SIZE_MAX_BYTES, budget.signal)
      const list = parseObject(bytes, host)['tags'] ?? []
      if (!Array.isArray(list)) throw this.#badResponse('sent a list of tags that is none')
      const tags = list.filter((tag) => typeof tag === 'string' && parseTag(tag) !== undefined)
      return { tags, next: nextTagsCursor(answer.headers, tags.at(-1)) }
    })
  }

  getReferrers(
    repository: RepositoryName,
    digest: Digest,
    options: ReferrersOptions = {},
  ): Promise<ReferrersPage> {
    const { artifactType, page, via } = options
    const filter = artifactType === undefined ? {} : { artifactType }
    const marker = page === undefined ? undefined : pageMarkerOf(page)
    const query = [marker, new URLSearchParams(filter).toString()].filter(Boolean).join('&')
    return this.#within(options, async (budget) => {
      const answer = await this.#session.call(
        {
          kind: 'referrers',
          method: 'GET',
          repository,
          path: `referrers/${digest}`,
          query,
          headers: { accept: MEDIA_TYPES.ociIndex },
          via,
        },
        budget,
      )
      const bytes = await readContent(answer, REFERRERS_SIZE_MAX_BYTES, budget.signal)
      if (!Array.isArray(parseObject(bytes, answer.url.host)['manifests'])) {
        throw this.#badResponse('sent referrers that are no image index')
      }
      const filtersApplied = answer.headers['oci-filters-applied']
      const nextPage = nextPageQuery(answer.headers)
      return {
        bytes,
        filtersApplied: typeof filtersApplied === 'string' ? filtersApplied : undefined,
        nextPage: nextPage === undefined ? undefined : pageMarkerOf(nextPage),
      }
    })
  }

  warmUp(): void {
    warmUpHttp().catch(() => {})
  }

  async close(): Promise<void> {
    this.#closing.abort(new UpstreamError('unavailable', `the client of ${this.name} is closed`))
    await this.#session.close()
  }

  #budget({ deadlineMs = Infinity, signal }: CallOptions): CallBudget {
    return new CallBudget(this.#clock, {
      limitMs: Math.min(this.#callLimitMs, deadlineMs - this.#clock.monotonic()),
      host: this.name,
      signals: [signal, this.#closing.signal],
    })
  }

  async #within<T>(options: CallOptions, run: (budget: CallBudget) => Promise<T>): Promise<T> {
    const budget = this.#budget(options)
    try {
      return await run(budget)
    } finally {
      budget.release()
    }
  }

  #blob(answer: TransportResponse, offset: number): UpstreamBlob {
    const { status, headers, body } = answer
    if (status === 200) {
      const sizeBytes = contentLength(headers)
      return { startOffset: 0, sizeBytes, body: decoded(answer), sentBy: this.name }
    }
    const range = contentRange(headers)
    if (range?.startOffset !== offset || isEncoded(headers)) {
      drop(body)
      throw this.#badResponse(`sent another part of a blob than was asked for`)
    }
    return { startOffset: offset, sizeBytes: range.totalBytes, body, sentBy: this.name }
  }

  #badResponse(what: string): UpstreamError {
    return new UpstreamError('bad-response', `${this.name} ${what}`)
  }
}

function manifestCall(method: 'GET' | 'HEAD', repository: RepositoryName, reference: string): Call {
  const headers = { accept: MANIFEST_ACCEPT }
  return { kind: 'manifest', method, repository, path: `manifests/${reference}`, headers }
}

function blobCall(method: 'GET' | 'HEAD', repository: RepositoryName, digest: Digest): Call {
  return { kind: 'blob', method, repository, path: `blobs/${digest}` }
}

function isNotFound(error: unknown): boolean {
  return error instanceof UpstreamError && error.kind === 'not-found'
}
