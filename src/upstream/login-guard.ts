// Decides whether the credentials may be tried. Registries lock accounts and addresses after a few failed
// logins, so: while nobody knows whether a login is right, one request finds out and the others wait; one that was
// right is carried by a few questions for tokens at a time; one that was refused rests, for longer each time, unless
// the source has another one by then.

import { createHash } from 'node:crypto'
import type { Logger } from 'pino'
import type { Clock } from '../clock.ts'
import { leaveOnAbort } from './call-budget.ts'
import { CredentialsError, type Credentials, type Login } from './login.ts'
import type { LoginMemory, Refusal } from './login-memory.ts'
import { LoginWindow } from './login-window.ts'
import { UpstreamError } from './upstream-error.ts'

/** Doubled with each refusal: five in the first quarter of an hour. Docker Hub locks for ten minutes. */
const REST_MIN_MS = 60_000
const REST_MAX_MS = 60 * 60_000

/** A source that gives another wrong login each time it is asked must not become a loop either. */
const CHANGE_PAUSE_MS = 10_000

/** What a check of the login found is believed for so long: refusals may come by the hundred. */
const CHECK_MS = 1_000

/** What clients are told when the source of the credentials fails; it is asked again after that time. */
const UNAVAILABLE_RETRY_MS = 10_000

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

export interface LoginGuardDeps {
  readonly clock: Clock
  readonly logger: Logger
  readonly credentials: Credentials
  /** Default: its own, which ends with it. */
  readonly memory?: LoginMemory | undefined
  /** Told of each change: whether the upstream refuses the login, or there is none to be had. */
  readonly onChange: (state: { readonly isFailing: boolean }) => void
}

export class LoginGuard {
  readonly #deps: LoginGuardDeps
  readonly #name: string
  readonly #window: LoginWindow
  readonly #memory: LoginMemory
  /** The login that the upstream took last. */
  #acceptedKey: string | undefined
  #check:
    { readonly key: string; readonly atMs: number; readonly isGood: Promise<boolean> } | undefined
  /** Who finds out; resolved when it is known, or when that one gave up. */
  #probe: Promise<void> | undefined
  #isUnavailable = false
  #isFailing = false

  constructor(deps: LoginGuardDeps, { name }: { name: string }) {
    this.#deps = deps
    this.#name = name
    this.#memory = deps.memory ?? {}
    this.#window = new LoginWindow(deps.clock)
  }

