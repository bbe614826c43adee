// Podman, Buildah and Skopeo: one family, one way to configure a mirror (registries.conf).

import { readdirSync, readFileSync, rmSync } from 'node:fs'
import { join } from 'node:path'
import type { Client, Endpoints, PulledImage } from './clients.ts'
import { digestOf } from './images.ts'
import { layeredStorage } from './layered-storage.ts'
import { run, type Environment } from './processes.ts'
import type { Workspace } from './workspace.ts'

export class Podman implements Client {
  readonly #workspace: Workspace
  readonly #environment: Environment

  private constructor(workspace: Workspace, environment: Environment) {
    this.#workspace = workspace
    this.#environment = environment
  }

  static start(this: void, workspace: Workspace, endpoints: Endpoints): Promise<Podman> {
    return Promise.resolve(new Podman(workspace, configure(workspace, 'podman', endpoints)))
  }

  pull(image: string): Promise<PulledImage> {
    return this.pullFrom('docker.io', image)
  }

  async pullFrom(registry: string, image: string): Promise<PulledImage> {
    await this.#podman('pull', '--quiet', `${registry}/${image}`)
    const json = await this.#podman('image', 'inspect', `${registry}/${image}`)
    const [inspected]: { Id: string; Digest: string }[] = JSON.parse(json)
    return { digest: inspected?.Digest ?? '', configDigest: `sha256:${inspected?.Id}` }
  }

  async remove(image: string): Promise<void> {
    await this.#podman('image', 'rm', '--force', `docker.io/${image}`)
  }

  run(image: string, command: readonly string[]): Promise<string> {
    return this.#podman('run', '--rm', '--network', 'host', `docker.io/${image}`, ...command)
  }

  #podman(...args: string[]): Promise<string> {
    return run(this.#workspace, 'podman', args, this.#environment)
  }
}

export class Buildah implements Client {
  readonly #workspace: Workspace
  readonly #environment: Environment

  private constructor(workspace: Workspace, environment: Environment) {
    this.#workspace = workspace
    this.#environment = environment
  }

  static start(this: void, workspace: Workspace, endpoints: Endpoints): Promise<Buildah> {
    return Promise.resolve(new Buildah(workspace, configure(workspace, 'buildah', endpoints)))
  }

  async pull(image: string): Promise<PulledImage> {
    await this.#buildah('pull', '--quiet', `docker.io/${image}`)
    const json = await this.#buildah('images', '--json', '--no-trunc', `docker.io/${image}`)
    const [listed]: { id: string; digest: string }[] = JSON.parse(json)
    return { digest: listed?.digest ?? '', configDigest: listed?.id ?? '' }
  }

  async remove(image: string): Promise<void> {
    await this.#buildah('rmi', '--force', `docker.io/${image}`)
  }

  #buildah(...args: string[]): Promise<string> {
    return run(this.#workspace, 'buildah', args, this.#environment)
  }
}

/** Copies to directories: what arrived can be read there as it is. */
export class Skopeo implements Client {
  readonly #workspace: Workspace
  readonly #environment: Environment
  readonly #registriesPath: string

  private constructor(workspace: Workspace, environment: Environment) {
    this.#workspace = workspace
    this.#environment = environment
    this.#registriesPath = environment['CONTAINERS_REGISTRIES_CONF'] ?? ''
  }

  static start(this: void, workspace: Workspace, endpoints: Endpoints): Promise<Skopeo> {
    return Promise.resolve(new Skopeo(workspace, configure(workspace, 'skopeo', endpoints)))
  }

  /** Pulls for all platforms. */
  pull(image: string): Promise<PulledImage> {
    return this.pullFrom('docker.io', image)
  }

  /** @param registry may have a path */
  async pullFrom(registry: string, image: string): Promise<PulledImage> {
    const directory = this.#directoryOf(`${registry}/${image}`)
    await this.copy(`docker://${registry}/${image}`, `dir:${directory}`)
    const bytes = readFileSync(join(directory, 'manifest.json'))
    return { digest: digestOf(bytes), configDigest: configDigestIn(directory) }
  }

  remove(image: string): Promise<void> {
    rmSync(this.#directoryOf(`docker.io/${image}`), { recursive: true })
    return Promise.resolve()
  }

  /** @returns the manifest as it came */
  manifest(image: string): Promise<string> {
    return this.#skopeo('inspect', '--raw', `docker://docker.io/${image}`)
  }

  async copy(from: string, to: string): Promise<void> {
    await this.#skopeo('copy', '--quiet', '--all', '--dest-tls-verify=false', from, to)
  }

  #skopeo(...args: string[]): Promise<string> {
    const registries = ['--registries-conf', this.#registriesPath, '--insecure-policy']
    return run(this.#workspace, 'skopeo', [...registries, ...args], this.#environment)
  }

  #directoryOf(image: string): string {
    return this.#workspace.path('skopeo', image.replaceAll(/[/:@]/g, '_'))
  }
}

/** The directory has one `*manifest.json` for each manifest; the first one for amd64 counts. */
function configDigestIn(directory: string): string {
  for (const file of readdirSync(directory)) {
    if (!file.endsWith('manifest.json')) continue
    const { config } = readManifestOrConfig(join(directory, file))
    if (!config) continue
    const configPath = join(directory, config.digest.replace('sha256:', ''))
    const { architecture } = readManifestOrConfig(configPath)
    if (architecture !== 'arm64') return config.digest
  }
  return ''
}

/** @returns the environment that points at what was configured */
function configure(
  workspace: Workspace,
  name: string,
  { mirror, fallback = 'docker.io' }: Endpoints,
): Environment {
  const runtimeDirectory = workspace.makeDirectory(name, 'tmp')
  const registries = `
unqualified-search-registries = ["docker.io"]
[[registry]]
prefix = "docker.io"
location = "${fallback}"
insecure = ${fallback !== 'docker.io'}
[[registry.mirror]]
location = "${mirror}"
insecure = true
`
  const storage = `
[storage]
driver = "${layeredStorage(workspace)}"
graphroot = "${workspace.makeDirectory(name, 'storage')}"
runroot = "${workspace.makeDirectory(name, 'run')}"
`
  // Limits, lock files and the cgroup manager are those that need the least of the machine.
  const containers = `
[containers]
default_ulimits = ["nofile=1024:4096", "nproc=4096:4096"]
[engine]
runtime = "runc"
cgroup_manager = "cgroupfs"
events_logger = "none"
lock_type = "file"
tmp_dir = "${runtimeDirectory}"
`
  const policy = { default: [{ type: 'insecureAcceptAnything' }] }
  workspace.writeFile('home/.config/containers/policy.json', policy)
  return {
    CONTAINERS_REGISTRIES_CONF: workspace.writeFile(`${name}/registries.conf`, registries),
    CONTAINERS_STORAGE_CONF: workspace.writeFile(`${name}/storage.conf`, storage),
    CONTAINERS_CONF: workspace.writeFile(`${name}/containers.conf`, containers),
    TMPDIR: runtimeDirectory,
  }
}

function readManifestOrConfig(path: string): {
  config?: { digest: string }
  architecture?: string
} {
  return JSON.parse(readFileSync(path, 'utf8'))
}
