// The registry that the cache is in front of: a real one (CNCF distribution), asking for tokens as
// Docker Hub does, behind a proxy that counts.

import { rmSync } from 'node:fs'
import type { PulledImage } from './clients.ts'
import { CountingProxy } from './counting-proxy.ts'
import {
  buildArtifact,
  buildImage,
  buildIndex,
  type Content,
  type Image,
  type ImageKind,
  type ImageOptions,
} from './images.ts'
import { freePort } from './loopback-server.ts'
import { Daemon } from './processes.ts'
import { TokenServer } from './token-server.ts'
import type { Workspace } from './workspace.ts'

/** What clients should find under a name, and all that is behind it. */
export interface PushedImage {
  /** Without registry and tag, for example `library/tools`. */
  readonly repository: string
  readonly tag: string
  /** What the tag points at: an index, or an image's manifest. */
  readonly top: Content
  /** Of the image for amd64: what clients call the image's ID. */
  readonly configDigest: string
  /** Sizes in bytes of all manifests and blobs, by digest. */
  readonly objects: ReadonlyMap<string, number>
}

export interface PushOptions extends Partial<Omit<ImageOptions, 'architecture'>> {
  readonly repository: string
  /** An index with the image for amd64 and one for arm64. */
  readonly isMultiPlatform?: boolean
}

const TAG = 'latest'

export class Upstream {
  readonly counts: CountingProxy
  readonly tokens: TokenServer
  readonly #workspace: Workspace
  /** The registry itself: pushes are not counted. */
  readonly #registryUrl: string

  private constructor(
    workspace: Workspace,
    counts: CountingProxy,
    tokens: TokenServer,
    registryUrl: string,
  ) {
    this.#workspace = workspace
    this.counts = counts
    this.tokens = tokens
    this.#registryUrl = registryUrl
  }

  static async start(workspace: Workspace): Promise<Upstream> {
    const tokens = await TokenServer.start(workspace)
    const auth = { auth: { token: tokens.registryAuth } }
    const address = await startRegistry(workspace, 'upstream', auth)
    const counts = await countedBefore(workspace, address)
    return new Upstream(workspace, counts, tokens, `http://${address}`)
  }

