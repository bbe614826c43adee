// The program among clients that are many, slow or silent: what it takes in memory, and that it serves the others.

import { spawnSync } from 'node:child_process'
import { readFileSync, readdirSync } from 'node:fs'
import process from 'node:process'
import { afterAll, beforeAll, describe, expect, it } from 'vitest'
import { openFilesMax } from '../../src/http/open-files.ts'
import { startFakeUpstream, type FakeUpstream } from '../support/fake-upstream.ts'
import { openRaw, rawGet, type RawExchange } from '../support/http-client.ts'
import { blobOf, type TestBlob } from '../support/images.ts'
import { RawConnection } from '../support/raw-connection.ts'
import { waitFor } from '../support/wait-for.ts'
import { START_FLAGS } from '../bench/start-command.mjs'
import { PROGRAM_PATH } from './support/cache.ts'
import { freePort } from './support/loopback-server.ts'
import { Daemon } from './support/processes.ts'
import { openWorkspace } from './support/workspace.ts'

const NAME = 'library/abused'
const MIB = 1024 * 1024

/** Two processes hold the two ends; each needs a few files besides. */
const IDLE_CONNECTIONS = Math.min(10_000, Math.floor((openFilesMax() ?? Infinity) / 2) - 200)
/** Twice what was measured: about 6 KB for each, most of it Node's. */
const IDLE_MEMORY_MAX_BYTES = 120 * MIB

const SLOW_READERS = 500
const SLOW_BLOB_BYTES = 128 * MIB
/** Of the whole process, which takes 60 MB to begin with. 200 were measured; nothing of it grows with the blob. */
const SLOW_MEMORY_MAX_BYTES = 280 * MIB

/** The program's own limit for a request is 20 s, and it looks every 5 s. */
const SLOWLORIS_DEADLINE_MS = 60_000

const workspace = openWorkspace()
let upstream: FakeUpstream
let blob: TestBlob

beforeAll(async () => {
  upstream = await startFakeUpstream()
  blob = blobOf(SLOW_BLOB_BYTES, 'abused')
  upstream.addBlob(NAME, blob)
})

afterAll(() => upstream.close())

class Program {
  readonly url: string
  readonly #daemon: Daemon

  private constructor(url: string, daemon: Daemon) {
    this.url = url
    this.#daemon = daemon
  }

  static async start(name: string): Promise<Program> {
    const address = `127.0.0.1:${await freePort()}`
    const config = workspace.writeFile(`${name}.yml`, {
      version: 0.1,
      log: { formatter: 'json' },
      storage: { filesystem: { rootdirectory: workspace.makeDirectory(name) } },
      http: { addr: address },
      proxy: { remoteurl: upstream.url },
    })
    const url = `http://${address}`
    const daemon = await Daemon.start(workspace, {
      name,
      command: process.execPath,
      args: [...START_FLAGS, PROGRAM_PATH, 'serve', config],
      isReady: async () => (await rawGet(`${url}/v2/`)).status === 200,
    })
    return new Program(url, daemon)
  }

  get memoryBytes(): number {
    const status = readFileSync(`/proc/${this.#daemon.pid}/status`, 'utf8')
    return Number(/^VmRSS:\s+(\d+) kB$/m.exec(status)?.[1]) * 1024
  }

  get peakMemoryBytes(): number {
    const status = readFileSync(`/proc/${this.#daemon.pid}/status`, 'utf8')
    return Number(/^VmHWM:\s+(\d+) kB$/m.exec(status)?.[1]) * 1024
  }

