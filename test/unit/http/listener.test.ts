// What a listener does about connections: how many, for how long, in which order, and at which address.

import type { RequestListener, ServerResponse } from 'node:http'
import { once } from 'node:events'
import { existsSync } from 'node:fs'
import { link, readFile, writeFile } from 'node:fs/promises'
import { connect, createServer } from 'node:net'
import { join } from 'node:path'
import { pino } from 'pino'
import { describe, expect, it, onTestFinished } from 'vitest'
import { Listener, type ListenerLimits, type ListenAddress } from '../../../src/http/listener.ts'
import { openFilesMax } from '../../../src/http/open-files.ts'
import { FakeClock } from '../../support/fake-clock.ts'
import { RawConnection, requestFor } from '../../support/raw-connection.ts'
import { makeTempDirectory } from '../../support/temp-directory.ts'
import { nextTurn, waitFor, within } from '../../support/wait-for.ts'

const SHORT: ListenerLimits = {
  keepAliveMs: 30_000,
  requestMs: 300,
  checkIntervalMs: 10,
  silenceMs: 30_000,
  headersBytes: 16 * 1024,
}

interface Stage {
  readonly listener: Listener
  readonly clock: FakeClock
  readonly log: string[]
  /** Requests that wait for the test to answer them, by path. */
  readonly held: Map<string, ServerResponse>
  /** Every path that was asked for. */
  readonly seen: string[]
}

interface StageOptions {
  readonly address?: ListenAddress
  readonly connectionsMax?: number
  readonly limits?: ListenerLimits
}

/** Answers with the path, at once, or (below /held) when the test says so. */
function makeListener({ connectionsMax = 100, ...options }: StageOptions = {}): Stage {
  const held = new Map<string, ServerResponse>()
  const seen: string[] = []
  const log: string[] = []
  const clock = new FakeClock()
  const handler: RequestListener = ({ url = '' }, response) => {
    seen.push(url)
    if (url.startsWith('/held')) held.set(url, response)
    else response.end(url)
  }
  const logger = pino({ level: 'debug' }, { write: (line: string) => void log.push(line) })
  const address = { host: '127.0.0.1', port: 0 }
  const listener = new Listener({ clock, logger, handler }, { address, connectionsMax, ...options })
  return { listener, clock, log, held, seen }
}

async function startListener(options: StageOptions = {}): Promise<Stage> {
  const stage = makeListener(options)
  await stage.listener.start()
  onTestFinished(() => stop(stage))
  return stage
}

async function stop({ clock, listener }: Stage): Promise<void> {
  const stopped = listener.stop(0)
  await clock.advance(0)
  await stopped
}

async function openMany(url: string, count: number): Promise<RawConnection[]> {
  const connections: RawConnection[] = []
  // One after the other: the order in which they were opened matters.
  for (let index = 0; index < count; index++) connections.push(await RawConnection.open(url))
  return connections
}

