// One token from one token endpoint. Asked without redirects: credentials go to the realm that was
// approved, and nowhere else.
// @see https://distribution.github.io/distribution/spec/auth/token/

import type { Clock } from '../../clock.ts'
import { CallBudget } from '../call-budget.ts'
import { failedAnswer } from '../failed-answer.ts'
import { parseObject, readContent, type JsonObject } from '../response-body.ts'
import type { Transport, TransportRequest } from '../transport.ts'
import { UpstreamError } from '../upstream-error.ts'
import type { Login } from './login.ts'

export interface Token {
  /** `Bearer …`. */
  readonly authorization: string
  /** On the monotonic clock; the token must not be used from then on. */
  readonly refreshAtMs: number
}

/** Tokens are a few KiB; they are sent back in a header, which no server takes at this size. */
const TOKEN_SIZE_MAX_BYTES = 64 * 1024

/** Leaves the call that needs the token time for its own request. */
export const TOKEN_LIMIT_MS = 10_000

/** What the specification has a token live when the answer does not say. */
const LIFETIME_DEFAULT_S = 60
/** However long a token claims to live, access that was withdrawn is noticed within the hour. */
const LIFETIME_MAX_S = 60 * 60
const LIFETIME_MIN_MS = 1_000
/** A token must not expire on its way; clocks and queues differ by seconds. */
const SKEW_MAX_MS = 30_000
const SKEW_FRACTION = 0.1

export interface TokenEndpointDeps {
  readonly clock: Clock
  readonly transport: Transport
  /** Aborted when the client is closed. */
  readonly closing: AbortSignal
}

/** What is asked for; the URL of the realm may have a query of its own. */
export interface TokenQuestion {
  readonly realm: URL
  readonly service: string | undefined
  /** Undefined: a token for nothing in particular, which is given to everybody who may log in. */
  readonly scope: string | undefined
}

/** What an identity token is asked for as; registries show it in their lists of sessions. */
const CLIENT_ID = 'layover'

/**
 * @param login undefined to ask anonymously
 * @throws {UpstreamError} denied (401, 403), rate-limited, unavailable, unreachable, timeout; bad-response
 *   for all else, including 404 and redirects: here they say nothing about what was to be pulled
 * @throws the reason of `closing`
 */
export async function fetchToken(
  { clock, transport, closing }: TokenEndpointDeps,
  question: TokenQuestion,
  login: Login | undefined,
): Promise<Token> {
  const { host } = question.realm
  const budget = new CallBudget(clock, { limitMs: TOKEN_LIMIT_MS, host, signals: [closing] })
  try {
    const askedAtMs = clock.monotonic()
    const answer = await transport.send(
      { kind: 'token', followRedirects: false, ...requestFor(question, login) },
      budget,
    )
    if (answer.status !== 200) {
      const error = await failedAnswer(answer, host, clock)
      if (error.kind !== 'not-found') throw error
      throw new UpstreamError('bad-response', error.message, { status: error.status })
    }
    const json = parseObject(await readContent(answer, TOKEN_SIZE_MAX_BYTES, budget.signal), host)
    return {
      authorization: `Bearer ${tokenIn(json, host)}`,
      refreshAtMs: askedAtMs + usableMs(json['expires_in']),
    }
  } finally {
    budget.release()
  }
}

/** Everybody answers GET. An identity token is no password: it is exchanged by POST, as OAuth 2 has it. */
function requestFor(
  { realm, service, scope }: TokenQuestion,
  login: Login | undefined,
): Pick<TransportRequest, 'method' | 'url' | 'headers' | 'authorization' | 'content'> {
  const headers = { accept: 'application/json' }
  const params = { ...(service === undefined ? {} : { service }), ...(scope && { scope }) }
  const url = new URL(realm)
  url.hash = ''
  if (login && 'identityToken' in login) {
    const grant = { grant_type: 'refresh_token', refresh_token: login.identityToken }
    const content = new URLSearchParams({ ...params, ...grant, client_id: CLIENT_ID }).toString()
    const type = { 'content-type': 'application/x-www-form-urlencoded' }
    return {
      method: 'POST',
      url,
      headers: { ...headers, ...type },
      authorization: undefined,
      content,
    }
  }
  for (const [name, value] of Object.entries(params)) url.searchParams.set(name, value)
  if (login) url.searchParams.set('account', login.username)
  return { method: 'GET', url, headers, authorization: login && basic(login) }
}

/** @see https://www.rfc-editor.org/rfc/rfc7617 */
export function basic({ username, password }: { username: string; password: string }): string {
  return `Basic ${Buffer.from(`${username}:${password}`).toString('base64')}`
}

/** The two names are equivalent. */
function tokenIn(json: JsonObject, host: string): string {
  const token = json['token'] || json['access_token']
  // It goes into a header as it is.
  if (typeof token === 'string' && /^[\x21-\x7e]+$/.test(token)) return token
  throw new UpstreamError('bad-response', `${host} answered without a usable token`)
}

function usableMs(expiresIn: unknown): number {
  const claimedS = typeof expiresIn === 'number' ? expiresIn : LIFETIME_DEFAULT_S
  const lifetimeMs = Math.min(claimedS, LIFETIME_MAX_S) * 1000
  const skewMs = Math.min(lifetimeMs * SKEW_FRACTION, SKEW_MAX_MS)
  return Math.max(lifetimeMs - skewMs, LIFETIME_MIN_MS)
}
