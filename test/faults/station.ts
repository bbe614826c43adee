// Where cells are run: one upstream, one cache in front of it, and a clock that leaps. One cell at a time, each
// with a repository of its own, so that a log line and a counter belong to the cell that runs, and the clock
// may leap for it. Nothing is dialled beyond this machine: see `fence`.

import net from 'node:net'
import { startFakeUpstream, type FakeUpstream } from '../support/fake-upstream.ts'
import type { RequestMatch } from '../support/fake-upstream-requests.ts'
import { passFastTime } from '../support/fast-timers.ts'
import { rawGet } from '../support/http-client.ts'
import { Layover } from '../support/layover.ts'
import { LeapingClock } from '../support/leaping-clock.ts'
import { makeDirectory, removeDirectory } from '../support/temp-directory.ts'
import { TLS_CERTIFICATE } from '../support/tls-certificate.ts'
import { nextTurn, waitFor } from '../support/wait-for.ts'
import type { StationKind } from './fault-row.ts'

const LOGIN = { username: 'cache', password: 'secret' } as const
/** Long enough for any test, short enough that a lost client is noticed. */
const DEADLINE_MS = 20_000
/** What a call to an upstream may take. */
const CALL_LIMIT_MS = 25_000
/** A body may stand still for less; clients wait for more. */
const BODY_IDLE_MS = 26_000
/** Turns of the event loop after which what a timer has ended is over. */
const SETTLING_TURNS = 20

const PULLED_BYTES = 'registry_proxy_pulled_bytes_total{type="blob"}'

export type Counters = ReadonlyMap<string, number>

export class Station {
  readonly upstream: FakeUpstream
  readonly layover: Layover
  readonly clock: LeapingClock
  readonly #directory: string
  readonly #kind: StationKind

  private constructor(
    upstream: FakeUpstream,
    { clock, directory, kind }: { clock: LeapingClock; directory: string; kind: StationKind },
  ) {
    this.upstream = upstream
    this.#kind = kind
    this.clock = clock
    this.#directory = directory
    this.layover = new Layover(upstream, {
      clock,
      rootDirectory: directory,
      ...(kind === 'login' && { configuration: { proxy: { remoteurl: upstream.url, ...LOGIN } } }),
    })
  }

  static async start(kind: StationKind): Promise<Station> {
    fence()
    const clock = new LeapingClock()
    // Nobody vouches for the upstream's certificate; this is read at each connect, and all else here is http.
    if (kind === 'tls') process.env['NODE_TLS_REJECT_UNAUTHORIZED'] = '0'
    const upstream = await startFakeUpstream({
      auth: 'bearer',
      clock,
      ...(kind === 'login' && { credentials: LOGIN }),
      ...(kind === 'tls' && { tls: TLS_CERTIFICATE }),
    })
    const station = new Station(upstream, { clock, directory: await makeDirectory(), kind })
    await station.layover.start()
    return station
  }

  /** @throws when something was left behind: a connection, a file in the spool */
  async stop(): Promise<void> {
    try {
      await this.layover.end()
    } finally {
      if (this.#kind === 'tls') delete process.env['NODE_TLS_REJECT_UNAUTHORIZED']
      await this.upstream.close()
      await removeDirectory(this.#directory)
    }
  }

  /** Waits for `work`. Whenever the upstream stands still meanwhile, time passes until it is given up. */
  async while<T>(work: Promise<T>): Promise<T> {
    let isOver = false
    const over = (): void => void (isOver = true)
    work.then(over, over)
    await waitFor(
      'the clients to be answered',
      async () => {
        if (!isOver && this.upstream.hanging > 0) await this.#wearOut()
        return isOver
      },
      { deadlineMs: DEADLINE_MS },
    )
    return work
  }

  /** Until nobody is being answered, nothing is downloaded, and nothing goes on that was begun for a client. */
  async idle(): Promise<void> {
    const isQuiet = async (): Promise<boolean> => {
      for (let turn = 0; turn < SETTLING_TURNS; turn++) {
        if (this.upstream.answering + this.clock.pauses > 0 || isDiskBusy()) return false
        await nextTurn()
      }
      const counters = await this.counters()
      return sumOf(counters, 'registry_http_in_flight_requests', 'layover_fills_running') === 0
    }
    const quiet = waitFor('requests and downloads to be over', isQuiet, { deadlineMs: DEADLINE_MS })
    await this.while(quiet)
  }

  /**
   * Holds what ends the next bodies until all that was sent before has been taken.
   *
   * @param before by now
   * @param served what has to happen beside that, asked for when it has
   */
  async breakLate(
    { digest, match }: { match: RequestMatch; digest: string },
    before: Counters,
    served: () => Promise<unknown> | undefined,
  ): Promise<void> {
    const gate = this.upstream.gate(match, { afterBytes: Infinity })
    const takenBefore = before.get(PULLED_BYTES) ?? 0
    await gate.reached
    await waitFor('the bytes before the break to be taken', async () => {
      const takenBytes = (await this.layover.metric(PULLED_BYTES)) - takenBefore
      return takenBytes >= this.upstream.bytesSent(digest)
    })
    await served()
    gate.release()
  }

  async requestsInFlight(): Promise<number> {
    return this.layover.metric('registry_http_in_flight_requests')
  }

  /** All that /metrics says, by series. */
  async counters(): Promise<Counters> {
    const { body } = await rawGet(`${this.layover.debugUrl}/metrics`)
    const lines = body.toString().split('\n')
    return new Map(
      lines
        .filter((line) => line !== '' && !line.startsWith('#'))
        .map((line) => [
          line.slice(0, line.lastIndexOf(' ')),
          Number(line.slice(line.lastIndexOf(' '))),
        ]),
    )
  }

  async #wearOut(): Promise<void> {
    await this.clock.leap(CALL_LIMIT_MS)
    for (let turn = 0; turn < SETTLING_TURNS; turn++) await nextTurn()
    if (this.upstream.hanging === 0) return
    passFastTime(BODY_IDLE_MS)
    for (let turn = 0; turn < SETTLING_TURNS; turn++) await nextTurn()
  }
}

/** Nobody listens there. */
const NOWHERE = { host: '127.0.0.1', port: 9 }

/** Whether something is read or written by this thread. */
function isDiskBusy(): boolean {
  return process.getActiveResourcesInfo().some((resource) => resource.startsWith('FSReq'))
}

function sumOf(counters: Counters, ...series: string[]): number {
  return series.reduce((sum, one) => sum + (counters.get(one) ?? 0), 0)
}

let isFenced = false

/** Connections to other machines are refused as if there were no route: a fault must not leave this one. */
function fence(): void {
  if (isFenced) return
  isFenced = true
  const connect = net.connect
  const fenced = (options: net.TcpNetConnectOpts): net.Socket => {
    const isNear = /^(127\.|localhost$|\[?::1\]?$)/.test(options.host ?? '')
    return connect(isNear ? options : { ...options, ...NOWHERE })
  }
  Object.assign(net, { connect: fenced })
}
