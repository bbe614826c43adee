// The registry that the cache is in front of: a real one (CNCF distribution), asking for tokens as
// Docker Hub does, behind a proxy that counts.

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
  readonly #tokens: TokenServer
  /** The registry itself: pushes are not counted. */
  readonly #registryUrl: string

  private constructor(counts: CountingProxy, tokens: TokenServer, registryUrl: string) {
    this.counts = counts
    this.#tokens = tokens
    this.#registryUrl = registryUrl
  }

  static async start(workspace: Workspace): Promise<Upstream> {
    const tokens = await TokenServer.start(workspace)
    const port = await freePort()
    const config = workspace.writeFile('upstream.yml', {
      version: 0.1,
      log: { level: 'warn', accesslog: { disabled: true } },
      storage: { filesystem: { rootdirectory: workspace.path('upstream') } },
      http: { addr: `127.0.0.1:${port}` },
      auth: { token: tokens.registryAuth },
    })
    const registryUrl = `http://127.0.0.1:${port}`
    await Daemon.start(workspace, {
      name: 'upstream',
      command: 'docker-registry',
      args: ['serve', config],
      isReady: () => fetch(`${registryUrl}/v2/`),
    })
    const counts = new CountingProxy(`127.0.0.1:${port}`)
    await counts.server.start()
    workspace.onClose(async () => {
      await counts.server.stop()
      counts.close()
    })
    return new Upstream(counts, tokens, registryUrl)
  }

  get url(): string {
    return this.counts.server.url
  }

  /** `host:port` of the token server. */
  get tokenRealm(): string {
    return this.#tokens.server.address
  }

  /** Registry and token server refuse connections, and cut those that they have. */
  async goAway(): Promise<void> {
    await Promise.all([this.counts.server.stop(), this.#tokens.server.stop()])
  }

  async comeBack(): Promise<void> {
    await Promise.all([this.counts.server.start(), this.#tokens.server.start()])
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

  async #push(
    repository: string,
    images: readonly Image[],
    tag: string,
    top: Content,
    config: Content,
  ): Promise<PushedImage> {
    const token = this.#tokens.pushToken(repository)
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

/** As clients name it: Docker Hub is left out. */
export function nameOf({ repository, tag }: PushedImage): string {
  return `${repository}:${tag}`
}

/** What a client should say that it has pulled. */
export function asPushed({ top, configDigest }: PushedImage): PulledImage {
  return { digest: top.digest, configDigest }
}
