// Docker: a daemon with the cache in `registry-mirrors`.

import type { Client, Endpoints, PulledImage } from './clients.ts'
import { layeredStorage } from './layered-storage.ts'
import { Daemon, run } from './processes.ts'
import type { Workspace } from './workspace.ts'

export class Docker implements Client {
  readonly #workspace: Workspace
  readonly #host: string

  private constructor(workspace: Workspace, host: string) {
    this.#workspace = workspace
    this.#host = host
  }

  static async start(
    this: void,
    workspace: Workspace,
    { mirror, fallback }: Endpoints,
  ): Promise<Docker> {
    const mirrors = fallback === undefined ? [mirror] : [mirror, fallback]
    const host = `unix://${workspace.path('docker.sock')}`
    const docker = new Docker(workspace, host)
    const config = workspace.writeFile('daemon.json', {
      'registry-mirrors': mirrors.map((address) => `http://${address}`),
      // No networks of its own: containers here share the host's.
      bridge: 'none',
      iptables: false,
      'ip-masq': false,
      'storage-driver': layeredStorage(workspace) === 'overlay' ? 'overlay2' : 'vfs',
      'data-root': workspace.makeDirectory('docker'),
      'exec-root': workspace.makeDirectory('docker-run'),
      pidfile: workspace.path('docker.pid'),
      hosts: [host],
    })
    await Daemon.start(workspace, {
      name: 'dockerd',
      command: 'dockerd',
      args: ['--config-file', config],
      isReady: async () => (await docker.command('version')) !== '',
    })
    return docker
  }

  async pull(image: string): Promise<PulledImage> {
    await this.command('pull', '--quiet', image)
    const [inspected]: Inspected[] = JSON.parse(await this.command('image', 'inspect', image))
    const [, digest = ''] = inspected?.RepoDigests[0]?.split('@') ?? []
    return { digest, configDigest: inspected?.Id ?? '' }
  }

  async remove(image: string): Promise<void> {
    await this.command('image', 'rm', '--force', image)
  }

  run(image: string, command: readonly string[]): Promise<string> {
    return this.command('run', '--rm', '--network', 'host', image, ...command)
  }

  /** Runs the command-line client. */
  command(...args: string[]): Promise<string> {
    return run(this.#workspace, 'docker', args, { DOCKER_HOST: this.#host })
  }
}

interface Inspected {
  readonly Id: string
  readonly RepoDigests: readonly string[]
}
