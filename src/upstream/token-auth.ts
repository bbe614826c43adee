// Proving who we are to an upstream: the challenge it gave us, the tokens we hold. Lazy: nothing is asked
// before a request was refused, and from then on requests carry what the last challenge wanted.
// Invariant: credentials leave for the upstream's own origin (Basic) or for an allowed realm (Bearer) only.

import type { IncomingHttpHeaders } from 'node:http'
import { LRUCache } from 'lru-cache'
import type { Logger } from 'pino'
import type { Clock } from '../clock.ts'
import type { RepositoryName } from '../oci/reference.ts'
import { leaveOnAbort } from './call-budget.ts'
import { parseChallenges } from './challenge.ts'
import { isAllowedRealm } from './realm.ts'
import { fetchToken, type Token, type TokenEndpointDeps } from './token-endpoint.ts'
import { UpstreamError } from './upstream-error.ts'

/** What a request is sent with. */
export interface Grant {
  readonly authorization: string
  /** Which token this is; undefined for Basic. */
  readonly tokenUrl: string | undefined
  /** Fetched for this very call: if it is refused, another one will be too. */
  readonly isFresh: boolean
}

export interface TokenAuthDeps extends TokenEndpointDeps {
  readonly logger: Logger
}

export interface TokenAuthOptions {
  readonly name: string
  readonly remoteUrl: URL
  readonly username: string | undefined
  readonly password: string | undefined
  readonly allowedRealms: readonly string[]
}

interface BearerScheme {
  readonly kind: 'bearer'
  readonly realm: URL
  readonly service: string | undefined
  readonly scope: string | undefined
}

type Scheme = { readonly kind: 'basic' } | BearerScheme

/** One per repository that is pulled at the time. */
const TOKENS_MAX = 1000

/** Docker Hub locks accounts and addresses after a few failed logins: refused credentials rest. */
const LOGIN_PAUSE_MS = 60_000

export class TokenAuth {
  readonly #deps: TokenEndpointDeps
  readonly #clock: Clock
  readonly #logger: Logger
  readonly #name: string
  readonly #remoteUrl: URL
  readonly #allowedRealms: readonly string[]
  readonly #username: string | undefined
  /** `Basic …`; undefined without credentials. */
  readonly #credentials: string | undefined
  readonly #tokens = new LRUCache<string, Token>({ max: TOKENS_MAX })
  /** One request for all who ask for the same token at once. */
  readonly #fetches = new Map<string, Promise<Token>>()
  #scheme: Scheme | undefined
  #loginPausedUntilMs = -Infinity
  /** So that the log says it once, not with each request. */
  #warnedRealm: string | undefined

  constructor(
    { logger, ...deps }: TokenAuthDeps,
    { name, remoteUrl, username, password, allowedRealms }: TokenAuthOptions,
  ) {
    this.#deps = deps
    this.#clock = deps.clock
    this.#logger = logger
    this.#name = name
    this.#remoteUrl = remoteUrl
    this.#allowedRealms = allowedRealms
    if (username && password) {
      this.#username = username
      this.#credentials = `Basic ${Buffer.from(`${username}:${password}`).toString('base64')}`
    }
  }