  /** From now on it has as many files open as it may have. */
  forbidMoreFiles(): void {
    const pid = String(this.#daemon.pid)
    const openNow = readdirSync(`/proc/${pid}/fd`).length
    const result = spawnSync('prlimit', ['--pid', pid, `--nofile=${openNow}:`])
    expect(result.status, result.stderr.toString()).toBe(0)
  }

  allowMoreFiles(): void {
    spawnSync('prlimit', ['--pid', String(this.#daemon.pid), '--nofile=1024:'])
  }

  log(): string {
    return this.#daemon.log()
  }

  async expectToServe(path = '/v2/'): Promise<void> {
    expect((await rawGet(this.url + path)).status).toBe(200)
  }

  async stop(): Promise<void> {
    await this.#daemon.stop()
  }
}

async function openIdle(url: string, count: number): Promise<RawConnection[]> {
  const connections: RawConnection[] = []
  while (connections.length < count) {
    // As many at a time as the queue of a listening socket holds.
    const batch = Array.from({ length: Math.min(100, count - connections.length) }, () =>
      RawConnection.open(url),
    )
    connections.push(...(await Promise.all(batch)))
  }
  return connections
}

describe('ten thousand idle connections', () => {
  it('take little memory, turn nobody away, and end by themselves', async () => {
    const program = await Program.start('idle')
    const before = program.memoryBytes
    const idle = await openIdle(program.url, IDLE_CONNECTIONS)
    await program.expectToServe()
    // More than there may be: those that have been idle for longest make room.
    idle.push(...(await openIdle(program.url, 100)))
    await program.expectToServe()

    expect(program.memoryBytes - before).toBeLessThan(IDLE_MEMORY_MAX_BYTES)
    await waitFor('all of them to end', () => idle.every(({ ending }) => ending !== undefined), {
      deadlineMs: SLOWLORIS_DEADLINE_MS,
    })
    await program.expectToServe()
    expect(program.log()).not.toContain('nobody caught')
    await program.stop()
  })
})

describe('slowloris', () => {
  it('is cut off, and everybody else is served meanwhile', async () => {
    const program = await Program.start('slowloris')
    const slow = await openIdle(program.url, 500)
    for (const connection of slow) connection.send('GET /v2/ HTTP/1.1\r\nHost: x\r\n')
    let rounds = 0
    await waitFor(
      'all of them to be cut off',
      async () => {
        const open = slow.filter(({ ending }) => ending === undefined)
        const next = open[rounds++ % Math.max(1, open.length)]
        next?.send('X: y\r\n')
        if (rounds % 100 === 0) await program.expectToServe()
        return open.length === 0
      },
      { deadlineMs: SLOWLORIS_DEADLINE_MS },
    )
    expect(slow.filter(({ received }) => received.startsWith('HTTP/1.1 408 ')).length).toBe(500)
    await program.stop()
  })
})

describe('five hundred clients that take nothing', () => {
  it('each at another place of one cold blob, leave memory flat and the others served', async () => {
    const program = await Program.start('slow')
    const path = `/v2/${NAME}/blobs/${blob.digest}`
    const gate = upstream.gate({ kind: 'blob' }, { afterBytes: MIB })
    const slow: RawExchange[] = []
    for (let index = 0; index < SLOW_READERS; index++) {
      // Close enough that none of them is far ahead, in which case it would get a download of its own.
      const offset = Math.floor((index * 60 * MIB) / SLOW_READERS)
      const headers = { Range: `bytes=${offset}-` }
      slow.push(await openRaw(program.url + path, { headers }))
    }
    expect(slow.every(({ status }) => status === 206)).toBe(true)
    gate.release()

    const quick = await rawGet(program.url + path)
    expect(quick.body.equals(blob.bytes)).toBe(true)
    const again = await rawGet(program.url + path)
    expect(again.body.equals(blob.bytes)).toBe(true)

    expect(program.peakMemoryBytes).toBeLessThan(SLOW_MEMORY_MAX_BYTES)
    expect(upstream.count({ kind: 'blob' })).toBe(1)
    for (const exchange of slow) exchange.leave()
    await program.stop()
  })
})

describe('a process that can open no more files', () => {
  it('closes the connections that it cannot accept, and serves again when it can', async () => {
    const program = await Program.start('few-files')
    // It opens files of its own until then, and may take the one that is kept for closing connections.
    await waitFor('the volume to be looked through', () => program.log().includes('found 0 blobs'))
    program.forbidMoreFiles()
    const many = await openIdle(program.url, 200)
    for (const connection of many) connection.get('/v2/')
    await waitFor('each to be answered or closed', () =>
      many.every(({ ending, received }) => ending !== undefined || received !== ''),
    )
    expect(many.some(({ received }) => received === '')).toBe(true)

    program.allowMoreFiles()
    await program.expectToServe()
    expect(program.log()).not.toContain('nobody caught')
    await program.stop()
  })
})
