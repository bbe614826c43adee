// Whether a login is good for anything at all, asked where no repository is in question: a refusal of one
// request may be about what was asked for, and one client must not cost all others their login by asking for
// what is forbidden.

import { CallBudget } from '../call-budget.ts'
import { failedAnswer } from '../failed-answer.ts'
import { discard } from '../response-body.ts'
import { UpstreamError } from '../upstream-error.ts'
import type { Login, Password } from './login.ts'
import {
  basic,
  fetchToken,
  TOKEN_LIMIT_MS,
  type TokenEndpointDeps,
  type TokenQuestion,
} from './token-endpoint.ts'

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

/** What says something of a login beside the ping. */
export interface Evidence {
  /** Had before, of another repository than the one that is refused. */
  readonly other: Welcome | undefined
  /** Had before, of the one that is refused. */
  readonly own: Welcome | undefined
  /** What is believed where no answer says anything. */
  readonly otherwise: boolean
}

/**
 * Asks the registry whether it is one, with a password, and for what has been had with one, should it not say so.
 *
 * @param remoteUrl of the registry
 * @returns and throws as `givesToken`
 */
export async function letsIn(
  deps: TokenEndpointDeps,
  remoteUrl: URL,
  login: Password,
  { other, own, otherwise }: Evidence,
): Promise<boolean> {
  const url = new URL(remoteUrl)
  url.pathname = `${url.pathname.replace(/\/+$/, '')}/v2/`
  const ping = { method: 'GET', url } as const
  // Some want another login there, or have nothing there. Asked at once: behind a queue, each answer may take long.
  const otherStatus = other && statusOf(deps, other, login)
  otherStatus?.catch(nothing)
  const isGoodForOther = async (): Promise<boolean | undefined> =>
    other && otherStatus && isGoodFor(deps, other, await otherStatus)
  let status: number
  try {
    status = await statusOf(deps, ping, login)
    // Some let everybody in there.
    if (status < 400 && (await statusOf(deps, ping, undefined)) >= 400) return true
  } catch (error) {
    if (await isGoodForOther().catch(() => false)) return true
    throw error
  }
  const isGood = await isGoodForOther()
  if (isGood) return true
  if (status === 401) return false
  // What nobody gets says nothing either.
  if (status === 403) return (await statusOf(deps, ping, undefined)) === 403
  if (isGood === undefined && own) {
    return (await isGoodFor(deps, own, await statusOf(deps, own, login))) ?? otherwise
  }
  return isGood ?? otherwise
}

/**
 * @param status with the login
 * @returns undefined where everybody gets it: that says nothing of a login
 */
async function isGoodFor(
  deps: TokenEndpointDeps,
  last: Welcome,
  status: number,
): Promise<boolean | undefined> {
  if (!isWelcome(status)) return false
  if (status !== (await statusOf(deps, last, undefined))) return true
  return status < 400 ? undefined : false
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
