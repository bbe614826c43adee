// The trace that a request leaves in the caches it comes through, and how one sees that it has come before: names in
// `Via`, and once more in `User-Agent`, since some proxies drop the first and pass the second on.
// https://www.rfc-editor.org/rfc/rfc9110#section-7.6.3

import { RegistryError } from '../oci/registry-error.ts'

/** Longer is a loop among caches that do not know each other. */
const LENGTH_MAX = 1024

/** As upstream/upstream-session.ts writes it: `layover/1.2.3 (layover-1a2b3c layover-4d5e6f)`. */
const OWN_AGENT = /^layover\/\S+ \((layover-[\da-f]+(?: layover-[\da-f]+)*)\)$/

/** Headers of a request. */
export interface Trace {
  readonly via: string | undefined
  readonly userAgent: string | undefined
}

/**
 * @param ownName what this cache calls itself, for example `1.1 layover-1a2b3c`
 * @returns what to send on; undefined when the request comes from a client
 * @throws {RegistryError} LOOP_DETECTED
 */
export function checkedVia({ userAgent, via }: Trace, ownName: string): string | undefined {
  const agents = namesOfAgent(userAgent)
  if (via === undefined && agents.length === 0) return undefined
  const names = (via ?? '').split(',').map((name) => name.trim())
  const dropped = agents.filter((name) => !names.includes(name))
  const lengthOf = [...dropped, via].join(', ').length
  if (lengthOf > LENGTH_MAX || [...names, ...agents].includes(ownName)) {
    throw new RegistryError('LOOP_DETECTED', { detail: { reason: LOOP_REASON } })
  }
  // What could not be sent on is no proxy's.
  const kept = via !== undefined && /^[\t -~]+$/.test(via) ? [via] : []
  return [...dropped, ...kept].join(', ') || undefined
}

/** The caches that a request says it came through where `Via` is passed on by all. */
function namesOfAgent(userAgent: string | undefined): string[] {
  if (!userAgent?.startsWith('layover/') || userAgent.length > 2 * LENGTH_MAX) return []
  const [, names = ''] = OWN_AGENT.exec(userAgent) ?? []
  return names === '' ? [] : names.split(' ').map((name) => `1.1 ${name}`)
}

const LOOP_REASON =
  'the request has come through this cache before: check what the caches on its way point at'
