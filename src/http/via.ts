// The trace that a request leaves in the caches it comes through, and how one sees that it has come before.
// https://www.rfc-editor.org/rfc/rfc9110#section-7.6.3

import { RegistryError } from '../oci/registry-error.ts'

/** Longer is a loop among caches that do not know each other. */
const LENGTH_MAX = 1024

/**
 * @param header of the request
 * @param ownName what this cache calls itself, for example `1.1 layover-1a2b3c`
 * @returns what to send on; undefined when the request comes from a client
 * @throws {RegistryError} LOOP_DETECTED
 */
export function checkedVia(header: string | undefined, ownName: string): string | undefined {
  if (header === undefined) return undefined
  const names = header.split(',').map((name) => name.trim())
  if (header.length > LENGTH_MAX || names.includes(ownName)) {
    throw new RegistryError('LOOP_DETECTED', { detail: { reason: LOOP_REASON } })
  }
  // What could not be sent on is no proxy's.
  return /^[\t -~]+$/.test(header) ? header : undefined
}

const LOOP_REASON =
  'the request has come through this cache before: check what the caches on its way point at'
