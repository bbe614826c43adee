// Whether a login is good for anything at all, asked where no repository is in question: a refusal of one
// request may be about what was asked for, and one client must not cost all others their login by asking for
// what is forbidden.

import { CallBudget } from './call-budget.ts'
import { failedAnswer } from './failed-answer.ts'
import type { Login, Password } from './login.ts'
import {
  basic,
  fetchToken,
  TOKEN_LIMIT_MS,
  type TokenEndpointDeps,
  type TokenQuestion,
} from './token-endpoint.ts'
import { discard } from './response-body.ts'
import { UpstreamError } from './upstream-error.ts'

/**
 * Asks for a token for nothing in particular, as `docker login` does.
 *
 * @returns false if the login was refused; true also if the answer makes no sense
 * @throws {UpstreamError} if there was no answer
 */
export async function givesToken(
  deps: TokenEndpointDeps,
  question: TokenQuestion,
  login: Login,
): Promise<boolean> {
  try {
    await fetchToken(deps, { ...question, scope: undefined }, login)
    return true
  } catch (error) {
    if (!(error instanceof UpstreamError) || isNoAnswer(error)) throw error
    return error.kind !== 'denied'
  }
}

/** What has been answered to those who are let in. */
export interface Welcome {
  readonly method: 'GET' | 'HEAD'
  readonly url: URL
}

/**
 * Asks the registry whether it is one, with a password, and for what has been had with one, should it not say so.
 *
 * @param remoteUrl of the registry
 * @param last of another repository than the one that is refused
 * @returns and throws as `givesToken`
 */
export async function letsIn(
  deps: TokenEndpointDeps,
  remoteUrl: URL,
  login: Password,
  last: Welcome | undefined,
): Promise<boolean> {
  const url = new URL(remoteUrl)
  url.pathname = `${url.pathname.replace(/\/+$/, '')}/v2/`
  const ping = { method: 'GET', url } as const
  // Some want another login there, or have nothing there. Asked at once: behind a queue, each answer may take long.
  const lastStatus = last && statusOf(deps, last, login)
  lastStatus?.catch(nothing)
  // What everybody gets says nothing of a login.
  const isGoodForLast = async (): Promise<boolean> => {
    if (!last || lastStatus === undefined) return false
    const status = await lastStatus
    return isWelcome(status) && status !== (await statusOf(deps, last, undefined))
  }
  let status: number
  try {
    status = await statusOf(deps, ping, login)
  } catch (error) {
    if (await isGoodForLast().catch(() => false)) return true
    throw error
  }
  if (status !== 401 && status !== 403) return true
  if (await isGoodForLast()) return true
  // As does what nobody gets.
  return status === 403 && (await statusOf(deps, ping, undefined)) === 403
}

/** Answers that are given only to those who are let in; a missing manifest is one. */
export function isWelcome(status: number): boolean {
  return status < 400 || status === 404 || status === 416
}

/** @throws {UpstreamError} if there was no answer, or one that says nothing of who asks */
async function statusOf(
  { clock, closing, transport }: TokenEndpointDeps,
  { method, url }: Welcome,
  login: Password | undefined,
): Promise<number> {
  const { host } = url
  const budget = new CallBudget(clock, { limitMs: TOKEN_LIMIT_MS, host, signals: [closing] })
  try {
    const authorization = login && basic(login)
    const answer = await transport.send(
      { kind: 'ping', method, url, headers: {}, authorization, followRedirects: false },
      budget,
    )
    if (answer.status < 400) {
      discard(answer.body, clock)
      return answer.status
    }
    const failure = await failedAnswer(answer, host, clock)
    if (isNoAnswer(failure)) throw failure
    return answer.status
  } finally {
    budget.release()
  }
}

function nothing(): void {}

/** It says nothing about the login, and nothing about what was asked for either. */
function isNoAnswer({ kind }: UpstreamError): boolean {
  return kind !== 'denied' && kind !== 'not-found' && kind !== 'bad-response'
}
