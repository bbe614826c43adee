// Who may pull from the fake upstream: nobody is asked, Basic, or the Bearer flow with tokens for a
// repository each, which expire and can be revoked.
// https://distribution.github.io/distribution/spec/auth/token/

import { randomBytes } from 'node:crypto'
import type { Clock } from '../../src/clock.ts'
import { errorAnswer, jsonAnswer, type Answer } from './fake-upstream-answers.ts'
import type { UpstreamRequest } from './fake-upstream-requests.ts'

export interface Credentials {
  readonly username: string
  readonly password: string
}

export interface FakeAuthOptions {
  readonly auth: 'none' | 'bearer' | 'basic'
  /** Undefined: tokens are for everybody, and Basic lets nobody in. */
  readonly credentials: Credentials | undefined
  readonly tokenExpiresInS: number
  /** Replaces the challenge; `{tokenUrl}` in it is filled in. */
  readonly challenge: string | undefined
}

interface Token {
  readonly scopes: readonly string[]
  readonly expiresAtMs: number
}

const SERVICE = 'fake-upstream'

export class FakeAuth {
  readonly #clock: Clock
  readonly #options: FakeAuthOptions
  readonly #tokens = new Map<string, Token>()

  constructor(clock: Clock, options: FakeAuthOptions) {
    this.#clock = clock
    this.#options = options
  }

  /** The 401 that a request gets; undefined when it may pass. */
  challenge(request: UpstreamRequest, tokenUrl: string): Answer | undefined {
    const { auth } = this.#options
    const { authorization } = request.headers
    if (auth === 'none') return undefined
    if (auth === 'basic' && this.#knows(authorization)) return undefined
    const token = /^bearer (.+)$/i.exec(authorization ?? '')?.[1]
    const problem = auth === 'bearer' ? this.#problemOf(token, request.repository) : undefined
    if (auth === 'bearer' && !problem) return undefined
    return this.unauthorized(request, tokenUrl, token === undefined ? undefined : problem)
  }

  /** A 401 with this upstream's challenge, whatever the request carries. */
  unauthorized({ repository }: UpstreamRequest, tokenUrl: string, problem?: string): Answer {
    const parameters = [`realm="${tokenUrl}"`, `service="${SERVICE}"`]
    if (repository !== undefined) parameters.push(`scope="repository:${repository}:pull"`)
    if (problem !== undefined) parameters.push(`error="${problem}"`)
    const bearer = `Bearer ${parameters.join(',')}`
    const usual = this.#options.auth === 'basic' ? `Basic realm="${SERVICE}"` : bearer
    const challenge = this.#options.challenge?.replaceAll('{tokenUrl}', tokenUrl) ?? usual
    return errorAnswer(401, 'UNAUTHORIZED', { 'WWW-Authenticate': challenge })
  }

  /** GET /token: a token for the repositories of the scopes asked for. */
  token(request: UpstreamRequest, url: URL): Answer {
    const { credentials, tokenExpiresInS } = this.#options
    const { authorization } = request.headers
    // Wrong credentials are refused even where none are needed, as Docker Hub does.
    if ((credentials ?? authorization) !== undefined && !this.#knows(authorization)) {
      return errorAnswer(401, 'UNAUTHORIZED')
    }
    const scopes = url.searchParams.getAll('scope').flatMap((scope) => scope.split(' '))
    const token = randomBytes(16).toString('hex')
    const nowMs = this.#clock.now()
    const expiresAtMs = nowMs + tokenExpiresInS * 1000
    this.#tokens.set(token, { scopes, expiresAtMs })
    return jsonAnswer({
      token,
      access_token: token,
      expires_in: tokenExpiresInS,
      issued_at: new Date(nowMs).toISOString(),
    })
  }

  revokeTokens(): void {
    this.#tokens.clear()
  }

  #knows(authorization: string | undefined): boolean {
    const { credentials } = this.#options
    if (!credentials) return false
    const pair = Buffer.from(`${credentials.username}:${credentials.password}`)
    return authorization === `Basic ${pair.toString('base64')}`
  }

  #problemOf(token: string | undefined, repository: string | undefined): string | undefined {
    const known = token === undefined ? undefined : this.#tokens.get(token)
    if (!known || known.expiresAtMs <= this.#clock.now()) return 'invalid_token'
    // A scope of another form (`aws`, of ECR Public) is for everything.
    const covers = (scope: string): boolean =>
      !scope.startsWith('repository:') || scope === `repository:${repository}:pull`
    return repository === undefined || known.scopes.some(covers) ? undefined : 'insufficient_scope'
  }
}
