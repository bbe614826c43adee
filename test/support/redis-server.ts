// A Redis server of the test's own: on a free port, in memory only, ended by its process id.

import { spawn, spawnSync, type ChildProcess } from 'node:child_process'
import { once } from 'node:events'
import { writeFile } from 'node:fs/promises'
import { createServer, type AddressInfo } from 'node:net'
import { join } from 'node:path'
import { Redis, type RedisOptions } from 'ioredis'
import { onTestFinished } from 'vitest'
import { makeTempDirectory } from './temp-directory.ts'
import { TLS_CERTIFICATE } from './tls-certificate.ts'
import { waitFor } from './wait-for.ts'

export const hasRedisServer = spawnSync('redis-server', ['--version']).status === 0

export interface RedisServerOptions {
  readonly password?: string | undefined
  /** Default: a free one. */
  readonly port?: number
  /** Speaks TLS only, with TLS_CERTIFICATE. */
  readonly tls?: boolean
  /** Makes it a sentinel, which tells where that server is. Its own password is `password`. */
  readonly watches?: { readonly name: string; readonly master: RedisServer }
}

export class RedisServer {
  readonly port: number
  readonly #process: ChildProcess
  readonly #secrets: Pick<RedisOptions, 'password' | 'tls'>

  private constructor(port: number, process: ChildProcess, { password, tls }: RedisServerOptions) {
    this.port = port
    this.#process = process
    this.#secrets = {
      ...(password === undefined ? {} : { password }),
      ...(tls ? { tls: { ca: TLS_CERTIFICATE.cert } } : {}),
    }
  }

  /** Starts a server that ends with the running test, if not before, and waits until it answers. */
  static async start(options: RedisServerOptions = {}): Promise<RedisServer> {
    const { password, tls = false, watches } = options
    const directory = await makeTempDirectory()
    const chosen = options.port ?? (await freePort())
    const port = tls ? await tlsPort(chosen, directory) : ['--port', `${chosen}`]
    const address = [...port, '--bind', '127.0.0.1', '--dir', directory]
    const role = watches
      ? [await sentinelFile(watches, directory), '--sentinel']
      : ['--save', '', '--appendonly', 'no']
    const secret = password === undefined ? [] : ['--requirepass', password]
    const child = spawn('redis-server', [...role, ...address, ...secret], { stdio: 'ignore' })
    const server = new RedisServer(chosen, child, options)
    onTestFinished(() => server.stop())
    await waitFor('redis to answer', async () => {
      if (child.exitCode !== null) throw new Error(`redis ended with ${child.exitCode}`)
      return (await server.ask((redis) => redis.ping()).catch(() => '')) === 'PONG'
    })
    return server
  }

  get password(): string | undefined {
    return this.#secrets.password
  }

  get address(): { host: string; port: number } {
    return { host: '127.0.0.1', port: this.port }
  }

  /** Talks to the server on a connection of its own. */
  async ask<T>(question: (redis: Redis) => Promise<T>): Promise<T> {
    const redis = new Redis({
      ...this.address,
      lazyConnect: true,
      retryStrategy: () => null,
      ...this.#secrets,
    })
    // Whoever asks is told by the rejected promise.
    redis.on('error', () => undefined)
    try {
      await redis.connect()
      return await question(redis)
    } finally {
      redis.disconnect()
    }
  }

  /** Keeps its connections and its port, and says nothing any more. */
  hang(): void {
    this.#process.kill('SIGSTOP')
  }

  goOn(): void {
    this.#process.kill('SIGCONT')
  }

  /** Ends at once, as in a crash. Idempotent. */
  async stop(): Promise<void> {
    if (this.#process.exitCode !== null || this.#process.signalCode !== null) return
    const exited = once(this.#process, 'exit')
    this.#process.kill('SIGKILL')
    await exited
  }
}

/** A sentinel keeps what it finds out in its file. */
async function sentinelFile(
  { master, name }: NonNullable<RedisServerOptions['watches']>,
  directory: string,
): Promise<string> {
  const file = join(directory, 'sentinel.conf')
  const { host, port } = master.address
  const lines = [`sentinel monitor ${name} ${host} ${port} 1`]
  if (master.password !== undefined) lines.push(`sentinel auth-pass ${name} ${master.password}`)
  await writeFile(file, `${lines.join('\n')}\n`)
  return file
}

/** @returns the arguments for a port on which TLS is spoken, and nothing else */
async function tlsPort(port: number, directory: string): Promise<string[]> {
  const [certificate, key] = [join(directory, 'cert.pem'), join(directory, 'key.pem')]
  await writeFile(certificate, TLS_CERTIFICATE.cert)
  await writeFile(key, TLS_CERTIFICATE.key)
  const files = ['--tls-cert-file', certificate, '--tls-key-file', key]
  return ['--port', '0', '--tls-port', `${port}`, ...files, '--tls-auth-clients', 'no']
}

/** @returns a port on which nobody listens now */
export async function freePort(): Promise<number> {
  const server = createServer().listen(0, '127.0.0.1')
  await once(server, 'listening')
  const { port } = server.address() as AddressInfo
  server.close()
  await once(server, 'close')
  return port
}
