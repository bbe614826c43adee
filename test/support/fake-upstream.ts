// A registry to pull from, in process and over real sockets. It answers as the distribution-spec says,
// counts what it is asked, and is as wrong, slow or absent as a test wants it to be. Most promises are of
// the kind "the upstream was asked exactly once": `upstream.count(…)` is how they are kept.
//
//   const upstream = await startFakeUpstream({ auth: 'bearer' })
//   onTestFinished(() => upstream.close())
//   upstream.addImage('library/alpine', '3.20', buildImage())
//   upstream.fault({ kind: 'blob' }, 'cut-at-64k', { times: 1 })
//   const gate = upstream.gate({ kind: 'blob' }, { afterBytes: 1000 })
//
// Faults and gates meet the answers of requests that were let in: the 401 that starts a token flow is not
// one of them. Faults are plain data with names (NAMED_FAULTS), so that a program can pass them on.

import { randomBytes } from 'node:crypto'
import type { IncomingMessage, ServerResponse } from 'node:http'
import { systemClock, type Clock } from '../../src/clock.ts'
import {
  redirectAnswer,
  registryAnswer,
  type Answer,
  type AnswerOptions,
} from './fake-upstream-answers.ts'
import { FakeAuth, type Credentials } from './fake-upstream-auth.ts'
import { FakeUpstreamContent } from './fake-upstream-content.ts'
import {
  combined,
  faultyAnswer,
  NAMED_FAULTS,
  type Fault,
  type FaultName,
  type RedirectFault,
} from './fake-upstream-faults.ts'
import { FakeListener, type TlsOptions } from './fake-upstream-listener.ts'
import {
  matches,
  targetOf,
  type RequestMatch,
  type UpstreamRequest,
} from './fake-upstream-requests.ts'
import { deliver, Gate } from './fake-upstream-wire.ts'

export interface FakeUpstreamOptions {
  readonly auth?: 'none' | 'bearer' | 'basic'
  readonly credentials?: Credentials
  readonly tokenExpiresInS?: number
  /** The whole WWW-Authenticate; `{tokenUrl}` stands for where tokens are. */
  readonly challenge?: string
  /** Where /token is: at the registry (the default) or on the other port. */
  readonly tokenHost?: 'registry' | 'cdn'
  /** Blobs are redirected to another port, with signed URLs that work once and refuse Authorization. */
  readonly redirectBlobs?: boolean
  readonly referrers?: boolean
  readonly referrersPerPage?: number
  /** For example `/artifactory/api/docker/hub`. */
  readonly pathPrefix?: string
  /** By which tokens expire. */
  readonly clock?: Clock
  /** Default: a free one. The CDN always has a free one. */
  readonly port?: number
  /** The registry and the CDN speak https. */
  readonly tls?: TlsOptions
}

/** Starts a fake upstream on a free port of 127.0.0.1. The caller closes it. */
export async function startFakeUpstream(options: FakeUpstreamOptions = {}): Promise<FakeUpstream> {
  const upstream = new FakeUpstream(options)
  await upstream.up()
  return upstream
}

const VERSION = { 'Docker-Distribution-Api-Version': 'registry/2.0' }

interface PlannedFault {
  readonly match: RequestMatch
  readonly fault: Fault
  timesLeft: number
}

export class FakeUpstream extends FakeUpstreamContent {
  /** In the order of arrival. */
  readonly requests: UpstreamRequest[] = []
  readonly #registry: FakeListener
  readonly #cdn: FakeListener
  readonly #auth: FakeAuth
  readonly #options: AnswerOptions
  readonly #redirectBlobs: boolean
  readonly #tokenHost: 'registry' | 'cdn'
  readonly #signatures = new Set<string>()
  readonly #bytesSent = new Map<string, number>()
  #hanging = 0
  #answering = 0
  #faults: PlannedFault[] = []
  #gates: { readonly match: RequestMatch; readonly gate: Gate }[] = []

