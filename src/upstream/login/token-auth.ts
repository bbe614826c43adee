// Proving who we are to an upstream: the challenge it gave us, the tokens we hold. Lazy: nothing is asked
// before a request was refused, and from then on requests carry what the last challenge wanted.
// Invariant: credentials leave for the upstream's own origin (Basic) or for an allowed realm (Bearer) only.

import type { IncomingHttpHeaders } from 'node:http'
import { LRUCache } from 'lru-cache'
import type { Logger } from 'pino'
import type { Clock } from '../../clock.ts'
import type { RepositoryName } from '../../oci/reference.ts'
import { CallBudget, leaveOnAbort } from '../call-budget.ts'
import { isAllowedRealm } from '../realm.ts'
import type { TransportResponse } from '../transport.ts'
import { UpstreamError } from '../upstream-error.ts'
import { parseChallenges } from './challenge.ts'
import { givesToken, isWelcome, letsIn, type Welcome } from './login-check.ts'
import type { LoginGuard } from './login-guard.ts'
import type { LoginLease, SentLease } from './login-lease.ts'
import {
  basic,
  fetchToken,
  type Token,
  type TokenEndpointDeps,
  type TokenQuestion,
} from './token-endpoint.ts'

/** What a request is sent with. */
export interface Grant {
  readonly authorization: string
  /** Which token this is; undefined for Basic. */
  readonly tokenKey: string | undefined
  /** Fetched for this very call: if it is refused, another one will be too. */
  readonly isFresh: boolean
  /** Basic: the login itself is on its way; the guard wants to know how it fared. */
  readonly lease?: SentLease | undefined
}

/** What became of a request. */
export interface Verdict extends Welcome {
  readonly repository: RepositoryName
  readonly status: number
  /** Another host has answered, to which the upstream sent us on: with credentials that are right. */
  readonly leftOrigin: boolean
}

export interface TokenAuthDeps extends TokenEndpointDeps {
  readonly logger: Logger
  readonly guard: LoginGuard
}

export interface TokenAuthOptions {
  readonly name: string
  /** Where the operator's settings for it are, for messages. */
  readonly settingsPath: string
  readonly remoteUrl: URL
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

/** For the login that a token is asked for with: by then no call waits for the token any more. */
const LOGIN_LIMIT_MS = 25_000

export class TokenAuth {
  readonly #deps: TokenEndpointDeps
  readonly #clock: Clock
  readonly #logger: Logger
  readonly #guard: LoginGuard
  readonly #name: string
  readonly #settingsPath: string
  readonly #remoteUrl: URL
  readonly #allowedRealms: readonly string[]
  readonly #tokens = new LRUCache<string, Token>({ max: TOKENS_MAX })
  /** One request for all who ask for the same token at once. */
  readonly #fetches = new Map<string, Promise<Token>>()
  #scheme: Scheme | undefined
  /** What a token for each repository is for, once the upstream calls one by another name than we do. */
  readonly #scopes = new LRUCache<RepositoryName, string>({ max: TOKENS_MAX })
  /** The last that was had with a password, of each of two repositories: one is another than that which is refused. */
  #welcomes: readonly Verdict[] = []
  /** So that the log says it once, not with each request. */
  #warnedRealm: string | undefined

  constructor(
    { guard, logger, ...deps }: TokenAuthDeps,
    { name, settingsPath, remoteUrl, allowedRealms }: TokenAuthOptions,
  ) {
    this.#deps = deps
    this.#clock = deps.clock
    this.#logger = logger
    this.#guard = guard
    this.#name = name
    this.#settingsPath = settingsPath
    this.#remoteUrl = remoteUrl
    this.#allowedRealms = allowedRealms
  }

