// Whether a login is good for anything at all, asked where no repository is in question: a refusal of one
// request may be about what was asked for, and one client must not cost all others their login by asking for
// what is forbidden.

import { CallBudget } from './call-budget.ts'
import { failedAnswer } from './failed-answer.ts'
import type { Login } from './login.ts'
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

/**
 * Asks the registry whether it is one, with a password.
 *
 * @param remoteUrl of the registry
 * @returns and throws as `givesToken`
 */
export async function answersPing(
  { clock, closing, transport }: TokenEndpointDeps,
  remoteUrl: URL,
  login: { readonly username: string; readonly password: string },
): Promise<boolean> {
  const { host } = remoteUrl
  const url = new URL(remoteUrl)
  url.pathname = `${url.pathname.replace(/\/+$/, '')}/v2/`
  const budget = new CallBudget(clock, { limitMs: TOKEN_LIMIT_MS, host, signals: [closing] })
  try {
    const authorization = basic(login)
    const answer = await transport.send(
      { kind: 'ping', method: 'GET', url, headers: {}, authorization, followRedirects: false },
      budget,
    )
    if (answer.status < 400) {
      discard(answer.body, clock)
      return true
    }
    const failure = await failedAnswer(answer, host, clock)
    if (isNoAnswer(failure)) throw failure
    return answer.status !== 401
  } finally {
    budget.release()
  }
}

/** It says nothing about the login, and nothing about what was asked for either. */
function isNoAnswer({ kind }: UpstreamError): boolean {
  return kind !== 'denied' && kind !== 'not-found' && kind !== 'bad-response'
}
