// What whoever uses a login gets from the guard, and tells it.

import type { Passage } from '../transport.ts'
import type { Login } from './login.ts'

/** One use of the login. `accepted` or `refused` may be called, and then, always, `release`. */
export interface LoginLease {
  readonly login: Login
  /** Whether the upstream took this login the last time it said anything of one. */
  readonly wasAccepted: boolean
  /**
   * Whether the login is good for anything, asked once for all who want to know at the time.
   *
   * @throws what `ask` throws
   */
  isGood(ask: () => Promise<boolean>): Promise<boolean>
  accepted(): void
  refused(reason: string): void
  release(): void
}

/** Of a login that a request carries itself. */
export interface SentLease extends LoginLease {
  readonly passage: Passage
}

/** The login of a request was refused, or replaced, before the request went: it is to have another. */
export class LoginWithdrawn extends Error {
  override readonly name = 'LoginWithdrawn'
}