  constructor(options: FakeUpstreamOptions) {
    super()
    const { auth = 'none', credentials, tokenExpiresInS = 300, clock = systemClock } = options
    const { port, tls } = options
    const serve =
      (server: 'registry' | 'cdn') => (request: IncomingMessage, response: ServerResponse) =>
        this.#serve(server, request, response)
    this.#registry = new FakeListener(serve('registry'), { port, tls })
    this.#cdn = new FakeListener(serve('cdn'), { tls })
    this.#auth = new FakeAuth(clock, {
      auth,
      credentials,
      tokenExpiresInS,
      challenge: options.challenge,
    })
    this.#redirectBlobs = options.redirectBlobs ?? false
    this.#tokenHost = options.tokenHost ?? 'registry'
    const { referrers = true, referrersPerPage = Infinity, pathPrefix = '' } = options
    this.#options = { referrers, referrersPerPage, pathPrefix }
  }

  /** What goes into `remoteurl`. */
  get url(): string {
    return this.#registry.origin + this.#options.pathPrefix
  }

  get cdnUrl(): string {
    return this.#cdn.origin
  }

  get tokenUrl(): string {
    return this.#tokenHost === 'cdn' ? `${this.cdnUrl}/token` : `${this.url}/token`
  }

  /** Requests so far, also those that were challenged or failed; `status` tells them apart. */
  count(match: RequestMatch & { readonly status?: number } = {}): number {
    return this.requests.filter(
      (request) =>
        matches(match, request) && (match.status === undefined || match.status === request.status),
    ).length
  }

  /** Bytes of bodies sent under this digest (or tag), from wherever and however often. */
  bytesSent(reference: string): number {
    return this.#bytesSent.get(reference) ?? 0
  }

  /** Forgets what was counted; content, faults and gates stay. */
  reset(): void {
    this.requests.length = 0
    this.#bytesSent.clear()
  }

  /** Answers that a fault has brought to a standstill, and whose clients still wait. */
  get hanging(): number {
    return this.#hanging
  }

  /** Answers that are being made or sent. */
  get answering(): number {
    return this.#answering
  }

  /** Open connections, of both ports. */
  get activeConnections(): number {
    return this.#registry.activeConnections + this.#cdn.activeConnections
  }

  get acceptedConnections(): number {
    return this.#registry.acceptedConnections + this.#cdn.acceptedConnections
  }

  /**
   * Plans a fault for the next answers that match; several that match are combined, later ones winning.
   *
   * @param options.times for how many answers; default all
   * @returns gives the fault up
   */
  fault(
    match: RequestMatch,
    fault: Fault | FaultName,
    { times = Infinity }: { times?: number } = {},
  ): () => void {
    const planned: PlannedFault = {
      match,
      fault: typeof fault === 'string' ? NAMED_FAULTS[fault] : fault,
      timesLeft: times,
    }
    this.#faults.push(planned)
    return () => {
      this.#faults = this.#faults.filter((other) => other !== planned)
    }
  }

  clearFaults(): void {
    this.#faults = []
  }

  /** Opens every gate, and forgets them. */
  clearGates(): void {
    for (const { gate } of this.#gates) gate.release()
    this.#gates = []
  }

  /** Stops matching answers before their headers, or after `afterBytes` of their bodies, until released. */
  gate(match: RequestMatch, { afterBytes }: { afterBytes?: number } = {}): Gate {
    const gate = new Gate(afterBytes)
    this.#gates.push({ match, gate })
    return gate
  }

  /** Every token is refused from now on. */
  revokeTokens(): void {
    this.#auth.revokeTokens()
  }

  /** The CDN refuses every URL that was handed out. */
  expireSignedUrls(): void {
    this.#signatures.clear()
  }

  /** Gone: connections are refused, and those that are open are dropped. */
  async down(): Promise<void> {
    await Promise.all([this.#registry.stop(), this.#cdn.stop()])
  }

  /** Back, under the same URLs. */
  async up(): Promise<void> {
    await Promise.all([this.#registry.listen(), this.#cdn.listen()])
  }

  async close(): Promise<void> {
    this.clearGates()
    await this.down()
  }

  #serve(server: 'registry' | 'cdn', message: IncomingMessage, response: ServerResponse): void {
    const { method = '', url: path = '', headers } = message
    const url = this.#parse(server, path)
    const request: UpstreamRequest = { ...targetOf(url), method, path, headers, status: undefined }
    this.requests.push(request)
    message.resume()
    const challenge = server === 'registry' ? this.#challengeFor(request) : undefined
    const fault = challenge ? {} : this.#takeFault(request)
    const bare = challenge ?? this.#answer(server, request, url, fault)
    const answer =
      server === 'registry' ? { ...bare, headers: { ...VERSION, ...bare.headers } } : bare
    if (fault.moveTagTo !== undefined && request.repository && request.reference) {
      this.moveTag(request.repository, request.reference, fault.moveTagTo)
    }
    const gates = challenge ? [] : this.#gates.filter(({ match }) => matches(match, request))
    this.#answering++
    response.once('close', () => this.#answering--)
    void deliver(response, {
      answer,
      fault,
      gates: gates.map(({ gate }) => gate),
      isHead: method === 'HEAD',
      onHeaders: () => (request.status = answer.status),
      onBytes: (sizeBytes) => this.#countBytes(request, answer, sizeBytes),
      onHang: (change) => (this.#hanging += change),
    })
  }

  /** The prefix is taken off; a path without it leads nowhere. */
  #parse(server: 'registry' | 'cdn', path: string): URL {
    const { pathPrefix } = this.#options
    const origin = server === 'registry' ? this.#registry.origin : this.#cdn.origin
    if (server === 'cdn' || pathPrefix === '') return new URL(origin + path)
    const inner = path.startsWith(`${pathPrefix}/`) ? path.slice(pathPrefix.length) : '/outside'
    return new URL(origin + inner)
  }

  #challengeFor(request: UpstreamRequest): Answer | undefined {
    const isOpen = request.kind === 'token' || request.kind === 'hop'
    return isOpen ? undefined : this.#auth.challenge(request, this.tokenUrl)
  }

  #answer(server: 'registry' | 'cdn', request: UpstreamRequest, url: URL, fault: Fault): Answer {
    const right =
      fault.redirect && request.kind !== 'hop'
        ? this.#redirect(fault.redirect, request, url)
        : server === 'cdn'
          ? this.#cdnAnswer(request, url)
          : this.#registryAnswer(request, url)
    const challenge = this.#auth.unauthorized(request, this.tokenUrl, 'insufficient_scope')
    return faultyAnswer(right, fault, request.headers.range, challenge)
  }

  #registryAnswer(request: UpstreamRequest, url: URL): Answer {
    if (request.kind === 'token') return this.#auth.token(request, url)
    if (request.kind === 'hop') return this.#hop(request, url)
    const answer = registryAnswer(request, url, this, this.#options)
    if (request.kind !== 'blob' || !this.#redirectBlobs || answer.status !== 200) return answer
    return redirectAnswer(this.#signedUrl(request, 'once'))
  }

  #signedUrl({ repository, reference }: UpstreamRequest, works: 'once' | 'expired'): string {
    const signature = randomBytes(8).toString('hex')
    if (works === 'once') this.#signatures.add(signature)
    return `${this.cdnUrl}/cdn/${repository}/${reference}?signature=${signature}&expires=60`
  }

  /** As S3 and R2: signed URLs only, 400 for a request that carries credentials besides. */
  #cdnAnswer(request: UpstreamRequest, url: URL): Answer {
    if (request.kind === 'token') return this.#auth.token(request, url)
    if (request.headers.authorization !== undefined) return cdnError(400, 'InvalidArgument')
    if (request.kind === 'hop') return this.#hop(request, url)
    const signature = url.searchParams.get('signature') ?? ''
    if (!this.#signatures.delete(signature)) return cdnError(403, 'AccessDenied')
    const answer = registryAnswer(request, url, this, this.#options)
    const { 'Docker-Content-Digest': _, ...headers } = answer.headers
    return { ...answer, headers }
  }

  #redirect(redirect: RedirectFault, request: UpstreamRequest, url: URL): Answer {
    const { location, loop, hops = 1, relative, crossHost, signed, status } = redirect
    if (signed) return redirectAnswer(this.#signedUrl(request, signed), status)
    const host = crossHost ? this.cdnUrl : this.#base(url)
    const chain = `${relative ? host.replace(url.origin, '') : host}/hop/${hops - 1}`
    const ownUrl = url.origin + request.path
    const target = location ?? (loop ? ownUrl : chain + url.pathname + url.search)
    return redirectAnswer(target, status)
  }

  /** A step of a chain: counts down, then gives what the first request asked for. */
  #hop(request: UpstreamRequest, url: URL): Answer {
    const [, left = '0', path = '/'] = /^\/hop\/(\d+)(\/.*)$/.exec(url.pathname) ?? []
    const target = new URL(url.origin + path + url.search)
    if (left === '0') {
      return registryAnswer({ ...request, ...targetOf(target) }, target, this, this.#options)
    }
    return redirectAnswer(`${this.#base(url)}/hop/${Number(left) - 1}${path}${url.search}`)
  }

  #base(url: URL): string {
    return url.origin === this.cdnUrl ? this.cdnUrl : this.url
  }

  #takeFault(request: UpstreamRequest): Fault {
    const planned = this.#faults.filter(
      ({ match, timesLeft }) => timesLeft > 0 && matches(match, request),
    )
    for (const one of planned) one.timesLeft--
    return combined(planned.map(({ fault }) => fault))
  }

  #countBytes({ reference }: UpstreamRequest, { status }: Answer, sizeBytes: number): void {
    if (reference === undefined || status >= 300) return
    this.#bytesSent.set(reference, this.bytesSent(reference) + sizeBytes)
  }
}

function cdnError(status: number, code: string): Answer {
  const xml = `<?xml version="1.0" encoding="UTF-8"?><Error><Code>${code}</Code></Error>`
  return { status, headers: { 'Content-Type': 'application/xml' }, body: Buffer.from(xml) }
}