  /**
   * What to send with the next request; undefined when the upstream never asked for anything.
   * How that request fared must be told, to `renew` or `settle`.
   *
   * @throws {UpstreamError} if a token is needed and not to be had
   */
  async grant(repository: RepositoryName, signal: AbortSignal): Promise<Grant | undefined> {
    if (!this.#scheme) return undefined
    if (this.#scheme.kind === 'basic') return this.#basicGrant(signal)
    const question = this.#questionOf(this.#scheme, repository)
    if (!question) return undefined
    const tokenKey = keyOf(question)
    const held = this.#tokens.get(tokenKey)
    if (held && this.#clock.monotonic() < held.refreshAtMs) {
      return { authorization: held.authorization, tokenKey, isFresh: false }
    }
    const { authorization } = await leaveOnAbort(this.#fetchOnce(tokenKey, question), signal)
    return { authorization, tokenKey, isFresh: true }
  }

  /** The request that `grant` was for is over. To be called unless `renew` is. */
  settle(grant: Grant | undefined, verdict: Verdict | undefined): void {
    const { lease } = grant ?? {}
    if (lease && verdict && (verdict.leftOrigin || isWelcome(verdict.status))) {
      lease.accepted()
      const other = this.#lastOfOther(verdict.repository)
      if (verdict.status < 400) this.#welcomes = other ? [verdict, other] : [verdict]
    }
    lease?.release()
  }

  /**
   * After a refusal (`mayBeAbout`): what to try again with; undefined when the refusal is final.
   *
   * @param refused what the request was sent with
   * @throws {UpstreamError} login-failed for a realm that is not allowed, and all that `grant` throws
   */
  async renew(
    { headers, status }: Pick<TransportResponse, 'headers' | 'status'>,
    repository: RepositoryName,
    refused: Grant | undefined,
    signal: AbortSignal,
  ): Promise<Grant | undefined> {
    try {
      const scheme = this.#schemeIn(headers)
      // Who refuses without a challenge wants what it wanted before.
      if (!scheme && !refused) return undefined
      this.#scheme = scheme ?? this.#scheme
      const question = scheme?.kind === 'bearer' && this.#challengedFor(scheme, repository)
      const tokenKey = question ? keyOf(question) : !scheme && refused?.tokenKey
      const isFinal = tokenKey
        ? this.#dropToken(refused, tokenKey)
        : refused?.lease && !(await this.#refuseBasic(refused.lease, repository, status, signal))
      if (isFinal) return undefined
    } finally {
      refused?.lease?.release()
    }
    return this.grant(repository, signal)
  }

  #challengedFor(scheme: BearerScheme, repository: RepositoryName): TokenQuestion {
    const { realm, service } = scheme
    const scope = scopeIn(scheme, repository)
    const isRenamed = isPerRepository(scheme) && scope !== scopeOf(repository)
    if (isRenamed || this.#scopes.size > 0) this.#scopes.set(repository, scope)
    return { realm, service, scope }
  }

  /** @returns undefined where the upstream has to say first what it calls this repository */
  #questionOf(
    { realm, scope, service }: BearerScheme,
    repository: RepositoryName,
  ): TokenQuestion | undefined {
    if (!isPerRepository({ scope })) return { realm, service, scope }
    const known = this.#scopes.get(repository)
    if (known === undefined && this.#scopes.size > 0) return undefined
    return { realm, service, scope: known ?? scopeOf(repository) }
  }

  /** @returns true if another token would be refused as well */
  #dropToken(refused: Grant | undefined, tokenKey: string): boolean {
    if (refused?.tokenKey !== tokenKey) return false
    if (refused.isFresh) return true
    // Only the one that was refused: meanwhile another call may have fetched a better one.
    const held = this.#tokens.get(tokenKey)
    if (held?.authorization === refused.authorization) this.#tokens.delete(tokenKey)
    return false
  }

  /** @returns false if the login is right: then the refusal is about what was asked for */
  async #refuseBasic(
    lease: LoginLease,
    repository: RepositoryName,
    status: number,
    signal: AbortSignal,
  ): Promise<boolean> {
    const { login } = lease
    if ('identityToken' in login) return false
    const check = lease.isGood(async () => {
      let isGood = false
      try {
        const evidence = {
          other: this.#lastOfOther(repository),
          own: this.#welcomes.find((welcome) => welcome.repository === repository),
          // As for tokens: 401 is about who we are until the login was taken.
          otherwise: status !== 401 || lease.wasAccepted,
        }
        return (isGood = await letsIn(this.#deps, this.#remoteUrl, login, evidence))
      } finally {
        // It is not to be refused again and again.
        if (!isGood) this.#welcomes = []
      }
    })
    if (await leaveOnAbort(check, signal)) {
      lease.accepted()
      return false
    }
    lease.refused(`${this.#remoteUrl.host} answered ${status}`)
    return true
  }

  #lastOfOther(repository: RepositoryName): Verdict | undefined {
    return this.#welcomes.find((welcome) => welcome.repository !== repository)
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

  async #basicGrant(signal: AbortSignal): Promise<Grant | undefined> {
    const lease = await this.#guard.acquireToSend(this.#remoteUrl.host, signal)
    if (!lease) return undefined
    const { login } = lease
    if (!('identityToken' in login)) {
      return { authorization: basic(login), tokenKey: undefined, isFresh: true, lease }
    }
    lease.release()
    const message = `${this.#name} wants a username and a password, but there is only an identity token`
    throw new UpstreamError('login-failed', message, { status: 401 })
  }

  #fetchOnce(tokenKey: string, question: TokenQuestion): Promise<Token> {
    const running = this.#fetches.get(tokenKey)
    if (running) return running
    const started = this.#fetch(tokenKey, question).finally(() => this.#fetches.delete(tokenKey))
    this.#fetches.set(tokenKey, started)
    return started
  }

  /** Twice at most: after a refusal only credentials that have changed are tried, and they only once. */
  async #fetch(tokenKey: string, question: TokenQuestion): Promise<Token> {
    for (;;) {
      const { realm, scope } = question
      const lease = await this.#loginFor(realm.host)
      this.#logger.debug({ upstream: this.#name, realm: realm.origin, scope }, 'fetching a token')
      try {
        const token = await fetchToken(this.#deps, question, lease?.login)
        lease?.accepted()
        this.#tokens.set(tokenKey, token)
        return token
      } catch (error) {
        if (!lease || !(error instanceof UpstreamError)) throw error
        if (!(await this.#isLoginRefused(error, question, lease))) throw error
        lease.refused(error.message)
      } finally {
        lease?.release()
      }
    }
  }

  async #loginFor(host: string): Promise<LoginLease | undefined> {
    const { closing } = this.#deps
    const budget = new CallBudget(this.#clock, {
      limitMs: LOGIN_LIMIT_MS,
      host,
      signals: [closing],
    })
    try {
      return await this.#guard.acquireInTurn(host, budget.signal)
    } finally {
      budget.release()
    }
  }

  /**
   * 403 may be about what we asked for (ghcr.io, GitLab), and so may 401 be once the login was taken: whoever asks for
   * what it is not good for must not cost the others theirs. Before that, 401 is about who we are, and each attempt
   * too many brings the account closer to its lock.
   */
  async #isLoginRefused(
    { status }: UpstreamError,
    question: TokenQuestion,
    lease: LoginLease,
  ): Promise<boolean> {
    if (status === 401 && !lease.wasAccepted) return true
    if (status !== 401 && status !== 403) return false
    const isGood = await lease.isGood(() => givesToken(this.#deps, question, lease.login))
    if (isGood) lease.accepted()
    return !isGood
  }

  #realmRefused(realm: URL): UpstreamError {
    const message =
      `${this.#name} wants tokens to be fetched from ${realm.origin}, which is not of its own domain ` +
      `(or not https): if that is right, add ${realm.host} to ${this.#settingsPath}.allowedrealms`
    if (this.#warnedRealm !== realm.origin) {
      this.#warnedRealm = realm.origin
      this.#logger.warn({ upstream: this.#name, realm: realm.origin }, message)
    }
    return new UpstreamError('login-failed', message, { status: 401 })
  }
}

/** Some registries have one token for everything (public.ecr.aws: `aws`): that scope is taken as it is. */
function isPerRepository({ scope }: Pick<BearerScheme, 'scope'>): boolean {
  return !scope || scope.startsWith('repository:')
}

function scopeOf(name: string): string {
  return `repository:${name}:pull`
}

/**
 * What to ask for after a challenge. Behind a proxy that rewrites paths a repository may have a longer name
 * (`cache/team/app` for `team/app`); nothing else is asked for, and nothing but to pull.
 */
function scopeIn(scheme: BearerScheme, repository: RepositoryName): string {
  const { scope = '' } = scheme
  if (!isPerRepository(scheme)) return scope
  const names = scope.split(' ').map((one) => /^repository:([\w./-]+):[a-z,*]+$/.exec(one)?.[1])
  return scopeOf(names.find((name) => name?.endsWith(`/${repository}`)) ?? repository)
}

/** All that makes one token another; who asks is always the same. */
function keyOf({ realm, service, scope }: TokenQuestion): string {
  return JSON.stringify([realm.href, service, scope])
}

/**
 * Whether an answer may be a refusal of what was sent with the request. Where passwords are sent with each, one that has
 * ended may be forbidden (ECR), as may be what was asked for. A token that has ended may be a bad request (ECR Public).
 */
export function mayBeAbout(grant: Grant | undefined, status: number): boolean {
  if (status === 403) return grant?.lease !== undefined
  if (status === 400) return grant?.tokenKey !== undefined && !grant.isFresh
  return status === 401
}
