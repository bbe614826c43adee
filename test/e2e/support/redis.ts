// A Redis server of the test's own, which asks for a password and keeps nothing.

import { freePort } from './loopback-server.ts'
import { Daemon, run } from './processes.ts'
import type { Workspace } from './workspace.ts'

const PASSWORD = 'correct horse: "battery"'

export class Redis {
  readonly #workspace: Workspace
  readonly #port: number
  readonly #daemon: Daemon

  private constructor(workspace: Workspace, port: number, daemon: Daemon) {
    this.#workspace = workspace
    this.#port = port
    this.#daemon = daemon
  }

  static async start(workspace: Workspace): Promise<Redis> {
    const port = await freePort()
    const address = ['--port', `${port}`, '--bind', '127.0.0.1']
    const keepNothing = ['--save', '', '--appendonly', 'no']
    const daemon = await Daemon.start(workspace, {
      name: 'redis',
      command: 'redis-server',
      args: [...address, ...keepNothing, '--requirepass', PASSWORD],
      isReady: async () => (await ask(workspace, port, 'PING')).trim() === 'PONG',
    })
    return new Redis(workspace, port, daemon)
  }

  /** The `redis` section of the cache's configuration. */
  get configuration(): Readonly<Record<string, unknown>> {
    return { addr: `127.0.0.1:${this.#port}`, password: PASSWORD, dialtimeout: '1s' }
  }

  /** How many keys there are. */
  async size(): Promise<number> {
    return Number(await ask(this.#workspace, this.#port, 'DBSIZE'))
  }

  kill(): Promise<void> {
    return this.#daemon.kill()
  }
}

function ask(workspace: Workspace, port: number, command: string): Promise<string> {
  const password = { REDISCLI_AUTH: PASSWORD }
  return run(workspace, 'redis-cli', ['-h', '127.0.0.1', '-p', `${port}`, command], password)
}
