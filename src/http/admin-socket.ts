// The unix socket through which the commands reach the process that serves; and the lock of the volume: a second
// process finds it answered, and says so. A socket needs no cleaning up to be trusted: whoever was killed refuses
// connections from that moment on, also in another container that shares the volume.
//
// How it is taken over without a race: each process listens under a name of its own first, `admin-<id>.sock`, and
// only then looks for others. A name is never used twice, so one that refuses can be removed by anybody. Of two that
// find each other the smaller name waits, and the larger one leaves. Who finds nobody renames its socket to
// `admin.sock`; that name is replaced, never removed, by who has looked. What remains possible: machines that share a
// network file system do not reach each other's sockets, and so do not notice each other; nor does anybody notice one
// whose socket was removed by hand; that one finds it out itself (storage/volume-watch.ts).

import { randomUUID } from 'node:crypto'
import { chmod, lstat, readdir, rename, unlink } from 'node:fs/promises'
import { createServer, type RequestListener, type Server, type ServerResponse } from 'node:http'
import { hostname } from 'node:os'
import path from 'node:path'
import type { Logger } from 'pino'
import { delay, type Clock } from '../clock.ts'
import { askAdmin } from './admin-client.ts'
import { withSocketPath } from './unix-address.ts'

/** People and their scripts. */
const CONNECTIONS_MAX = 64
/** One that is stopped, or very busy, takes connections and does not answer: it is there all the same. */
const CLAIM_ANSWER_MAX_MS = 5_000
/** Another one that starts at the same time decides within milliseconds. */
const RIVAL_WAIT_MS = 50
const RIVAL_WAITS_MAX = 100
/** A process that has just won sweeps the temporary directory, and our socket with it. */
const LISTEN_TRIES_MAX = 3
/** A process that ends while it is asked does so once. */
const ASK_TRIES_MAX = 3

const CLAIM_PATH = '/claim'
const CLAIM_NAME = /^admin-[\da-f-]{36}\.sock$/

/** What a process tells of itself. */
interface Claim {
  readonly isDecided: boolean
  readonly pid: number
  readonly host: string
}

type Found =
  | { readonly kind: 'absent' | 'dead' }
  /** With what it tells of itself, or why it does not. */
  | { readonly kind: 'alive'; readonly claim?: Claim; readonly reason?: string }

/** Another process serves from the directory. */
export class VolumeInUseError extends Error {
  override readonly name = 'VolumeInUseError'
}

export interface AdminSocketOptions {
  /** `<root>/layover/admin.sock`. */
  readonly path: string
  /** On the same file system; must exist. */
  readonly temporaryDirectory: string
  /** For messages. */
  readonly rootDirectory: string
}

export class AdminSocket {
  readonly #clock: Clock
  readonly #logger: Logger
  readonly #options: AdminSocketOptions
  readonly #directory: string
  #server: Server | undefined
  /** Where it is reached now. */
  #current: string | undefined
  /** Which file that is: another process may have taken its place, should somebody have removed it. */
  #identity: string | undefined
  #isDecided = false
  #handler: RequestListener | undefined

  constructor(deps: { clock: Clock; logger: Logger }, options: AdminSocketOptions) {
    this.#clock = deps.clock
    this.#logger = deps.logger
    this.#options = options
    this.#directory = path.dirname(options.path)
  }

