// What a test file leaves behind: connections, servers, processes, threads, timers, open files, temp directories,
// rejections that nobody handled, warnings. Loaded before each test file (`setupFiles`); it watches from then on,
// and fails the file if something is still there when its last test, and all that tests tidy up, is over.

import { readdirSync, readlinkSync } from 'node:fs'
import { subscribe } from 'node:diagnostics_channel'
import type { ChildProcess } from 'node:child_process'
import { Server, type Socket } from 'node:net'
import { tmpdir } from 'node:os'
import process from 'node:process'
import { setTimeout as sleep } from 'node:timers/promises'
import type { Worker } from 'node:worker_threads'
import { afterAll } from 'vitest'
import { leftDirectories } from './temp-directory.ts'

/** What is being closed takes a few turns of the event loop; on a busy machine, those take a while. */
const DEADLINE_MS = Number(process.env['LEAK_DEADLINE_MS'] ?? 5_000)
const POLL_INTERVAL_MS = 10

/** undici keeps one timer for all of its connections, which stops by itself half a second after the last one. */
const SELF_STOPPING_TIMER = /^a timer[^]*node_modules\/undici\//

/** On Node 20 there is no other way to trust a certificate that a test has made. */
const EXPECTED_WARNING = /NODE_TLS_REJECT_UNAUTHORIZED/

/** Things of one kind: where each was made, and whether it is still there. */
class Watched<Thing extends object> {
  readonly #kind: string
  readonly #isThere: (thing: Thing) => boolean
  readonly #madeAt = new Map<Thing, Error>()

  constructor(kind: string, isThere: (thing: Thing) => boolean) {
    this.#kind = kind
    this.#isThere = isThere
  }

  add(thing: Thing): void {
    // The stack is turned into text only if it is shown.
    this.#madeAt.set(thing, new Error())
  }

  delete(thing: Thing): void {
    this.#madeAt.delete(thing)
  }

  left(): string[] {
    const there = [...this.#madeAt].filter(([thing]) => this.#isThere(thing))
    const left = there.map(([, { stack = '' }]) => `${this.#kind}, made\n${callersIn(stack)}`)
    return left.filter((text) => !SELF_STOPPING_TIMER.test(text))
  }
}

/** Our own part of a stack. */
function callersIn(stack: string): string {
  const lines = stack.split('\n').slice(1)
  return lines.filter((line) => !line.includes('leak-check.ts') && !/node:/.test(line)).join('\n')
}

const connections = new Watched<Socket>('a connection', (socket) => !socket.destroyed)
const servers = new Watched<Server>('a server', (server) => server.listening)
const children = new Watched<ChildProcess>(
  'a process',
  (child) => child.pid !== undefined && child.exitCode === null && child.signalCode === null,
)
const threads = new Watched<Worker>('a thread', (worker) => worker.threadId !== -1)
const timers = new Watched<object>('a timer', () => true)
const WATCHED = [connections, servers, children, threads, timers]

/** What can't be undone any more. */
const events: string[] = []
const filesBefore = new Set(openFiles())

watchChannels()
watchServers()
watchTimers()
process.on('unhandledRejection', (reason) => {
  events.push(`a rejection that nobody handled: ${textOf(reason)}`)
})
process.on('warning', (warning) => {
  if (!EXPECTED_WARNING.test(warning.message)) events.push(`a warning: ${textOf(warning)}`)
})

// Registered first, and so the last to run.
afterAll(async () => {
  const leaks = await leaksLeft()
  if (leaks.length === 0) return
  throw new Error(`this file leaves behind:\n${leaks.join('\n')}`)
})

async function leaksLeft(): Promise<string[]> {
  const deadlineMs = performance.now() + DEADLINE_MS
  // At least once: what has just happened is told a turn later.
  do await sleep(POLL_INTERVAL_MS)
  while (thingsLeft().length > 0 && performance.now() < deadlineMs)
  return [...thingsLeft(), ...events]
}

function thingsLeft(): string[] {
  return [
    ...WATCHED.flatMap((watched) => watched.left()),
    ...leftDirectories().map((directory) => `the directory ${directory}`),
    ...openFiles()
      .filter((file) => !filesBefore.has(file))
      .map((file) => `an open file: ${file}`),
  ]
}

function watchChannels(): void {
  subscribe('net.client.socket', noteConnection)
  subscribe('net.server.socket', noteConnection)
  subscribe('child_process', (message) => {
    children.add((message as { process: ChildProcess }).process)
  })
  subscribe('worker_threads', (message) => threads.add((message as { worker: Worker }).worker))
}

function noteConnection(message: unknown): void {
  connections.add((message as { socket: Socket }).socket)
}

function watchServers(): void {
  const prototype = Server.prototype as { listen: (...options: unknown[]) => unknown }
  prototype.listen = new Proxy(prototype.listen, {
    apply(listen, server: Server, options: unknown[]) {
      servers.add(server)
      return Reflect.apply(listen, server, options)
    },
  })
}

/** Those that hold up the end of the process, and those that do not: both run when nobody expects it. */
function watchTimers(): void {
  globalThis.setTimeout = new Proxy(setTimeout, {
    apply(start, self, [run, ...rest]: [(...values: unknown[]) => void, ...unknown[]]) {
      const once = (...values: unknown[]): void => {
        timers.delete(timer)
        run(...values)
      }
      const timer = Reflect.apply(start, self, [once, ...rest]) as NodeJS.Timeout
      timers.add(timer)
      return timer
    },
  })
  globalThis.setInterval = new Proxy(setInterval, {
    apply(start, self, values: unknown[]) {
      const timer = Reflect.apply(start, self, values) as NodeJS.Timeout
      timers.add(timer)
      return timer
    },
  })
  const stopping: ProxyHandler<typeof clearTimeout> = {
    apply(stop, self, values: unknown[]) {
      const [timer] = values
      if (typeof timer === 'object' && timer !== null) timers.delete(timer)
      return Reflect.apply(stop, self, values) as unknown
    },
  }
  globalThis.clearTimeout = new Proxy(clearTimeout, stopping)
  globalThis.clearInterval = new Proxy(clearInterval, stopping)
}

/** Those of tests: what the process itself has open is elsewhere. Only Linux tells. */
function openFiles(): string[] {
  if (process.platform !== 'linux') return []
  return readdirSync('/proc/self/fd')
    .map((fd) => targetOf(fd))
    .filter((target) => target.startsWith(`${tmpdir()}/layover-`))
}

function targetOf(fd: string): string {
  try {
    return readlinkSync(`/proc/self/fd/${fd}`)
  } catch {
    // The descriptor with which the directory was listed is closed by now.
    return ''
  }
}

function textOf(error: unknown): string {
  return error instanceof Error ? (error.stack ?? error.message) : String(error)
}