  /**
   * What to send with the next request; undefined when the upstream never asked for anything.
   *
   * @throws {UpstreamError} if a token is needed and not to be had
   */
  async grant(repository: RepositoryName, signal: AbortSignal): Promise<Grant | undefined> {
    if (!this.#scheme) return undefined
    if (this.#scheme.kind === 'basic') return this.#basicGrant()
    const tokenUrl = this.#tokenUrl(this.#scheme, repository)
    const held = this.#tokens.get(tokenUrl)
    if (held && this.#clock.monotonic() < held.refreshAtMs) {
      return { authorization: held.authorization, tokenUrl, isFresh: false }
    }
    const { authorization } = await leaveOnAbort(this.#fetchOnce(tokenUrl), signal)
    return { authorization, tokenUrl, isFresh: true }
  }

  /**
   * After a 401: what to try again with; undefined when the refusal is final.
   *
   * @param refused what the request was sent with
   * @throws {UpstreamError} login-failed for a realm that is not allowed, and all that `grant` throws
   */
  async renew(
    headers: IncomingHttpHeaders,
    repository: RepositoryName,
    refused: Grant | undefined,
    signal: AbortSignal,
  ): Promise<Grant | undefined> {
    const scheme = this.#schemeIn(headers)
    if (!scheme) return undefined
    this.#scheme = scheme
    if (scheme.kind === 'basic') {
      if (refused && refused.authorization === this.#credentials) {
        throw this.#loginFailed(this.#remoteUrl.host)
      }
      return this.#basicGrant()
    }
    const tokenUrl = this.#tokenUrl(scheme, repository)
    if (refused?.tokenUrl === tokenUrl) {
      if (refused.isFresh) return undefined
      // Only the one that was refused: meanwhile another call may have fetched a better one.
      const held = this.#tokens.get(tokenUrl)
      if (held?.authorization === refused.authorization) this.#tokens.delete(tokenUrl)
    }
    return this.grant(repository, signal)
  }

  /** The challenge to answer: Bearer if there is a choice, since it does not show the password each time. */
  #schemeIn(headers: IncomingHttpHeaders): Scheme | undefined {
    const challenges = parseChallenges(headers['www-authenticate'])
    const bearer = challenges.find(({ scheme }) => scheme === 'bearer')?.params
    const text = bearer?.get('realm')
    if (bearer && text !== undefined && URL.canParse(text, this.#remoteUrl.href)) {
      const realm = new URL(text, this.#remoteUrl)
      if (!isAllowedRealm(realm, this.#remoteUrl, this.#allowedRealms)) {
        throw this.#realmRefused(realm)
      }
      return { kind: 'bearer', realm, service: bearer.get('service'), scope: bearer.get('scope') }
    }
    return challenges.some(({ scheme }) => scheme === 'basic') ? { kind: 'basic' } : undefined
  }

  #basicGrant(): Grant | undefined {
    if (this.#credentials === undefined) return undefined
    this.#checkLoginPause()
    return { authorization: this.#credentials, tokenUrl: undefined, isFresh: true }
  }

  /** The URL that a token comes from says all about it: realm, service and scope; we are always the same. */
  #tokenUrl({ realm, service, scope }: BearerScheme, repository: RepositoryName): string {
    const url = new URL(realm)
    url.hash = ''
    if (service !== undefined) url.searchParams.set('service', service)
    // Some registries have one token for everything (public.ecr.aws: `aws`): that scope is taken as it is.
    const isPerRepository = !scope || scope.startsWith('repository:')
    url.searchParams.set('scope', isPerRepository ? `repository:${repository}:pull` : scope)
    if (this.#username !== undefined) url.searchParams.set('account', this.#username)
    return url.href
  }

  #fetchOnce(tokenUrl: string): Promise<Token> {
    const running = this.#fetches.get(tokenUrl)
    if (running) return running
    const started = this.#fetch(tokenUrl).finally(() => this.#fetches.delete(tokenUrl))
    this.#fetches.set(tokenUrl, started)
    return started
  }

  async #fetch(tokenUrl: string): Promise<Token> {
    this.#checkLoginPause()
    const url = new URL(tokenUrl)
    const scope = url.searchParams.get('scope')
    this.#logger.debug({ upstream: this.#name, realm: url.origin, scope }, 'fetching a token')
    try {
      const token = await fetchToken(this.#deps, url, this.#credentials)
      this.#tokens.set(tokenUrl, token)
      return token
    } catch (error) {
      const isRefused = error instanceof UpstreamError && error.status === 401
      if (isRefused && this.#credentials !== undefined) throw this.#loginFailed(url.host, error)
      throw error
    }
  }

  #checkLoginPause(): void {
    const leftMs = this.#loginPausedUntilMs - this.#clock.monotonic()
    if (this.#credentials === undefined || leftMs <= 0) return
    const message =
      `the credentials for ${this.#name} were refused: ` +
      `they are tried again in ${Math.ceil(leftMs / 1000)} s`
    throw new UpstreamError('login-failed', message, { status: 401, retryAfterMs: leftMs })
  }

  #loginFailed(host: string, cause?: UpstreamError): UpstreamError {
    const isNews = this.#clock.monotonic() >= this.#loginPausedUntilMs
    this.#loginPausedUntilMs = this.#clock.monotonic() + LOGIN_PAUSE_MS
    const message =
      `${host} refused the credentials for ${this.#name}: check its username and password; ` +
      `they are not tried again for ${LOGIN_PAUSE_MS / 1000} s`
    if (isNews) this.#logger.warn({ upstream: this.#name, reason: cause?.message }, message)
    const retryAfterMs = LOGIN_PAUSE_MS
    return new UpstreamError('login-failed', message, { status: 401, retryAfterMs, cause })
  }

  #realmRefused(realm: URL): UpstreamError {
    const message =
      `${this.#name} wants tokens to be fetched from ${realm.origin}, which is not of its own domain ` +
      `(or not https): if that is right, add ${realm.host} to proxy.allowedrealms`
    if (this.#warnedRealm !== realm.origin) {
      this.#warnedRealm = realm.origin
      this.#logger.warn({ upstream: this.#name, realm: realm.origin }, message)
    }
    return new UpstreamError('login-failed', message, { status: 401 })
  }
}