  /**
   * The same content by another door, which asks for no token and has counts of its own: where clients go
   * that give up on the cache. Faults of the upstream do not reach it.
   */
  async openDoor(): Promise<CountingProxy> {
    const address = await startRegistry(this.#workspace, 'open-door')
    return countedBefore(this.#workspace, address)
  }

  get url(): string {
    return this.counts.server.url
  }

  /** `host:port` of the token server. */
  get tokenRealm(): string {
    return this.tokens.server.address
  }

  /** Registry and token server refuse connections, and cut those that they have. */
  async goAway(): Promise<void> {
    await Promise.all([this.counts.server.stop(), this.tokens.server.stop()])
  }

  async comeBack(): Promise<void> {
    await Promise.all([this.counts.server.start(), this.tokens.server.start()])
  }

  async push(options: PushOptions): Promise<PushedImage> {
    const { repository, isMultiPlatform = false } = options
    const kind: ImageKind = options.kind ?? 'docker'
    const { seed = repository, layerSizesBytes = [300_000, 1_000_000], isRunnable = true } = options
    const common = { kind, seed, layerSizesBytes, isRunnable }
    const amd64 = buildImage({ ...common, architecture: 'amd64' })
    if (!isMultiPlatform) {
      return this.#push(repository, [amd64], TAG, amd64.manifest, amd64.config)
    }
    const arm64 = buildImage({ ...common, architecture: 'arm64', isRunnable: false })
    const index = buildIndex(kind, { amd64, arm64 })
    return this.#push(repository, [amd64, arm64], TAG, index, amd64.config)
  }

  /** Attaches an artifact to an image, with the tag that lists it. */
  async pushArtifact({ repository, top }: PushedImage): Promise<PushedImage> {
    const { artifact, referrers } = buildArtifact(top)
    const tag = top.digest.replace(':', '-')
    return this.#push(repository, [artifact], tag, referrers, artifact.config)
  }

  /** By hand: docker-registry's API deletes manifests, but not tags. */
  deleteTag({ repository, tag }: PushedImage): void {
    const tags = `upstream/docker/registry/v2/repositories/${repository}/_manifests/tags`
    rmSync(this.#workspace.path(tags, tag), { recursive: true })
  }

  async #push(
    repository: string,
    images: readonly Image[],
    tag: string,
    top: Content,
    config: Content,
  ): Promise<PushedImage> {
    const token = this.tokens.pushToken(repository)
    const objects = new Map<string, number>()
    for (const image of images) {
      for (const blob of [image.config, ...image.layers]) {
        await this.#putBlob(repository, blob, token)
        objects.set(blob.digest, blob.bytes.length)
      }
      await this.#putManifest(repository, image.manifest.digest, image.manifest, token)
      objects.set(image.manifest.digest, image.manifest.bytes.length)
    }
    await this.#putManifest(repository, tag, top, token)
    objects.set(top.digest, top.bytes.length)
    return { repository, tag, top, configDigest: config.digest, objects }
  }

  async #putBlob(repository: string, { bytes, digest }: Content, token: string): Promise<void> {
    const path = `/v2/${repository}/blobs/uploads/`
    const { headers } = await this.#send('POST', path, token, 202)
    const location = new URL(headers.get('location') ?? '', this.#registryUrl)
    location.searchParams.set('digest', digest)
    await this.#send('PUT', `${location.pathname}${location.search}`, token, 201, { bytes })
  }

  async #putManifest(
    repository: string,
    reference: string,
    manifest: Content,
    token: string,
  ): Promise<void> {
    await this.#send('PUT', `/v2/${repository}/manifests/${reference}`, token, 201, manifest)
  }

  async #send(
    method: string,
    path: string,
    token: string,
    expectedStatus: number,
    body?: { readonly bytes: Buffer; readonly mediaType?: string },
  ): Promise<Response> {
    const headers = {
      authorization: `Bearer ${token}`,
      'content-type': body?.mediaType ?? 'application/octet-stream',
    }
    const init = body ? { method, headers, body: new Uint8Array(body.bytes) } : { method, headers }
    const response = await fetch(`${this.#registryUrl}${path}`, init)
    const text = await response.text()
    if (response.status === expectedStatus) return response
    throw new Error(`${method} ${path}: ${response.status} ${text}`)
  }
}

/** A registry on the storage that all registries of a workspace share. @returns its `host:port` */
async function startRegistry(
  workspace: Workspace,
  name: string,
  more: Readonly<Record<string, unknown>> = {},
): Promise<string> {
  const address = `127.0.0.1:${await freePort()}`
  const config = workspace.writeFile(`${name}.yml`, {
    version: 0.1,
    log: { level: 'warn', accesslog: { disabled: true } },
    storage: { filesystem: { rootdirectory: workspace.path('upstream') } },
    http: { addr: address },
    ...more,
  })
  await Daemon.start(workspace, {
    name,
    command: 'docker-registry',
    args: ['serve', config],
    isReady: () => fetch(`http://${address}/v2/`),
  })
  return address
}

async function countedBefore(workspace: Workspace, address: string): Promise<CountingProxy> {
  const counts = new CountingProxy(address)
  await counts.server.start()
  workspace.onClose(async () => {
    await counts.server.stop()
    counts.close()
  })
  return counts
}

/** As clients name it: Docker Hub is left out. */
export function nameOf({ repository, tag }: PushedImage): string {
  return `${repository}:${tag}`
}

/** What a client should say that it has pulled. */
export function asPushed({ top, configDigest }: PushedImage): PulledImage {
  return { digest: top.digest, configDigest }
}
