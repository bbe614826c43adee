// An upstream with gigabytes of images that take no memory: a blob is a short header of its own before a piece of
// random bytes that all blobs share. Whoever gets one can tell of each byte whether it is right.

import { createCipheriv, createHash } from 'node:crypto'
import type { IncomingMessage, ServerResponse } from 'node:http'
import type { Random } from '../../support/random.ts'
import { LoopbackServer } from './loopback-server.ts'

const MEDIA_TYPE = 'application/vnd.oci.image.manifest.v1+json'
const LAYER_TYPE = 'application/vnd.oci.image.layer.v1.tar+gzip'
const CONFIG_TYPE = 'application/vnd.oci.image.config.v1+json'
const CONFIG_BYTES = 1500
const POOL_BYTES = 16 * 1024 ** 2
const TAG = 'latest'

export interface BulkBlob {
  readonly digest: string
  readonly sizeBytes: number
  /** The bytes are these, one after the other. */
  readonly parts: readonly Buffer[]
}

export interface BulkImage {
  readonly repository: string
  readonly tag: string
  readonly manifest: BulkBlob
  /** The configuration, and the layers. */
  readonly blobs: readonly BulkBlob[]
}

const PATH = /^\/v2\/(.+)\/(manifests|blobs)\/([^/]+)$/

export class BulkUpstream {
  readonly server = new LoopbackServer((request, response) => this.#answer(request, response))
  /** How often each blob and manifest was sent. */
  readonly sent = new Map<string, number>()
  readonly #images = new Map<string, BulkImage>()
  readonly #blobs = new Map<string, BulkBlob>()
  readonly #pool = randomPool()
  readonly #random: Random

  constructor(random: Random) {
    this.#random = random
  }

  addBlob(sizeBytes: number): BulkBlob {
    const header = createHash('sha256').update(`blob ${this.#blobs.size}`).digest()
    const restBytes = sizeBytes - header.length
    const start = this.#random.below(POOL_BYTES - restBytes)
    return this.#add([header, this.#pool.subarray(start, start + restBytes)])
  }

  addImage(repository: string, layers: readonly BulkBlob[]): BulkImage {
    const config = this.addBlob(CONFIG_BYTES)
    const descriptor = (mediaType: string, { digest, sizeBytes: size }: BulkBlob) => {
      return { mediaType, digest, size }
    }
    const json = JSON.stringify({
      schemaVersion: 2,
      mediaType: MEDIA_TYPE,
      config: descriptor(CONFIG_TYPE, config),
      layers: layers.map((layer) => descriptor(LAYER_TYPE, layer)),
    })
    const manifest = this.#add([Buffer.from(json)])
    const image = { repository, tag: TAG, manifest, blobs: [config, ...layers] }
    this.#images.set(repository, image)
    return image
  }

  #add(parts: readonly Buffer[]): BulkBlob {
    const hash = createHash('sha256')
    for (const part of parts) hash.update(part)
    const sizeBytes = parts.reduce((sum, { length }) => sum + length, 0)
    const blob = { digest: `sha256:${hash.digest('hex')}`, sizeBytes, parts }
    this.#blobs.set(blob.digest, blob)
    return blob
  }

  #answer({ method, url = '' }: IncomingMessage, response: ServerResponse): void {
    const [, repository = '', kind, reference = ''] = PATH.exec(url) ?? []
    const isTag = reference === TAG
    const blob = isTag ? this.#images.get(repository)?.manifest : this.#blobs.get(reference)
    if (!blob) {
      response.writeHead(url === '/v2/' ? 200 : 404, { 'content-length': 0 }).end()
      return
    }
    response.writeHead(200, {
      'content-type': kind === 'manifests' ? MEDIA_TYPE : 'application/octet-stream',
      'content-length': blob.sizeBytes,
      'docker-content-digest': blob.digest,
    })
    if (method === 'GET') {
      this.sent.set(blob.digest, (this.sent.get(blob.digest) ?? 0) + 1)
      for (const part of blob.parts) response.write(part)
    }
    response.end()
  }
}

/**
 * Compares a body with what it should be, as it arrives.
 *
 * @throws at the first byte that is wrong, or missing
 */
export async function expectBytes(
  { digest, parts, sizeBytes }: BulkBlob,
  body: AsyncIterable<Buffer>,
): Promise<void> {
  const left = [...parts]
  let position = 0
  for await (const chunk of body) {
    let rest = chunk
    while (rest.length > 0) {
      const part = left.shift() ?? Buffer.alloc(0)
      const length = Math.min(part.length, rest.length)
      if (length === 0 || !part.subarray(0, length).equals(rest.subarray(0, length))) {
        throw new Error(`${digest}: wrong within ${length} bytes from ${position} on`)
      }
      position += length
      rest = rest.subarray(length)
      if (length < part.length) left.unshift(part.subarray(length))
    }
  }
  if (position !== sizeBytes) throw new Error(`${digest}: ended at ${position} of ${sizeBytes}`)
}

function randomPool(): Buffer {
  const key = createHash('sha256').update('pool').digest()
  return createCipheriv('aes-256-ctr', key, Buffer.alloc(16)).update(Buffer.alloc(POOL_BYTES))
}