  /**
   * Makes this process the one that serves from the directory. Where sockets cannot be had it goes on without.
   *
   * @throws {VolumeInUseError}
   */
  async claim(): Promise<void> {
    try {
      const name = await this.#listen()
      await this.#outlast(name)
      await rename(path.join(this.#directory, name), this.#options.path)
      this.#current = this.#options.path
      this.#isDecided = true
    } catch (error) {
      await this.stop()
      if (error instanceof VolumeInUseError) throw error
      this.#logger.warn(
        { err: error },
        'no admin socket: purge, du and scrub are reached at http.debug.addr only, and nothing keeps a second ' +
          'process from this directory',
      )
    }
  }

  /** What answers from now on; undefined: nothing, try again. */
  serve(handler: RequestListener | undefined): void {
    this.#handler = handler
  }

  /** Leaves the directory to others. Idempotent. */
  async stop(): Promise<void> {
    const server = this.#server
    this.#server = undefined
    if (!server) return
    const closed = new Promise<void>((resolve) => {
      server.close(() => resolve())
    })
    const identity = this.#identity
    this.#identity = undefined
    // Not the one of a process that has the directory by now.
    if (this.#current !== undefined && (await identityOf(this.#current)) === identity)
      await unlink(this.#current).catch(ignore)
    server.closeAllConnections()
    await closed
  }

  /** @returns the name in the directory under which it listens */
  async #listen(): Promise<string> {
    for (let tries = 1; ; tries++) {
      const name = `admin-${randomUUID()}.sock`
      const hidden = path.join(this.#options.temporaryDirectory, name)
      const server = this.#createServer()
      this.#server = server
      await withSocketPath(hidden, (shortPath) => listen(server, shortPath))
      this.#current = hidden
      try {
        await chmod(hidden, 0o600)
        this.#identity = await identityOf(hidden)
        // Seen only now: whoever sees it can connect.
        await rename(hidden, path.join(this.#directory, name))
        this.#current = path.join(this.#directory, name)
        return name
      } catch (error) {
        if (codeOf(error) !== 'ENOENT' || tries >= LISTEN_TRIES_MAX) throw error
        await this.stop()
      }
    }
  }

  /** Waits until nobody else can be the one. @throws {VolumeInUseError} somebody is */
  async #outlast(own: string): Promise<void> {
    for (let waits = 0; ; waits++) {
      const hasRival = await this.#meetRivals(own)
      // After them: one that was seen under its own name may have this one by now.
      const { path: main } = this.#options
      const holder = await this.#ask(main)
      if (holder.kind === 'alive') throw this.#inUse(main, holder)
      if (!hasRival) return
      if (waits >= RIVAL_WAITS_MAX)
        throw this.#inUse(main, { kind: 'alive', reason: 'it does not come up' })
      await delay(this.#clock, RIVAL_WAIT_MS)
    }
  }

  /** @returns whether there is one that has not decided yet */
  async #meetRivals(own: string): Promise<boolean> {
    let hasRival = false
    for (const name of await readdir(this.#directory)) {
      if (name === own || !CLAIM_NAME.test(name)) continue
      const file = path.join(this.#directory, name)
      const found = await this.#ask(file)
      if (found.kind === 'dead') await unlink(file).catch(ignore)
      if (found.kind !== 'alive') continue
      if (!found.claim || found.claim.isDecided || name < own) throw this.#inUse(file, found)
      hasRival = true
    }
    return hasRival
  }

  async #ask(socket: string, tries = 1): Promise<Found> {
    try {
      const answer = await askAdmin(socket, {
        method: 'GET',
        path: CLAIM_PATH,
        answerMaxMs: CLAIM_ANSWER_MAX_MS,
      })
      let text = ''
      for await (const part of answer.setEncoding('utf8')) text += String(part)
      return { kind: 'alive', claim: JSON.parse(text) as Claim }
    } catch (error) {
      const code = codeOf(error)
      if (code === 'ENOENT') return { kind: 'absent' }
      if (code === 'ECONNREFUSED') return { kind: 'dead' }
      // It ended while we asked: then it refuses the next time.
      const isOver = code === 'ECONNRESET' || code === 'EPIPE'
      if (isOver && tries < ASK_TRIES_MAX) return this.#ask(socket, tries + 1)
      if (code === 'EACCES') return { kind: 'alive', reason: 'it belongs to another user' }
      return { kind: 'alive', reason: error instanceof Error ? error.message : String(error) }
    }
  }

  #inUse(socket: string, found: Found & { readonly kind: 'alive' }): VolumeInUseError {
    const { claim, reason = 'it does not say who it is' } = found
    const { rootDirectory } = this.#options
    return new VolumeInUseError(
      claim
        ? `another Layover serves from ${rootDirectory} (pid ${claim.pid} on host ${claim.host}): ` +
            'stop that one first, or set another storage.filesystem.rootdirectory'
        : `another Layover seems to serve from ${rootDirectory}; asked at ${socket}: ${reason}. ` +
            'Stop that one first; if there is none, remove that file',
    )
  }

  #createServer(): Server {
    const server = createServer((request, response) => {
      if (request.url === CLAIM_PATH) {
        const claim: Claim = { isDecided: this.#isDecided, pid: process.pid, host: hostname() }
        answerJson(response, 200, claim)
      } else if (this.#handler) this.#handler(request, response)
      else answerJson(response, 503, { error: 'it is starting, or stopping; try again' })
    })
    server.maxConnections = CONNECTIONS_MAX
    return server
  }
}

function listen(server: Server, shortPath: string): Promise<void> {
  return new Promise((resolve, reject) => {
    server.once('error', reject)
    server.listen(shortPath, () => {
      server.off('error', reject)
      // From now on: a connection that the system could not hand over.
      server.on('error', ignore)
      resolve()
    })
  })
}

function answerJson(response: ServerResponse, status: number, body: unknown): void {
  response.writeHead(status, { 'content-type': 'application/json' })
  response.end(`${JSON.stringify(body)}\n`)
}

/** @returns undefined when there is no such file */
async function identityOf(file: string): Promise<string | undefined> {
  const found = await lstat(file, { bigint: true }).catch(() => undefined)
  return found && `${found.dev}:${found.ino}`
}

function codeOf(error: unknown): unknown {
  return error instanceof Error && 'code' in error ? error.code : undefined
}

function ignore(): void {
  // Gone already.
}
