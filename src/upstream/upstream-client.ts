// The remote registry, as this cache sees it: pull-only, one client per upstream. Says what the upstream
// said, typed and bounded; verifies nothing (digests are the caller's to check) and remembers no content.

import { setMaxListeners } from 'node:events'
import type { Readable } from 'node:stream'
import type { Clock } from '../clock.ts'
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
  type TagsCursor,
} from './answer-headers.ts'
import { CallBudget } from './call-budget.ts'
import type { EnvironmentProxy } from './egress.ts'
import { failedAnswer } from './failed-answer.ts'
import { decoded, discard, drop, isEncoded, parseObject, readContent } from './response-body.ts'
import { TokenAuth } from './token-auth.ts'
import { Transport, type TransportDeps, type TransportResponse } from './transport.ts'
import { UpstreamError } from './upstream-error.ts'
import { warmUpHttp } from './warm-up.ts'

export interface UpstreamOptions {
  /** For logs, metrics and messages: the host. */
  readonly name: string
  /** For example `https://registry-1.docker.io`; a path is kept as a prefix of `/v2/`. */
  readonly remoteUrl: string
  readonly username?: string | undefined
  readonly password?: string | undefined
  /** Token realms beyond the upstream's own domain: `host`, `host:port` or an `https://host/path` prefix. */
  readonly allowedRealms: readonly string[]
  readonly environmentProxy: EnvironmentProxy
  /** For example `layover/1.0.0`. */
  readonly userAgent?: string | undefined
}

export interface CallOptions {
  /** Ends the call, and the body of a blob, with the signal's reason. */
  readonly signal?: AbortSignal | undefined
}

export interface ManifestHead {
  readonly digest: Digest | undefined
  readonly sizeBytes: number | undefined
  readonly mediaType: string | undefined
}

export interface UpstreamManifest {
  readonly bytes: Buffer
  /** What the upstream's header claims; the caller verifies. */
  readonly digest: Digest | undefined
  readonly mediaType: string | undefined
}

export interface UpstreamBlob {
  /** Where the body really starts: the offset asked for, or 0 if the upstream ignored the range. */
  readonly startOffset: number
  /** Of the whole blob, whatever part the body is. */
  readonly sizeBytes: number | undefined
  /**
   * Must be consumed or destroyed. Emits what `connectionError` understands when it breaks off; a body that
   * ends early without an error is the caller's to notice.
   */
  readonly body: Readable
}

export interface TagsPage {
  readonly tags: string[]
  readonly next: TagsCursor | undefined
}

export interface ReferrersPage {
  /** An image index, unchanged. */
  readonly bytes: Buffer
  readonly filtersApplied: string | undefined
  /** Opaque; give it back as `page`. */
  readonly nextPage: string | undefined
}

interface Call {
  readonly kind: 'manifest' | 'blob' | 'tags' | 'referrers'
  readonly method: 'GET' | 'HEAD'
  readonly repository: RepositoryName
  /** Below the repository, for example `tags/list`. */
  readonly path: string
  readonly query?: string | undefined
  readonly headers?: Readonly<Record<string, string>> | undefined
  /** Answers that are not failures; 200 if not given. */
  readonly expected?: readonly number[] | undefined
}

/** Clients give up after 30 s without headers: by then they must have ours. */
const CALL_LIMIT_MS = 25_000

/** Two 401 in a row are a token that ended early and a change of challenge; more are a loop. */
const RENEWALS_MAX = 2

/** A hundred thousand long tags. */
const TAGS_SIZE_MAX_BYTES = 16 * 1024 * 1024

/** An index is a manifest, and clients read no larger one. */
const REFERRERS_SIZE_MAX_BYTES = MANIFEST_SIZE_MAX_BYTES

/** What upstreams answer that know HEAD for blobs not at all, or not for everyone. */
const HEAD_REFUSED: ReadonlySet<number | undefined> = new Set([401, 403, 405, 501])

const DOCKER_HUB_HOSTS: ReadonlySet<string> = new Set([
  'docker.io',
  'index.docker.io',
  'registry-1.docker.io',
])

/**
 * Every call has its headers within 25 s, retries and token included (and its whole body, unless that is a
 * blob's), or fails with an `UpstreamError`; once `signal` is aborted, with the signal's reason.
 */