describe('a listener with as many connections as it may have', () => {
  it('closes the one that has been idle for longest when another one comes', async () => {
    const { listener } = await startListener({ connectionsMax: 3 })
    const [first, second, third] = await openMany(listener.url, 3)
    for (const connection of [first, second, third]) {
      connection?.get('/')
      await connection?.answered()
    }
    // From now on the second has been idle for longest.
    if (first) first.received = ''
    first?.get('/again')
    await first?.answered()

    const fourth = await RawConnection.open(listener.url)
    fourth.get('/fourth')

    expect(await fourth.answered()).toContain('/fourth')
    await second?.ended()
    expect([first?.ending, third?.ending]).toEqual([undefined, undefined])
  })

  it('closes one on which no request was ever completed, too', async () => {
    const { listener } = await startListener({ connectionsMax: 2 })
    const [unfinished] = await openMany(listener.url, 2)
    unfinished?.send('GET / HTTP/1.1\r\nHost: ')

    const third = await RawConnection.open(listener.url)
    third.get('/third')

    expect(await third.answered()).toContain('/third')
    expect(await unfinished?.ended()).toBe('')
  })

  it('closes the new one when all others are being answered, and says so once a minute', async () => {
    const { clock, held, listener, log } = await startListener({ connectionsMax: 2 })
    const busy = await openMany(listener.url, 2)
    for (const [index, connection] of busy.entries()) connection.get(`/held/${index}`)
    await waitFor('both requests', () => held.size === 2)

    for (let round = 0; round < 3; round++) {
      expect(await (await RawConnection.open(listener.url)).ended()).toBe('')
    }
    expect(log.filter((line) => line.includes('a connection was refused'))).toHaveLength(1)
    await clock.advance(60_000)
    await (await RawConnection.open(listener.url)).ended()
    expect(log.filter((line) => line.includes('a connection was refused'))).toHaveLength(2)

    for (const [url, response] of held) response.end(`late ${url}`)
    for (const [index, connection] of busy.entries()) {
      expect(await connection.answered()).toContain(`late /held/${index}`)
    }
  })

  it('has room again when one has gone', async () => {
    const { held, listener } = await startListener({ connectionsMax: 1 })
    const only = await RawConnection.open(listener.url)
    only.get('/held')
    await waitFor('the request', () => held.size === 1)
    only.close()
    await waitFor('the connection to be forgotten', () => held.get('/held')?.destroyed === true)

    const next = await RawConnection.open(listener.url)
    next.get('/next')

    expect(await next.answered()).toContain('/next')
  })
})

describe('slow requests', () => {
  it('end with 408 however steadily their bytes come, and disturb nobody', async () => {
    const { listener, seen } = await startListener({ limits: SHORT })
    const slow = await openMany(listener.url, 50)
    for (const connection of slow) connection.send('GET /slow HTTP/1.1\r\n')
    await waitFor('all of them to be closed', async () => {
      for (const connection of slow)
        if (connection.ending === undefined) connection.send('X: y\r\n')
      await nextTurn()
      return slow.every(({ ending }) => ending !== undefined)
    })

    const quick = await RawConnection.open(listener.url, requestFor('/quick'))
    expect(await quick.answered()).toContain('/quick')
    expect(seen).toEqual(['/quick'])
    expect(slow.some(({ received }) => received.startsWith('HTTP/1.1 408 '))).toBe(true)
  })

  it('are those that were never begun, too', async () => {
    const { listener } = await startListener({ limits: SHORT })
    const silent = await RawConnection.open(listener.url)

    expect(await silent.ended()).toMatch(/^HTTP\/1\.1 408 /)
  })

  it('are not those that wait for their answer', async () => {
    const { held, listener } = await startListener({ limits: SHORT })
    const patient = await RawConnection.open(listener.url, requestFor('/held'))
    await waitFor('the request', () => held.has('/held'))
    // A connection that came later is looked at with it, and closed: so both have been looked at.
    await (await RawConnection.open(listener.url)).ended()

    held.get('/held')?.end('at last')
    expect(await patient.answered()).toContain('at last')
  })
})

describe('pipelined requests', () => {
  it('are answered in order, each begun when the one before it is over', async () => {
    const { held, listener, seen } = await startListener()
    const connection = await RawConnection.open(listener.url)
    for (const path of ['/held/1', '/2', '/3']) connection.get(path)
    await waitFor('the first', () => held.has('/held/1'))
    await nextTurn()
    expect(seen).toEqual(['/held/1'])

    held.get('/held/1')?.end('/1')
    await waitFor('all answers', () => connection.received.endsWith('/3'))

    expect(connection.received.match(/^\/\d(?=HTTP|$)/gm)).toEqual(['/1', '/2', '/3'])
  })

  it('end the connection when there are absurdly many, and are not begun', async () => {
    const { held, listener, seen } = await startListener()
    const connection = await RawConnection.open(listener.url)
    connection.send(requestFor('/held').repeat(10_000))
    await connection.ended()
    await waitFor('the first answer to be given up', () => held.get('/held')?.destroyed === true)

    expect(seen).toEqual(['/held'])
    await expectAnswers(listener)
  })

  it('are not begun once their client has gone', async () => {
    const { held, listener, seen } = await startListener()
    const connection = await RawConnection.open(listener.url)
    connection.get('/held')
    connection.get('/never')
    await waitFor('the first', () => held.has('/held'))
    connection.close()
    await waitFor('the end of the first', () => held.get('/held')?.destroyed === true)

    await expectAnswers(listener)
    expect(seen).toEqual(['/held', '/alive'])
  })
})

