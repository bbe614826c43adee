// Decides whether the credentials may be tried. Registries lock accounts and addresses after a few failed
// logins, so: while nobody knows whether a login is right, one request finds out and the others wait; one that was
// right is carried by a few questions for tokens at a time, or, where requests carry it themselves, by a few until the
// first is accepted; one that was refused rests, for longer each time, unless the source has another one by then, and
// what has not gone yet does not go.

import { createHash } from 'node:crypto'
import type { Logger } from 'pino'
import { delay, type CancelTimer, type Clock } from '../../clock.ts'
import { leaveOnAbort } from '../call-budget.ts'
import { UpstreamError } from '../upstream-error.ts'
import { CredentialsError, type Credentials, type Login } from './login.ts'
import { LoginWithdrawn, type LoginLease, type SentLease } from './login-lease.ts'
import type { LoginMemory, Refusal } from './login-memory.ts'
import { LoginWindow, REQUEST_WINDOW, TOKEN_WINDOW, type Ticket } from './login-window.ts'
import { SharedCheck } from './shared-check.ts'

/** Doubled with each refusal: five in the first quarter of an hour. Docker Hub locks for ten minutes. */
const REST_MIN_MS = 60_000
const REST_MAX_MS = 60 * 60_000

/** A source that gives another wrong login each time it is asked must not become a loop either. */
const CHANGE_PAUSE_MS = 10_000

/** Who has no answer by then may be waiting for content: the next one finds out about the login. */
const PROBE_MS = 1_000

/** When nobody could say whether a refused login is good for anything it is tried again by one, later each time. */
const DOUBT_MIN_MS = 1_000
const DOUBT_MAX_MS = 8_000

/** What clients are told when the source of the credentials fails; it is asked again after that time. */
const UNAVAILABLE_RETRY_MS = 10_000

interface GuardedLease extends LoginLease {
  /** What is known of the login allows its use still. */
  readonly isUsable: () => boolean
  /** Just before the login goes: what was found out before then says nothing of an answer that comes now. */
  readonly goes: () => void
  /** A refusal has come, and it is found out what it is about: up to `release` nobody else needs to. */
  readonly suspect: () => void
  /** That could not be found out. */
  readonly doubt: () => void
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
  /** Questions for tokens. */
  readonly #questions: LoginWindow
  /** Requests that carry the login themselves. */
  readonly #requests: LoginWindow
  readonly #memory: LoginMemory
  readonly #check: SharedCheck
  /** The login that the upstream took last. */
  #acceptedKey: string | undefined
  /** A login that was refused, nobody knows why. */
  #doubted: { readonly key: string; readonly times: number; readonly untilMs: number } | undefined
  /** Who finds out; resolved when it is known, or when that one gave up. */
  #probe: Promise<void> | undefined
  #isUnavailable = false
  #isFailing = false

  constructor(deps: LoginGuardDeps, { name }: { name: string }) {
    this.#deps = deps
    this.#name = name
    this.#memory = deps.memory ?? {}
    this.#check = new SharedCheck(deps.clock)
    this.#questions = new LoginWindow(deps.clock, TOKEN_WINDOW)
    this.#requests = new LoginWindow(deps.clock, REQUEST_WINDOW)
  }

  /**
   * For what is answered soon: no more than a few wait for an answer at the same time, and a login that is no longer
   * right is seen before all have sent it.
   *
   * @param host where the login will be sent
   * @returns undefined to ask anonymously
   * @throws {UpstreamError} login-failed while a refused login rests, or when its source fails
   * @throws the reason of `signal`
   */
  async acquireInTurn(host: string, signal: AbortSignal): Promise<LoginLease | undefined> {
    const ticket = await this.#questions.enter(signal)
    let lease: LoginLease | undefined
    try {
      lease = await this.#acquire(host, signal, Infinity)
    } finally {
      if (!lease) this.#questions.leave(ticket)
    }
    return lease && this.#inTurn(lease, ticket)
  }

  /** As `acquireInTurn`, for a request that carries the login itself: it waits for its turn at its passage. */
  async acquireToSend(host: string, signal: AbortSignal): Promise<SentLease | undefined> {
    const lease = await this.#acquire(host, signal, PROBE_MS)
    return lease && this.#toSend(lease)
  }

