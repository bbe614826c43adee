// The cache under test, as an operator runs it: the built program with a configuration file.
// `E2E_SUBJECT=registry` puts docker-registry in proxy mode in its place, to compare: what fails then is
// what Layover does better.

import { readFileSync } from 'node:fs'
import { join } from 'node:path'
import process from 'node:process'
import { startFakeUpstream, type FakeUpstream } from '../../support/fake-upstream.ts'
import { START_FLAGS } from '../../bench/start-command.mjs'
import { freePort } from './loopback-server.ts'
import { Daemon } from './processes.ts'
import type { Workspace } from './workspace.ts'

export const PROGRAM_PATH = join(import.meta.dirname, '../../../dist/main.js')

export const IS_COMPARISON = process.env['E2E_SUBJECT'] === 'registry'

/** What can stand at the cache's address, with the same file and volume. */
export type Program = 'layover' | 'registry'

/** Sections of the configuration that a test adds, or keys that it adds to a section. */
type Configuration = Readonly<Record<string, Readonly<Record<string, unknown>>>>

/** What it is put in front of. */
interface Remote {
  readonly url: string
  /** `host:port` of its token server, where it has one. */
  readonly tokenRealm?: string
}

/** One request, as the access log tells it. */
export interface AccessLine {
  readonly method: string
  readonly uri: string
  readonly status: number
  readonly cache?: string
}

export interface LogLine {
  readonly level: string
  readonly msg: string
  readonly code?: string
  /** An error of the cache's own. */
  readonly isBug?: boolean
}

export class Cache {
  readonly address: string
  readonly #workspace: Workspace
  readonly #config: string
  #daemon: Daemon

  private constructor(workspace: Workspace, address: string, config: string, daemon: Daemon) {
    this.#workspace = workspace
    this.address = address
    this.#config = config
    this.#daemon = daemon
  }

  static async start(
    workspace: Workspace,
    { url, tokenRealm }: Remote,
    { http, storage, proxy, ...more }: Configuration = {},
    program: Program = IS_COMPARISON ? 'registry' : 'layover',
  ): Promise<Cache> {
    const address = `127.0.0.1:${await freePort()}`
    const config = workspace.writeFile(`cache-${address.replace(':', '-')}.yml`, {
      version: 0.1,
      log: { formatter: 'json' },
      storage: { filesystem: { rootdirectory: workspace.makeDirectory('cache') }, ...storage },
      http: { addr: address, ...http },
      proxy: {
        remoteurl: url,
        ...(tokenRealm !== undefined && { allowedrealms: [tokenRealm] }),
        ...proxy,
      },
      ...more,
    })
    const daemon = await startDaemon(workspace, { program, address, config })
    return new Cache(workspace, address, config, daemon)
  }

  get url(): string {
    return `http://${this.address}`
  }

  /** An orderly stop. */
  stop(): Promise<void> {
    return this.#daemon.stop()
  }

  /** `kill -9` */
  crash(): Promise<void> {
    return this.#daemon.kill()
  }

  /** With what is on disk. */
  start(): Promise<void> {
    return this.#daemon.start()
  }

  async restart(): Promise<void> {
    await this.stop()
    await this.start()
  }

  /** Stops, and lets a program go on with the same file, address and volume. The log is that program's. */
  async handOverTo(program: Program): Promise<void> {
    await this.stop()
    const { address } = this
    this.#daemon = await startDaemon(this.#workspace, { program, address, config: this.#config })
  }

  async crashAndRestart(): Promise<void> {
    await this.crash()
    await this.start()
  }

  /** @throws when it was never started */
  get pid(): number {
    const { pid } = this.#daemon
    if (pid === undefined) throw new Error('the cache does not run')
    return pid
  }

  /** The most memory that the process has had so far, in bytes. Linux only. */
  get peakMemoryBytes(): number {
    const status = readFileSync(`/proc/${this.pid}/status`, 'utf8')
    return Number(/^VmHWM:\s+(\d+) kB$/m.exec(status)?.[1]) * 1024
  }

  accessLines(): AccessLine[] {
    return this.#lines()
      .filter((line) => line.includes('"msg":"access"'))
      .map((line) => JSON.parse(line))
  }

  /** The application's log, of all starts. */
  logLines(): LogLine[] {
    return this.#lines()
      .filter((line) => !line.includes('"msg":"access"'))
      .map((line) => JSON.parse(line))
  }

  /** The last line may have been cut off by a kill. */
  #lines(): string[] {
    const lines = this.#daemon.log().split('\n')
    return lines.filter((line) => line.startsWith('{') && line.endsWith('}'))
  }
}

/** A cache in front of an upstream that fails as it is told, and the root directory to look into. */
export async function startBeforeFakeUpstream(
  workspace: Workspace,
): Promise<{ upstream: FakeUpstream; cache: Cache; root: string }> {
  const upstream = await startFakeUpstream()
  workspace.onClose(() => upstream.close())
  const root = workspace.makeDirectory('volume')
  const remote = { url: upstream.url, tokenRealm: new URL(upstream.url).host }
  const storage = { filesystem: { rootdirectory: root } }
  return { upstream, cache: await Cache.start(workspace, remote, { storage }), root }
}

function startDaemon(
  workspace: Workspace,
  { address, config, program }: { program: Program; address: string; config: string },
): Promise<Daemon> {
  const common = { isReady: async () => (await fetch(`http://${address}/v2/`)).ok }
  return program === 'registry'
    ? Daemon.start(workspace, {
        ...common,
        name: `registry at ${address}`,
        command: 'docker-registry',
        args: ['serve', config],
      })
    : Daemon.start(workspace, {
        ...common,
        name: `cache at ${address}`,
        command: process.execPath,
        args: [...START_FLAGS, PROGRAM_PATH, 'serve', config],
      })
}
