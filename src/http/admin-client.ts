// Asks the process that serves from a root directory, through its socket: for the commands, and for a process that
// wants to know whether there is another one.

import { request, type IncomingMessage } from 'node:http'
import { withSocketPath } from './unix-address.ts'

/** Until an answer begins: the first thing to purge may be at the end of a large volume. */
const ANSWER_MAX_MS = 1_800_000

export interface AdminQuestion {
  readonly method: 'GET' | 'POST'
  readonly path: string
  /** Sent as JSON. */
  readonly body?: unknown
  /** Until the answer begins. */
  readonly answerMaxMs?: number
  /** Ends the answer too. */
  readonly signal?: AbortSignal
}

/**
 * @returns the answer's status and body, which has to be read or destroyed
 * @throws the system's error: ENOENT and ECONNREFUSED when nobody is there
 */
export function askAdmin(
  socket: string,
  { answerMaxMs = ANSWER_MAX_MS, body, signal, ...question }: AdminQuestion,
): Promise<IncomingMessage> {
  const ask = (socketPath: string): Promise<IncomingMessage> =>
    new Promise((resolve, reject) => {
      const headers = { host: 'localhost', 'content-type': 'application/json' }
      const limits = { timeout: answerMaxMs, ...(signal ? { signal } : {}) }
      // One question, one connection: who is asked may be gone the next time.
      const options = { socketPath, headers, agent: false, ...limits, ...question } as const
      const asking = request(options, (answer) => {
        asking.setTimeout(0)
        resolve(answer)
      })
      asking.once('timeout', () => asking.destroy(new Error('it does not answer')))
      asking.once('error', reject)
      asking.end(body === undefined ? undefined : JSON.stringify(body))
    })
  return withSocketPath(socket, ask)
}
