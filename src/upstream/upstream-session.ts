// One upstream's door: its URL, the way there, who we are to it. Every request for content goes through here,
// and comes back as the answer that was expected or as an error.

import type { Clock } from '../clock.ts'
import type { RepositoryName } from '../oci/reference.ts'
import type { CallBudget } from './call-budget.ts'
import type { ConnectionOptions, EnvironmentProxy } from './egress.ts'
import { failedAnswer } from './failed-answer.ts'
import type { Environment } from './login/credential-helper.ts'
import { createCredentials, type CredentialsOptions } from './login/credentials.ts'
import type { Credentials } from './login/login.ts'
import { LoginGuard } from './login/login-guard.ts'
import { LoginWithdrawn } from './login/login-lease.ts'
import type { LoginMemory } from './login/login-memory.ts'
import { mayBeAbout, TokenAuth, type Grant } from './login/token-auth.ts'
import { PullAllowance, type RateLimit } from './pull-allowance.ts'
import { hostOfRealm } from './realm.ts'
import {
  Transport,
  type TransportDeps,
  type TransportRequest,
  type TransportResponse,
} from './transport.ts'
import type { UpstreamError } from './upstream-error.ts'

export interface UpstreamOptions {
  /** For logs, metrics and messages: the host. */
  readonly name: string
  /** For example `https://registry-1.docker.io`; a path is kept as a prefix of `/v2/`. */
  readonly remoteUrl: string
  /** Where the operator's settings for it are, for messages. Default: `proxy`. */
  readonly settingsPath?: string | undefined
  /** Undefined: asked anonymously. */
  readonly credentials?: CredentialsOptions | undefined
  /** Token realms beyond the upstream's own domain: `host`, `host:port` or an `https://host/path` prefix. */
  readonly allowedRealms: readonly string[]
  /** Hosts that it may send us to although they are not public: `host`, or `*.host` for all below it. */
  readonly redirectHosts?: readonly string[] | undefined
  /** It may send us to any host within the network. */
  readonly allowPrivateAddresses?: boolean | undefined
  /** A client named it, not the operator: then its own host has to be public too. */
  readonly isUntrusted?: boolean | undefined
  readonly environmentProxy: EnvironmentProxy
  readonly connection?: ConnectionOptions | undefined
  /** For a call up to its headers, retries and token included. Default: 25 s. */
  readonly callLimitMs?: number | undefined
  readonly requestsPerSecond?: number | undefined
  /** For example `layover/1.0.0`. */
  readonly userAgent?: string | undefined
  /** What this cache calls itself in `Via`, for example `1.1 layover-1a2b3c`. */
  readonly viaName?: string | undefined
}

export interface UpstreamDeps extends TransportDeps {
  /** Of the process, for credential helpers; default empty. */
  readonly environment?: Environment | undefined
  /** What is known of refused logins already. */
  readonly loginMemory?: LoginMemory | undefined
  /** Told when there is no way to log in, and when there is one again. */
  readonly onLoginChange?: ((state: { readonly isFailing: boolean }) => void) | undefined
  /** Told what is left of the pulls that the upstream allows, with each answer that says so. */
  readonly onRateLimit?: ((rateLimit: RateLimit) => void) | undefined
  /** Told of each manifest of a mirror that does not match its digest; nobody gets it. */
  readonly onWrongManifest?: (() => void) | undefined
}

export interface Call {
  readonly kind: 'manifest' | 'blob' | 'tags' | 'referrers'
  readonly method: 'GET' | 'HEAD'
  readonly repository: RepositoryName
  /** Below the repository, for example `tags/list`. */
  readonly path: string
  readonly query?: string | undefined
  readonly headers?: Readonly<Record<string, string>> | undefined
  readonly via?: string | undefined
  /** Answers that are not failures; 200 if not given. */
  readonly expected?: readonly number[] | undefined
}

/** Two 401 in a row are a token that ended early and a change of challenge; more are a loop. 400 is so once. */
const RENEWALS_MAX = 2

/** In `Via`: made anew at each start, so that nobody can tell by them who asks. */
const OWN_NAMES = /\blayover-[\da-f]+/g

export class UpstreamSession {
  readonly #name: string
  readonly #clock: Clock
  readonly #remoteUrl: URL
  readonly #viaName: string | undefined
  readonly #userAgent: string
  readonly #transport: Transport
  readonly #credentials: Credentials
  readonly #guard: LoginGuard
  readonly #auth: TokenAuth
  readonly #allowance: PullAllowance

