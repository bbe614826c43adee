// The clients that people pull with, each set up to use the cache as its mirror of Docker Hub, and each
// with stores of its own below the workspace.

import process from 'node:process'
import { Containerd } from './containerd.ts'
import { Buildah, Podman, Skopeo } from './containers-tools.ts'
import { Docker } from './docker.ts'
import { isInstalled } from './processes.ts'
import type { Workspace } from './workspace.ts'

/** What a client says that it has pulled. */
export interface PulledImage {
  /** Of the index, or of the manifest where there is no index. */
  readonly digest: string
  /** Of the image's configuration for amd64, also known as the image's ID. */
  readonly configDigest: string
}

export interface Client {
  /** @param image for example `library/tools:latest` */
  pull(image: string): Promise<PulledImage>
  /** Removes the image with its content, so that the next pull asks for everything again. */
  remove(image: string): Promise<void>
  /** Runs a program in a container. @returns what it wrote to stdout */
  run?(image: string, command: readonly string[]): Promise<string>
}

/** Where a client gets Docker Hub's images from, as `host:port`. */
export interface Endpoints {
  /** The cache. */
  readonly mirror: string
  /** Asked next, over plain HTTP, in the place of Docker Hub itself, which the fence keeps away. */
  readonly fallback?: string | undefined
}

interface ClientKind {
  readonly programs: readonly string[]
  readonly start: (workspace: Workspace, endpoints: Endpoints) => Promise<Client>
}

const KINDS = {
  docker: { programs: ['docker', 'dockerd', 'containerd', 'runc'], start: Docker.start },
  containerd: { programs: ['containerd', 'ctr'], start: Containerd.start },
  podman: { programs: ['podman', 'runc'], start: Podman.start },
  buildah: { programs: ['buildah', 'runc'], start: Buildah.start },
  skopeo: { programs: ['skopeo'], start: Skopeo.start },
} as const satisfies Record<string, ClientKind>

export type ClientName = keyof typeof KINDS

/** Some clients can do more than all have in common. */
type ClientOf<Name extends ClientName> = Client & Awaited<ReturnType<(typeof KINDS)[Name]['start']>>

/** A developer need not install them all. In CI a client that is missing fails its tests. */
const IS_CI = process.env['CI'] === 'true'

const ALL_CLIENTS = ['docker', 'containerd', 'podman', 'buildah', 'skopeo'] as const

/** The clients to test with. */
export const CLIENTS: readonly ClientName[] = ALL_CLIENTS.filter(
  (name) => IS_CI || missingPrograms(name).length === 0,
)

/** One line for each client that is left out, saying what is not installed. */
export function leftOutClients(): string[] {
  return ALL_CLIENTS.filter((name) => !CLIENTS.includes(name)).map((name) => {
    return `left out: ${name} (not installed: ${missingPrograms(name).join(', ')})`
  })
}

/** Starts clients when they are first asked for. */
export class ClientSet {
  readonly #workspace: Workspace
  readonly #endpoints: Endpoints
  readonly #started = new Map<ClientName, Promise<Client>>()

  constructor(workspace: Workspace, endpoints: Endpoints) {
    this.#workspace = workspace
    this.#endpoints = endpoints
  }

  get<Name extends ClientName>(name: Name): Promise<ClientOf<Name>>
  get(name: ClientName): Promise<Client> {
    const started = this.#started.get(name) ?? KINDS[name].start(this.#workspace, this.#endpoints)
    this.#started.set(name, started)
    return started
  }
}

function missingPrograms(name: ClientName): string[] {
  return KINDS[name].programs.filter((program) => !isInstalled(program))
}
