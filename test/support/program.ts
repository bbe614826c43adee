// The program as operators run it: a process of its own, with arguments, variables and signals.

import { spawn, type ChildProcess, type SpawnOptions } from 'node:child_process'
import { writeFile } from 'node:fs/promises'
import { join } from 'node:path'
import { fileURLToPath } from 'node:url'
import { onTestFinished } from 'vitest'
import { startFakeUpstream, type FakeUpstream } from './fake-upstream.ts'
import { makeTempDirectory } from './temp-directory.ts'
import { waitFor, within } from './wait-for.ts'

const MAIN = fileURLToPath(new URL('../../dist/main.js', import.meta.url))

export class Program {
  stdout = ''
  stderr = ''
  /** When all that it printed has been read, too. */
  readonly exited: Promise<number | null>
  readonly gone: Promise<void>
  readonly #child: ChildProcess

  /**
   * @param options.uid as another user; for root only
   * @param options.stdio where it prints to, if not here
   */
  constructor(
    args: readonly string[],
    environment: Readonly<Record<string, string>> = {},
    options: Pick<SpawnOptions, 'stdio' | 'uid'> = {},
  ) {
    const env = { PATH: process.env['PATH'] ?? '', ...environment }
    this.#child = spawn(process.execPath, [MAIN, ...args], { env, ...options })
    this.#child.stdout?.on('data', (part: Buffer) => (this.stdout += part.toString()))
    this.#child.stderr?.on('data', (part: Buffer) => (this.stderr += part.toString()))
    this.exited = new Promise((resolve) => this.#child.once('close', (code) => resolve(code)))
    this.gone = new Promise((resolve) => this.#child.once('exit', () => resolve()))
    onTestFinished(async () => {
      this.#child.kill('SIGKILL')
      this.#child.stdout?.resume()
      await this.exited
    })
  }

  get pid(): number {
    return this.#child.pid ?? 0
  }

  /** Whoever reads what it prints has seen enough. */
  closeStdout(): void {
    this.#child.stdout?.destroy()
  }

  closeStderr(): void {
    this.#child.stderr?.destroy()
  }

  /** Whoever reads what it prints has come to a stop. */
  stopReadingStdout(): void {
    this.#child.stdout?.pause()
  }

  get isGone(): boolean {
    return this.#child.exitCode !== null || this.#child.signalCode !== null
  }

  kill(signal: NodeJS.Signals): void {
    this.#child.kill(signal)
  }

  exitCode(): Promise<number | null> {
    return within('the program to exit', this.exited, { deadlineMs: 25_000 })
  }

  /** Where it says that it serves. */
  url(): Promise<string> {
    return waitFor(
      'the start line',
      () => {
        if (this.#child.exitCode !== null) throw new Error(`it has exited: ${this.stderr}`)
        return /serving on (http:[^,]+),/.exec(this.stderr)?.[1]
      },
      { deadlineMs: 20_000 },
    )
  }
}

export async function upstreamFor(): Promise<FakeUpstream> {
  const upstream = await startFakeUpstream()
  onTestFinished(() => upstream.close())
  return upstream
}

export async function configurationFile(
  remoteUrl: string,
  { root, more = '' }: { root?: string; more?: string } = {},
): Promise<string> {
  const directory = await makeTempDirectory()
  const file = join(directory, 'config.yml')
  const text = `version: 0.1
storage: {filesystem: {rootdirectory: ${root ?? join(directory, 'root')}}}
http: {addr: "127.0.0.1:0"}
proxy: {remoteurl: "${remoteUrl}", username: somebody, password: a-secret}
${more}`
  await writeFile(file, text)
  return file
}