async function expectAnswers(listener: Listener): Promise<void> {
  const connection = await RawConnection.open(listener.url)
  connection.get('/alive')
  expect(await connection.answered()).toContain('/alive')
}

describe('a stop', () => {
  it('does not wait for connections on which nothing was asked', async () => {
    const stage = makeListener()
    await stage.listener.start()
    const silent = await RawConnection.open(stage.listener.url)

    await within('the stop', stage.listener.stop(60_000))

    expect(await silent.ended()).toBe('')
  })

  it('waits for an answer, and closes its connection then', async () => {
    const stage = makeListener()
    await stage.listener.start()
    const connection = await RawConnection.open(stage.listener.url)
    connection.get('/held')
    connection.get('/not-any-more')
    await waitFor('the request', () => stage.held.size === 1)
    const stopped = stage.listener.stop(60_000)

    stage.held.get('/held')?.end('finished')

    expect(await connection.ended()).toMatch(/finished$/)
    await within('the stop', stopped)
    expect(stage.seen).toEqual(['/held'])
  })
})

describe('a unix socket', () => {
  it('that a crash has left is replaced', async () => {
    const path = await socketPath()
    await leaveStaleSocket(path)
    await startListener({ address: { path } })

    expect(await answers(path)).toBe(true)
  })

  it('on which another process listens is left alone', async () => {
    const path = await socketPath()
    await startListener({ address: { path } })

    await expect(makeListener({ address: { path } }).listener.start()).rejects.toThrow(
      /layover\.sock: another process uses it/,
    )
    expect(await answers(path)).toBe(true)
  })

  it('does not take the place of a file', async () => {
    const path = await socketPath()
    await writeFile(path, 'precious')

    await expect(makeListener({ address: { path } }).listener.start()).rejects.toThrow(
      /layover\.sock: there is something that is not a socket; remove it, or set http\.addr/,
    )
    expect(await readFile(path, 'utf8')).toBe('precious')
  })
})

describe('the limit of open files', () => {
  it('is what the system says', async () => {
    const file = join(await makeTempDirectory(), 'limits')
    await writeFile(file, 'Max processes  1  2  processes\nMax open files  1024  4096  files\n')
    expect(openFilesMax(file)).toBe(1024)
  })

  it.each(['Max open files  unlimited  unlimited  files\n', ''])('may be unknown', async (text) => {
    const file = join(await makeTempDirectory(), 'limits')
    await writeFile(file, text)
    expect(openFilesMax(file)).toBeUndefined()
    expect(openFilesMax(`${file}.none`)).toBeUndefined()
  })
})

async function socketPath(): Promise<string> {
  return join(await makeTempDirectory(), 'layover.sock')
}

async function answers(path: string): Promise<boolean> {
  const socket = connect({ path })
  await once(socket, 'connect')
  socket.end('GET /here HTTP/1.1\r\nHost: layover\r\nConnection: close\r\n\r\n')
  const chunks: Buffer[] = await socket.toArray()
  return Buffer.concat(chunks).toString().includes('/here')
}

/** A second name of a socket stays when its server closes, as after a crash. */
async function leaveStaleSocket(path: string): Promise<void> {
  const server = createServer().listen(`${path}.first`)
  await once(server, 'listening')
  await link(`${path}.first`, path)
  server.close()
  await once(server, 'close')
  expect(existsSync(path)).toBe(true)
}
