// containerd, driven by its own `ctr`, with the cache in a hosts.toml, as Kubernetes nodes have it.

import type { Client, Endpoints, PulledImage } from './clients.ts'
import { layeredStorage } from './layered-storage.ts'
import { Daemon, run } from './processes.ts'
import type { Workspace } from './workspace.ts'

export class Containerd implements Client {
  readonly #workspace: Workspace
  readonly #address: string
  readonly #hostsDirectory: string
  readonly #snapshotter: string

  private constructor(workspace: Workspace, address: string, hostsDirectory: string) {
    this.#workspace = workspace
    this.#address = address
    this.#hostsDirectory = hostsDirectory
    this.#snapshotter = layeredStorage(workspace) === 'overlay' ? 'overlayfs' : 'native'
  }

  static async start(
    this: void,
    workspace: Workspace,
    { mirror, fallback }: Endpoints,
  ): Promise<Containerd> {
    const address = workspace.path('containerd.sock')
    const config = workspace.writeFile(
      'containerd.toml',
      `
version = 2
root = "${workspace.makeDirectory('containerd')}"
state = "${workspace.makeDirectory('containerd-run')}"
disabled_plugins = ["io.containerd.grpc.v1.cri"]
[grpc]
  address = "${address}"
[plugins."io.containerd.internal.v1.opt"]
  path = "${workspace.makeDirectory('containerd-opt')}"
`,
    )
    workspace.writeFile(
      'hosts/docker.io/hosts.toml',
      `
server = "${fallback === undefined ? 'https://registry-1.docker.io' : `http://${fallback}`}"
[host."http://${mirror}"]
  capabilities = ["pull", "resolve"]
`,
    )
    const containerd = new Containerd(workspace, address, workspace.path('hosts'))
    await Daemon.start(workspace, {
      name: 'containerd',
      command: 'containerd',
      args: ['--config', config],
      isReady: async () => (await containerd.#ctr('version')) !== '',
    })
    return containerd
  }

  pull(image: string): Promise<PulledImage> {
    return this.pullFrom('docker.io', image)
  }

  async pullFrom(registry: string, image: string): Promise<PulledImage> {
    const name = `${registry}/${image}`
    const hosts = ['--hosts-dir', this.#hostsDirectory]
    await this.#ctr('images', 'pull', '--snapshotter', this.#snapshotter, ...hosts, name)
    const line = await this.#ctr('images', 'list', `name==${name}`)
    const digest = /sha256:[0-9a-f]{64}/.exec(line)?.[0] ?? ''
    return { digest, configDigest: await this.#configDigest(digest) }
  }

  remove(image: string): Promise<void> {
    return this.removeFrom('docker.io', image)
  }

  async removeFrom(registry: string, image: string): Promise<void> {
    await this.#ctr('images', 'remove', '--sync', `${registry}/${image}`)
  }

  /** Fetches all that a name stands for, without unpacking it: an artifact is not an image. */
  async fetch(image: string): Promise<void> {
    const hosts = ['--hosts-dir', this.#hostsDirectory]
    await this.#ctr('content', 'fetch', ...hosts, `docker.io/${image}`)
  }

  /** Digests of all content that it holds. */
  async contentDigests(): Promise<string[]> {
    return (await this.#ctr('content', 'list', '--quiet')).split('\n')
  }

  async #configDigest(digest: string): Promise<string> {
    const json = await this.#ctr('content', 'get', digest)
    const { manifests, config }: ManifestJson = JSON.parse(json)
    const child = manifests?.find(({ platform }) => platform.architecture === 'amd64')
    return child ? this.#configDigest(child.digest) : (config?.digest ?? '')
  }

  #ctr(...args: string[]): Promise<string> {
    return run(this.#workspace, 'ctr', ['--address', this.#address, ...args])
  }
}

interface ManifestJson {
  readonly manifests?: readonly { digest: string; platform: { architecture: string } }[]
  readonly config?: { readonly digest: string }
}