  /**
   * @param host where the login will be sent
   * @returns undefined to ask anonymously
   * @throws {UpstreamError} login-failed while a refused login rests, or when its source fails
   * @throws the reason of `signal`
   */
  async acquire(host: string, signal?: AbortSignal): Promise<LoginLease | undefined> {
    let isReadAnew = false
    for (;;) {
      const current = this.#current(host)
      const login = await (signal ? leaveOnAbort(current, signal) : current)
      if (!login) return undefined
      const key = keyOf(login)
      if (key === this.#acceptedKey) return this.#lease(login, key)
      this.#checkRest(key)
      if (!this.#probe) {
        if (key !== this.#memory.refusal?.key || isReadAnew) return this.#startProbe(login, key)
        // It may have been corrected since it was read: each refusal too many brings the account closer to its lock.
        this.#deps.credentials.forget()
        isReadAnew = true
        continue
      }
      await (signal ? leaveOnAbort(this.#probe, signal) : this.#probe)
    }
  }

  /**
   * As `acquire`, for what is answered soon: then no more than a few wait for an answer at the same time, and a login
   * that is no longer right is seen before all have sent it.
   */
  async acquireInTurn(host: string, signal: AbortSignal): Promise<LoginLease | undefined> {
    await this.#window.enter(signal)
    let lease: LoginLease | undefined
    try {
      lease = await this.acquire(host, signal)
    } finally {
      if (!lease) this.#window.leave()
    }
    return lease && this.#inTurn(lease)
  }

  /** For whoever asks how this cache is doing; undefined when all is well. */
  get problem(): string | undefined {
    if (this.#isUnavailable) return 'the credentials could not be read: the log says why'
    const refusal = this.#memory.refusal
    if (!refusal || this.#memory.toldKey === undefined) return undefined
    const since = new Date(refusal.sinceMs).toISOString()
    const inS = Math.ceil(Math.max(0, this.#restsUntilMs(refusal.key) - this.#nowMs()) / 1000)
    return `credentials refused since ${since} (${refusal.reason}); tried again in ${inS} s, or when they change`
  }

  async #current(host: string): Promise<Login | undefined> {
    try {
      const wasRefused = this.#memory.refusal !== undefined
      const login = await this.#deps.credentials.current(host, { wasRefused })
      this.#isUnavailable = false
      // What was refused has been taken away.
      if (!login) this.#memory.toldKey = undefined
      this.#notify()
      return login
    } catch (error) {
      if (!(error instanceof CredentialsError)) throw error
      this.#isUnavailable = true
      this.#notify()
      // The reason names files and programs of this machine: that is for the log, not for clients.
      const message = `the credentials for ${this.#name} could not be read: the log of the cache says why`
      const retryAfterMs = UNAVAILABLE_RETRY_MS
      throw new UpstreamError('login-failed', message, { status: 401, retryAfterMs, cause: error })
    }
  }

  #startProbe(login: Login, key: string): LoginLease {
    let end = nothing
    const probe = new Promise<void>((resolve) => (end = resolve))
    this.#probe = probe
    const release = (): void => {
      if (this.#probe === probe) this.#probe = undefined
      end()
    }
    return {
      ...this.#lease(login, key),
      wasAccepted: false,
      accepted: () => this.#accept(key),
      refused: (reason) => this.#refuse(key, reason),
      release,
    }
  }

  /** Of a login that was taken before. What it does counts only as long as no other has taken its place. */
  #lease(login: Login, key: string): LoginLease {
    return {
      login,
      wasAccepted: true,
      isGood: (ask) => {
        const nowMs = this.#nowMs()
        if (this.#check?.key !== key || nowMs - this.#check.atMs >= CHECK_MS) {
          this.#check = { key, atMs: nowMs, isGood: ask() }
        }
        return this.#check.isGood
      },
      accepted: nothing,
      refused: (reason) => {
        if (key === this.#acceptedKey) this.#refuse(key, reason)
      },
      release: nothing,
    }
  }

  #inTurn(lease: LoginLease): LoginLease {
    return {
      ...lease,
      accepted: () => {
        this.#window.widen()
        lease.accepted()
      },
      release: () => {
        lease.release()
        this.#window.leave()
      },
    }
  }

  #accept(key: string): void {
    this.#acceptedKey = key
    this.#memory.refusal = undefined
    if (this.#memory.toldKey === undefined) return
    this.#memory.toldKey = undefined
    this.#deps.logger.info({ upstream: this.#name }, `${this.#name} takes the credentials again`)
    this.#notify()
  }

  #refuse(key: string, reason: string): void {
    const before = this.#memory.refusal
    this.#acceptedKey = undefined
    this.#memory.refusal = {
      key,
      reason,
      times: before?.key === key ? before.times + 1 : 1,
      timesInARow: (before?.timesInARow ?? 0) + 1,
      atMs: this.#nowMs(),
      sinceMs: before?.sinceMs ?? this.#deps.clock.now(),
    }
    this.#deps.credentials.forget()
  }

  #restsUntilMs(key: string): number {
    const refusal = this.#memory.refusal
    if (!refusal) return Number.NEGATIVE_INFINITY
    const { atMs, times, timesInARow } = refusal
    if (key === refusal.key) return atMs + Math.min(REST_MIN_MS * 2 ** (times - 1), REST_MAX_MS)
    // The first change may well be the new password: it is tried at once.
    return timesInARow > 1 ? atMs + CHANGE_PAUSE_MS : Number.NEGATIVE_INFINITY
  }

  #checkRest(key: string): void {
    const leftMs = this.#restsUntilMs(key) - this.#nowMs()
    if (leftMs <= 0 || !this.#memory.refusal) return
    const inS = Math.ceil(leftMs / 1000)
    const message =
      `the credentials for ${this.#name} were refused: check its username and password (or token); ` +
      `they are not tried again for ${inS} s, unless they change`
    this.#tell(key, this.#memory.refusal, message)
    // They may change at any time: no client is sent away for longer.
    const retryAfterMs = Math.min(leftMs, REST_MIN_MS)
    throw new UpstreamError('login-failed', message, { status: 401, retryAfterMs })
  }

  /** Once for each login, and only when no other has come in its place. */
  #tell(key: string, { reason }: Refusal, message: string): void {
    if (key === this.#memory.toldKey) return
    this.#memory.toldKey = key
    this.#deps.logger.warn({ upstream: this.#name, reason }, message)
    this.#notify()
  }

  #notify(): void {
    const isFailing = this.#isUnavailable || this.#memory.toldKey !== undefined
    if (isFailing !== this.#isFailing) this.#deps.onChange({ isFailing })
    this.#isFailing = isFailing
  }

  #nowMs(): number {
    return this.#deps.clock.monotonic()
  }
}

function nothing(): void {}

/** Tells logins apart without keeping another copy of the secret. */
function keyOf(login: Login): string {
  const parts = 'identityToken' in login ? [login.identityToken] : [login.username, login.password]
  return createHash('sha256').update(JSON.stringify(parts)).digest('base64')
}