  /**
   * @param options.closing aborted when the client is closed; `close` must follow
   * @throws {TypeError} if `remoteUrl` is not a URL
   * @throws {CredentialsError} if a credential helper cannot be one
   */
  constructor(
    deps: UpstreamDeps,
    options: UpstreamOptions & { readonly closing: AbortSignal; readonly isDockerHub: boolean },
  ) {
    const { name, settingsPath = 'proxy', userAgent = 'layover', allowedRealms, closing } = options
    const { clock, environment = {}, logger } = deps
    const { onLoginChange = nothing, onRateLimit = nothing } = deps
    const remoteUrl = new URL(options.remoteUrl)
    const { host } = remoteUrl
    this.#name = name
    this.#clock = clock
    this.#remoteUrl = remoteUrl
    this.#viaName = options.viaName
    this.#userAgent = userAgent
    const addresses = {
      settingsPath,
      ownHostname: remoteUrl.hostname,
      isUntrusted: options.isUntrusted ?? false,
      allowPrivateAddresses: options.allowPrivateAddresses ?? false,
      allowedHosts: [...(options.redirectHosts ?? []), ...allowedRealms.map(hostOfRealm)],
    }
    const { origin: ownOrigin } = remoteUrl
    const transport = new Transport(deps, { ...options, userAgent, ownOrigin, addresses })
    const credentials = createCredentials(
      options.credentials,
      { clock, environment, logger },
      { name, host },
    )
    const { loginMemory: memory } = deps
    const onChange = onLoginChange
    const guard = new LoginGuard({ clock, logger, credentials, memory, onChange }, { name })
    this.#transport = transport
    this.#credentials = credentials
    this.#guard = guard
    this.#auth = new TokenAuth(
      { clock, closing, guard, logger, transport },
      { name, settingsPath, remoteUrl, allowedRealms },
    )
    this.#allowance = new PullAllowance(
      { clock, logger, onRateLimit },
      {
        name,
        isDockerHub: options.isDockerHub,
        isAnonymous: options.credentials === undefined,
      },
    )
  }

  /** What the operator should look at; empty when all is well. */
  get problems(): string[] {
    return [this.#guard.problem, this.#allowance.problem].filter((problem) => problem !== undefined)
  }

  /** Why a manifest that is cached had better not be asked about; undefined when it may. */
  reluctance(method: 'GET' | 'HEAD'): UpstreamError | undefined {
    return this.#allowance.reluctance(method)
  }

  /** The expected answer, whatever it takes to be let in. Any other is an error, its body let go of. */
  async call(call: Call, budget: CallBudget): Promise<TransportResponse> {
    const { kind, method, repository, expected = [200] } = call
    const url = this.#url(call)
    const headers = { ...call.headers, ...this.#traceHeaders(call.via) }
    budget.signal.throwIfAborted()
    let grant = await this.#auth.grant(repository, budget.signal)
    for (let renewals = 0; ; renewals += 1) {
      const request = { kind, method, url, headers, followRedirects: true }
      const sent = await this.#sendGranted(request, repository, grant, budget)
      const { answer } = sent
      grant = sent.grant
      const { leftOrigin, status } = answer
      // A stranger that we were sent on to gets no credentials, and its 401 says nothing about ours.
      const isRefusal = mayBeAbout(grant, status) && !leftOrigin
      // A login is always looked into: it is good, or rests, and of those that come in its place few are tried.
      const renewalsMax = grant?.lease ? Infinity : status === 400 ? 1 : RENEWALS_MAX
      const mayRenew = isRefusal && renewals < renewalsMax
      if (!mayRenew) this.#auth.settle(grant, { method, url, repository, status, leftOrigin })
      if (expected.includes(status)) return answer
      const failure = await failedAnswer(answer, this.#name, this.#clock)
      if (!mayRenew) throw failure
      grant = await this.#auth.renew(answer, repository, grant, budget.signal)
      if (!grant) throw failure
    }
  }

  /** Ends every connection, and a credential helper that runs. */
  async close(): Promise<void> {
    this.#credentials.close()
    await this.#transport.close()
  }

  /** @returns also what it was sent with: another grant if the first was withdrawn before it went */
  async #sendGranted(
    request: Omit<TransportRequest, 'authorization'>,
    repository: RepositoryName,
    first: Grant | undefined,
    budget: CallBudget,
  ): Promise<{ grant: Grant | undefined; answer: TransportResponse }> {
    let grant = first
    for (;;) {
      try {
        return { grant, answer: await this.#send(request, grant, budget) }
      } catch (error) {
        if (!(error instanceof LoginWithdrawn)) throw error
      }
      // Nothing is given while the login rests: each turn is one with another login.
      grant = await this.#auth.grant(repository, budget.signal)
    }
  }

  async #send(
    request: Omit<TransportRequest, 'authorization'>,
    grant: Grant | undefined,
    budget: CallBudget,
  ): Promise<TransportResponse> {
    const authorization = grant?.authorization
    const passage = grant?.lease?.passage
    try {
      const answer = await this.#transport.send({ ...request, authorization, passage }, budget)
      // What a host that we were sent on to counts is not what the upstream does.
      if (!answer.leftOrigin) this.#allowance.note(answer.headers)
      return answer
    } catch (error) {
      this.#auth.settle(grant, undefined)
      throw error
    }
  }

  /**
   * The caches that a request came through; those of our kind twice, since some proxies drop `Via`.
   *
   * @see https://www.rfc-editor.org/rfc/rfc9110#section-7.6.3
   */
  #traceHeaders(via: string | undefined): Readonly<Record<string, string>> {
    const names = [via, this.#viaName].filter(Boolean)
    if (names.length === 0) return {}
    const trace = names.join(', ')
    const own = trace.match(OWN_NAMES)?.join(' ')
    return { via: trace, ...(own && { 'user-agent': `${this.#userAgent} (${own})` }) }
  }

  #url({ repository, path, query = '' }: Call): URL {
    const url = new URL(this.#remoteUrl.origin)
    url.pathname = `${this.#remoteUrl.pathname.replace(/\/+$/, '')}/v2/${repository}/${path}`
    url.search = query
    return url
  }
}

function nothing(): void {}
