// What can be wrong with an answer of the upstream, as a proxy in front of it makes it.

import type { ServerResponse } from 'node:http'

export type Fault =
  /** Refuses with a status. */
  | { readonly kind: 'status'; readonly status: number; readonly retryAfterS?: number }
  /** Takes the request and never answers. */
  | { readonly kind: 'silence' }
  /** Resets the connection in the middle of the body. */
  | { readonly kind: 'cut'; readonly afterBytes: number }
  /** Changes one byte of the body. */
  | { readonly kind: 'wrong-byte' }
  /** Keeps back what comes after the first bytes of the body for a while. */
  | { readonly kind: 'wait'; readonly until: Promise<void> }

/** Answers in the upstream's place. @returns whether there is nothing more to do */
export function answerInstead(fault: Fault | undefined, response: ServerResponse): boolean {
  if (fault?.kind === 'silence') return true
  if (fault?.kind !== 'status') return false
  const { status, retryAfterS } = fault
  if (retryAfterS !== undefined) response.setHeader('retry-after', retryAfterS)
  response.writeHead(status, { 'content-type': 'application/json' })
  response.end(JSON.stringify({ errors: [{ code: 'UNKNOWN', message: 'a planned fault' }] }))
  return true
}

/** The body as the fault leaves it. @throws where it breaks off */
export async function* spoiled(
  fault: Fault | undefined,
  body: AsyncIterable<Buffer>,
  response: ServerResponse,
): AsyncGenerator<Buffer> {
  let leftBytes = fault?.kind === 'cut' ? fault.afterBytes : Infinity
  let isSpoilt = fault?.kind !== 'wrong-byte'
  for await (const chunk of body) {
    if (!isSpoilt) {
      chunk.writeUInt8(chunk.readUInt8(0) ^ 1, 0)
      isSpoilt = true
    }
    yield chunk.subarray(0, leftBytes)
    if (fault?.kind === 'wait') await fault.until
    leftBytes -= chunk.length
    if (leftBytes <= 0) {
      response.socket?.resetAndDestroy()
      throw new Error('cut on purpose')
    }
  }
}