export class UpstreamClient {
  readonly name: string
  readonly isDockerHub: boolean
  readonly #clock: Clock
  readonly #remoteUrl: URL
  readonly #transport: Transport
  readonly #auth: TokenAuth
  readonly #closing = new AbortController()
  #refusesHeadBlob = false

  /** @throws {TypeError} if `remoteUrl` is not a URL */
  constructor(deps: TransportDeps, options: UpstreamOptions) {
    const { name, userAgent = 'layover', environmentProxy } = options
    const { username, password, allowedRealms } = options
    const { clock, logger } = deps
    const remoteUrl = new URL(options.remoteUrl)
    this.name = name
    this.isDockerHub = DOCKER_HUB_HOSTS.has(remoteUrl.hostname)
    this.#clock = clock
    this.#remoteUrl = remoteUrl
    // One listener for each call that runs: many are no leak.
    setMaxListeners(0, this.#closing.signal)
    this.#transport = new Transport(deps, { name, userAgent, environmentProxy })
    this.#auth = new TokenAuth(
      { clock, logger, transport: this.#transport, closing: this.#closing.signal },
      { name, remoteUrl, username, password, allowedRealms },
    )
  }

  /** Free on Docker Hub, whose limit counts GET. Not every upstream answers it: see the error's status. */
  headManifest(
    repository: RepositoryName,
    reference: string,
    { signal }: CallOptions = {},
  ): Promise<ManifestHead> {
    return this.#within(signal, async (budget) => {
      const { headers, body } = await this.#call(
        manifestCall('HEAD', repository, reference),
        budget,
      )
      discard(body, this.#clock)
      return {
        digest: contentDigest(headers),
        sizeBytes: contentLength(headers),
        mediaType: mediaType(headers),
      }
    })
  }

  /** At most 4 MiB; more is a bad-response. */
  getManifest(
    repository: RepositoryName,
    reference: string,
    { signal }: CallOptions = {},
  ): Promise<UpstreamManifest> {
    return this.#within(signal, async (budget) => {
      const answer = await this.#call(manifestCall('GET', repository, reference), budget)
      const bytes = await readContent(answer, MANIFEST_SIZE_MAX_BYTES, budget.signal)
      const { headers } = answer
      return { bytes, digest: contentDigest(headers), mediaType: mediaType(headers) }
    })
  }

  /** Where HEAD is refused (public.ecr.aws does), asks with a GET for one byte, now and from then on. */
  headBlob(
    repository: RepositoryName,
    digest: Digest,
    { signal }: CallOptions = {},
  ): Promise<{ sizeBytes: number | undefined }> {
    return this.#within(signal, async (budget) => {
      if (!this.#refusesHeadBlob) {
        try {
          const head = blobCall('HEAD', repository, digest)
          const { headers, body } = await this.#call(head, budget)
          discard(body, this.#clock)
          return { sizeBytes: contentLength(headers) }
        } catch (error) {
          if (!(error instanceof UpstreamError && HEAD_REFUSED.has(error.status))) throw error
        }
      }
      const probe = {
        ...blobCall('GET', repository, digest),
        headers: { range: 'bytes=0-0' },
        // 416 is the right answer for a blob of no bytes.
        expected: [200, 206, 416],
      }
      const { status, headers, body } = await this.#call(probe, budget)
      drop(body)
      this.#refusesHeadBlob = true
      if (status === 200) return { sizeBytes: contentLength(headers) }
      return { sizeBytes: contentRange(headers)?.totalBytes }
    })
  }

  /** @param options.offset asks for the rest from there on; see `startOffset` for what came */
  async getBlob(
    repository: RepositoryName,
    digest: Digest,
    { offset = 0, signal }: CallOptions & { readonly offset?: number | undefined } = {},
  ): Promise<UpstreamBlob> {
    const call = blobCall('GET', repository, digest)
    const part = { headers: { range: `bytes=${offset}-` }, expected: [200, 206] }
    const budget = this.#budget(signal)
    try {
      const answer = await this.#call(offset > 0 ? { ...call, ...part } : call, budget)
      budget.stopClock()
      answer.body.once('close', () => budget.release())
      return this.#blob(answer, offset)
    } catch (error) {
      budget.release()
      throw error
    }
  }

  /** One page. What is no tag by the specification's grammar is left out. */
  listTags(
    repository: RepositoryName,
    options: CallOptions & {
      readonly count?: number | undefined
      readonly last?: string | undefined
    } = {},
  ): Promise<TagsPage> {
    const { count, last, signal } = options
    const query = new URLSearchParams()
    if (count !== undefined) query.set('n', String(count))
    if (last !== undefined) query.set('last', last)
    return this.#within(signal, async (budget) => {
      const answer = await this.#call(
        {
          kind: 'tags',
          method: 'GET',
          repository,
          path: 'tags/list',
          query: query.toString(),
          headers: { accept: 'application/json' },
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

  /** One page; not-found where the upstream does not have the referrers API. At most 4 MiB. */
  getReferrers(
    repository: RepositoryName,
    digest: Digest,
    options: CallOptions & {
      readonly artifactType?: string | undefined
      readonly page?: string | undefined
    } = {},
  ): Promise<ReferrersPage> {
    const { artifactType, page, signal } = options
    const filter = artifactType === undefined ? {} : { artifactType }
    return this.#within(signal, async (budget) => {
      const answer = await this.#call(
        {
          kind: 'referrers',
          method: 'GET',
          repository,
          path: `referrers/${digest}`,
          query: page ?? new URLSearchParams(filter).toString(),
          headers: { accept: MEDIA_TYPES.ociIndex },
        },
        budget,
      )
      const bytes = await readContent(answer, REFERRERS_SIZE_MAX_BYTES, budget.signal)
      if (!Array.isArray(parseObject(bytes, answer.url.host)['manifests'])) {
        throw this.#badResponse('sent referrers that are no image index')
      }
      const filtersApplied = answer.headers['oci-filters-applied']
      return {
        bytes,
        filtersApplied: typeof filtersApplied === 'string' ? filtersApplied : undefined,
        nextPage: nextPageQuery(answer.headers),
      }
    })
  }

  /** Opens nothing on the wire; loads what the first request would otherwise wait for. */
  warmUp(): void {
    warmUpHttp().catch(() => {})
  }

  /** Ends all calls and all bodies that still run. */
  async close(): Promise<void> {
    this.#closing.abort(new UpstreamError('unavailable', `the client of ${this.name} is closed`))
    await this.#transport.close()
  }

  #budget(signal: AbortSignal | undefined): CallBudget {
    return new CallBudget(this.#clock, {
      limitMs: CALL_LIMIT_MS,
      host: this.name,
      signals: [signal, this.#closing.signal],
    })
  }

  async #within<T>(
    signal: AbortSignal | undefined,
    run: (budget: CallBudget) => Promise<T>,
  ): Promise<T> {
    const budget = this.#budget(signal)
    try {
      return await run(budget)
    } finally {
      budget.release()
    }
  }

  /** The expected answer, whatever it takes to be let in. Any other is an error, its body let go of. */
  async #call(call: Call, budget: CallBudget): Promise<TransportResponse> {
    const { kind, method, repository, expected = [200], headers = {} } = call
    const url = this.#url(call)
    let grant = await this.#auth.grant(repository, budget.signal)
    for (let renewals = 0; ; renewals += 1) {
      const authorization = grant?.authorization
      const request = { kind, method, url, headers, authorization, followRedirects: true }
      const answer = await this.#transport.send(request, budget)
      if (expected.includes(answer.status)) return answer
      const failure = await failedAnswer(answer, this.name, this.#clock)
      // A stranger that we were sent on to gets no credentials, and its 401 says nothing about ours.
      const mayRenew = answer.status === 401 && !answer.leftOrigin && renewals < RENEWALS_MAX
      if (!mayRenew) throw failure
      grant = await this.#auth.renew(answer.headers, repository, grant, budget.signal)
      if (!grant) throw failure
    }
  }

  #url({ repository, path, query = '' }: Call): URL {
    const url = new URL(this.#remoteUrl.origin)
    url.pathname = `${this.#remoteUrl.pathname.replace(/\/+$/, '')}/v2/${repository}/${path}`
    url.search = query
    return url
  }

  #blob(answer: TransportResponse, offset: number): UpstreamBlob {
    const { status, headers, body } = answer
    if (status === 200) {
      return { startOffset: 0, sizeBytes: contentLength(headers), body: decoded(answer) }
    }
    const range = contentRange(headers)
    if (range?.startOffset !== offset || isEncoded(headers)) {
      drop(body)
      throw this.#badResponse(`sent another part of a blob than was asked for`)
    }
    return { startOffset: offset, sizeBytes: range.totalBytes, body }
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