  async #acquire(
    host: string,
    signal: AbortSignal,
    probeMs: number,
  ): Promise<GuardedLease | undefined> {
    let isReadAnew = false
    for (;;) {
      const login = await leaveOnAbort(this.#current(host), signal)
      if (!login) return undefined
      const key = keyOf(login)
      if (key === this.#acceptedKey) return this.#lease(login, key)
      this.#checkRest(key)
      const doubtMs = this.#doubted?.key === key ? this.#doubted.untilMs - this.#nowMs() : 0
      if (doubtMs > 0) {
        await delay(this.#deps.clock, doubtMs, { signal })
        continue
      }
      if (!this.#probe) {
        if (key !== this.#memory.refusal?.key || isReadAnew) {
          return this.#startProbe(login, key, probeMs)
        }
        // It may have been corrected since it was read: each refusal too many brings the account closer to its lock.
        this.#deps.credentials.forget()
        isReadAnew = true
        continue
      }
      await leaveOnAbort(this.#probe, signal)
    }
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

  /** @param probeMs by then another may try as well; Infinity: only when this one gives up */
  #startProbe(login: Login, key: string, probeMs: number): GuardedLease {
    let cancelTimer: CancelTimer = nothing
    let giveWay = this.#haveOthersWait()
    const release = (): void => {
      cancelTimer()
      giveWay()
    }
    if (probeMs < Infinity) cancelTimer = this.#deps.clock.setTimer(probeMs, release)
    const before = this.#memory.refusal
    const acceptedBefore = this.#acceptedKey
    // What another has found out since is not to be counted twice, and a login that was taken since is the newer one.
    const isUsable = (): boolean =>
      (this.#memory.refusal === before || this.#memory.refusal?.key !== key) &&
      [undefined, acceptedBefore, key].includes(this.#acceptedKey)
    return {
      ...this.#lease(login, key, isUsable),
      wasAccepted: false,
      accepted: () => {
        if (isUsable()) this.#accept(key)
      },
      suspect: () => {
        release()
        giveWay = this.#haveOthersWait()
      },
      release,
    }
  }

  /** @returns ends it */
  #haveOthersWait(): () => void {
    let end = nothing
    const probe = new Promise<void>((resolve) => (end = resolve))
    this.#probe = probe
    return () => {
      if (this.#probe === probe) this.#probe = undefined
      end()
    }
  }

  /** Of a login that was taken before. What it does counts only as long as no other has taken its place. */
  #lease(login: Login, key: string, isUsable = () => key === this.#acceptedKey): GuardedLease {
    let goodBefore = this.#check.goodTimes
    return {
      login,
      wasAccepted: true,
      isUsable,
      goes: () => {
        goodBefore = this.#check.goodTimes
      },
      isGood: (ask) =>
        isUsable() ? this.#check.isGood(key, goodBefore, ask) : Promise.resolve(false),
      suspect: nothing,
      doubt: () => this.#doubt(key),
      accepted: nothing,
      refused: (reason) => {
        if (isUsable()) this.#refuse(key, reason)
      },
      release: nothing,
    }
  }

  #inTurn(lease: LoginLease, ticket: Ticket): LoginLease {
    return {
      ...lease,
      accepted: () => {
        this.#questions.widen()
        lease.accepted()
      },
      release: () => {
        lease.release()
        this.#questions.leave(ticket)
      },
    }
  }

  #toSend(lease: GuardedLease): SentLease {
    const { isUsable, wasAccepted } = lease
    const window = this.#requests
    let endHold = nothing
    let ticket: Ticket | undefined
    let forbidden: Ticket | undefined
    return {
      ...lease,
      passage: {
        enter: async (signal) => {
          if (!isUsable()) throw new LoginWithdrawn()
          // Who finds out is alone anyway.
          if (!wasAccepted) return
          ticket = await window.enter(signal)
          if (isUsable()) return
          window.leave(ticket)
          throw new LoginWithdrawn()
        },
        mayGo: () => {
          const mayGo = isUsable() && (!ticket || window.isOpenTo(ticket))
          if (mayGo) lease.goes()
          return mayGo
        },
        leave: (status) => {
          if (status === 401 && isUsable()) {
            // Before it leaves: the next one must not go in its place.
            endHold = window.hold()
            lease.suspect()
          }
          // Most often it is about the repository, and no reason to hold up others. If not: none goes in its place.
          if (status === 403) forbidden = ticket
          else if (ticket) window.leave(ticket)
        },
      },
      isGood: (ask) =>
        lease.isGood(() =>
          ask().catch((error: unknown) => {
            lease.doubt()
            throw error
          }),
        ),
      accepted: () => {
        endHold()
        window.widen()
        lease.accepted()
      },
      release: () => {
        endHold()
        if (forbidden) window.leave(forbidden)
        lease.release()
      },
    }
  }

  #accept(key: string): void {
    this.#acceptedKey = key
    this.#doubted = undefined
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
    this.#requests.admitAll()
  }

  #doubt(key: string): void {
    const times = this.#doubted?.key === key ? this.#doubted.times + 1 : 1
    const leftMs = Math.min(DOUBT_MIN_MS * 2 ** (times - 1), DOUBT_MAX_MS)
    this.#doubted = { key, times, untilMs: this.#nowMs() + leftMs }
    if (key === this.#acceptedKey) this.#acceptedKey = undefined
    this.#requests.admitAll()
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
