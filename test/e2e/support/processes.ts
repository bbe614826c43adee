// Real programs: commands that end, and daemons that run until a test stops them. All run in a clean
// environment behind a fence: what is not on the loopback is refused at once, so that a client that
// gives up on the cache cannot quietly be served by the Internet.

import { spawn, type ChildProcess } from 'node:child_process'
import { accessSync, closeSync, constants, openSync, readFileSync } from 'node:fs'
import { delimiter, join } from 'node:path'
import process from 'node:process'
import { waitFor } from '../../support/wait-for.ts'
import type { Workspace } from './workspace.ts'

const COMMAND_TIMEOUT_MS = 150_000
const READY_TIMEOUT_MS = 30_000
const STOP_TIMEOUT_MS = 20_000

/** Daemons are in the sbin directories, which a user's PATH often lacks. */
const PATH = [process.env['PATH'] ?? '', '/usr/local/sbin', '/usr/sbin', '/sbin'].join(delimiter)

/** Nobody listens on the discard port. */
const FENCE = 'http://127.0.0.1:9'

export type Environment = Readonly<Record<string, string>>

/** The environment of everything we start: nothing of the developer's own gets in. */
export function fencedEnvironment(workspace: Workspace, more: Environment = {}): Environment {
  const proxies = { HTTP_PROXY: FENCE, HTTPS_PROXY: FENCE, NO_PROXY: '127.0.0.1,localhost' }
  return { PATH, HOME: workspace.makeDirectory('home'), LC_ALL: 'C.UTF-8', ...proxies, ...more }
}

export function isInstalled(program: string): boolean {
  return PATH.split(delimiter).some((directory) => {
    try {
      accessSync(join(directory, program), constants.X_OK)
      return true
    } catch {
      return false
    }
  })
}

export class CommandError extends Error {
  override readonly name = 'CommandError'
  readonly output: string

  constructor(command: string, ending: string, output: string) {
    super(`${command}: ${ending}\n${output}`)
    this.output = output
  }
}

/**
 * Runs a program to its end.
 *
 * @returns what it wrote to stdout
 * @throws {CommandError} it failed, or took longer than two and a half minutes
 */
export async function run(
  workspace: Workspace,
  command: string,
  args: readonly string[],
  environment: Environment = {},
): Promise<string> {
  const child = spawn(command, args, {
    env: fencedEnvironment(workspace, environment),
    cwd: workspace.directory,
    stdio: ['ignore', 'pipe', 'pipe'],
    timeout: COMMAND_TIMEOUT_MS,
    killSignal: 'SIGKILL',
  })
  let stdout = ''
  let stderr = ''
  child.stdout.setEncoding('utf8').on('data', (text: string) => (stdout += text))
  child.stderr.setEncoding('utf8').on('data', (text: string) => (stderr += text))
  const ending = await endingOf(child, 'close')
  if (ending === 'exit code 0') return stdout
  throw new CommandError([command, ...args].join(' '), ending, `${stdout}${stderr}`)
}

export interface DaemonOptions {
  readonly name: string
  readonly command: string
  readonly args: readonly string[]
  readonly environment?: Environment
  /** Whether it answers; an exception means not yet. */
  readonly isReady: () => Promise<unknown>
}

/** A program in the background. Its output goes to a log that is shown when a test fails. */
export class Daemon {
  readonly #options: DaemonOptions
  readonly #workspace: Workspace
  readonly #logPath: string
  #child: ChildProcess | undefined
  #ended: Promise<string> = Promise.resolve('never started')

  private constructor(workspace: Workspace, options: DaemonOptions) {
    this.#workspace = workspace
    this.#options = options
    this.#logPath = workspace.logFile(options.name)
    workspace.onClose(() => this.stop())
  }

  /** @returns once it is ready @throws when it ends before that, or is not ready in time */
  static async start(workspace: Workspace, options: DaemonOptions): Promise<Daemon> {
    const daemon = new Daemon(workspace, options)
    await daemon.start()
    return daemon
  }

  /** Undefined before the first start. */
  get pid(): number | undefined {
    return this.#child?.pid
  }

  /** Starts it again, after `stop` or `kill`. */
  async start(): Promise<void> {
    const { name, command, args, environment, isReady } = this.#options
    const log = openSync(this.#logPath, 'a')
    const child = spawn(command, args, {
      env: fencedEnvironment(this.#workspace, environment),
      cwd: this.#workspace.directory,
      stdio: ['ignore', log, log],
    })
    closeSync(log)
    this.#child = child
    this.#ended = endingOf(child, 'exit')
    let ending: string | undefined
    void this.#ended.then((text) => (ending = text))
    const readiness = async (): Promise<unknown> => {
      if (ending !== undefined) throw new CommandError(name, `ended: ${ending}`, this.log())
      return isReady().catch(() => false)
    }
    await waitFor(`${name} to be ready`, readiness, { deadlineMs: READY_TIMEOUT_MS })
  }

  /** Asks it to end, and ends it when it does not. */
  async stop(): Promise<void> {
    this.#child?.kill('SIGTERM')
    const deadline = setTimeout(() => this.#child?.kill('SIGKILL'), STOP_TIMEOUT_MS)
    await this.#ended
    clearTimeout(deadline)
  }

  /** Ends it with no chance to tidy up (SIGKILL). */
  async kill(): Promise<void> {
    this.#child?.kill('SIGKILL')
    await this.#ended
  }

  log(): string {
    return readFileSync(this.#logPath, 'utf8')
  }
}

function endingOf(child: ChildProcess, event: 'close' | 'exit'): Promise<string> {
  return new Promise((resolve) => {
    child.once('error', (error) => resolve(error.message))
    child.once(event, (code, signal) => resolve(signal ?? `exit code ${code}`))
  })
}
