// The cache under test, as an operator runs it: the built program with a configuration file.
// `E2E_SUBJECT=registry` puts docker-registry in proxy mode in its place, to compare: what fails then is
// what Layover does better.

import { readFileSync } from 'node:fs'
import { join } from 'node:path'
import process from 'node:process'
import { freePort } from './loopback-server.ts'
import { Daemon, type DaemonOptions } from './processes.ts'
import type { Upstream } from './upstream.ts'
import type { Workspace } from './workspace.ts'

export const PROGRAM_PATH = join(import.meta.dirname, '../../../dist/main.js')

export const IS_COMPARISON = process.env['E2E_SUBJECT'] === 'registry'

/** Sections of the configuration that a test adds, or keys that it adds to a section. */
type Configuration = Readonly<Record<string, Readonly<Record<string, unknown>>>>

/** One request, as the access log tells it. */
export interface AccessLine {
  readonly method: string
  readonly uri: string
  readonly status: number
  readonly cache?: string
}

export class Cache {
  readonly address: string
  readonly #daemon: Daemon

  private constructor(address: string, daemon: Daemon) {
    this.address = address
    this.#daemon = daemon
  }

  static async start(
    workspace: Workspace,
    upstream: Upstream,
    { storage, proxy, ...more }: Configuration = {},
  ): Promise<Cache> {
    const address = `127.0.0.1:${await freePort()}`
    const config = workspace.writeFile('cache.yml', {
      version: 0.1,
      log: { formatter: 'json' },
      storage: { filesystem: { rootdirectory: workspace.makeDirectory('cache') }, ...storage },
      http: { addr: address },
      proxy: { remoteurl: upstream.url, allowedrealms: [upstream.tokenRealm], ...proxy },
      ...more,
    })
    const daemon = await Daemon.start(workspace, {
      name: 'cache',
      ...subject(config),
      isReady: async () => (await fetch(`http://${address}/v2/`)).ok,
    })
    return new Cache(address, daemon)
  }

  get url(): string {
    return `http://${this.address}`
  }

  async restart(): Promise<void> {
    await this.#daemon.stop()
    await this.#daemon.start()
  }

  /** `kill -9`, then a new start with what is on disk. */
  async crashAndRestart(): Promise<void> {
    await this.#daemon.kill()
    await this.#daemon.start()
  }

  /** The most memory that the process has had so far, in bytes. Linux only. */
  get peakMemoryBytes(): number {
    const status = readFileSync(`/proc/${this.#daemon.pid}/status`, 'utf8')
    return Number(/^VmHWM:\s+(\d+) kB$/m.exec(status)?.[1]) * 1024
  }

  accessLines(): AccessLine[] {
    const lines = this.#daemon.log().split('\n')
    return lines.filter((line) => line.includes('"msg":"access"')).map((line) => JSON.parse(line))
  }
}

function subject(config: string): Pick<DaemonOptions, 'command' | 'args'> {
  return IS_COMPARISON
    ? { command: 'docker-registry', args: ['serve', config] }
    : {
        command: process.execPath,
        args: ['--max-semi-space-size=4', PROGRAM_PATH, 'serve', config],
      }
}
