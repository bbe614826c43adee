// Content for tests: images, indexes and artifacts that are valid, and the same bytes in every run. The
// seed decides the content, so that two images differ exactly where their seeds do.

import { createCipheriv, createHash } from 'node:crypto'
import { MEDIA_TYPES } from '../../src/oci/manifest.ts'
import { digestOf, type Digest, type DigestAlgorithm } from '../../src/oci/digest.ts'

export type ImageKind = 'docker' | 'oci'

export interface TestBlob {
  readonly bytes: Buffer
  readonly digest: Digest
}

export interface TestManifest extends TestBlob {
  readonly mediaType: string
}

export interface TestImage {
  readonly manifest: TestManifest
  readonly config: TestBlob
  readonly layers: readonly TestBlob[]
}

export interface TestIndex {
  readonly manifest: TestManifest
  /** In the order of the index: the first is linux/amd64. */
  readonly images: readonly TestImage[]
}

/** Media types of the parts, which follow from the kind of the whole. */
const PARTS = {
  docker: {
    manifest: MEDIA_TYPES.dockerManifest,
    index: MEDIA_TYPES.dockerList,
    config: 'application/vnd.docker.container.image.v1+json',
    layer: 'application/vnd.docker.image.rootfs.diff.tar.gzip',
  },
  oci: {
    manifest: MEDIA_TYPES.ociManifest,
    index: MEDIA_TYPES.ociIndex,
    config: 'application/vnd.oci.image.config.v1+json',
    layer: 'application/vnd.oci.image.layer.v1.tar+gzip',
  },
} as const satisfies Record<ImageKind, Record<string, string>>

const PLATFORMS = ['amd64', 'arm64', 's390x', 'ppc64le', 'riscv64', '386']

/** Of the empty JSON object, which artifacts name as their config. */
const EMPTY_CONFIG_TYPE = 'application/vnd.oci.empty.v1+json'

/** Incompressible bytes: an AES-CTR key stream, about 1 GB/s. */
export function bytesOf(sizeBytes: number, seed: string | number): Buffer {
  const key = createHash('sha256').update(String(seed)).digest()
  const cipher = createCipheriv('aes-256-ctr', key, Buffer.alloc(16))
  return cipher.update(Buffer.alloc(sizeBytes))
}

export function blobOf(
  sizeBytes: number,
  seed: string | number,
  algorithm: DigestAlgorithm = 'sha256',
): TestBlob {
  const bytes = bytesOf(sizeBytes, seed)
  return { bytes, digest: digestOf(bytes, algorithm) }
}

export interface ImageOptions {
  /** Sizes of the layers, in bytes. */
  readonly layers?: readonly number[]
  readonly seed?: string | number
  readonly kind?: ImageKind
  readonly architecture?: string
  /** How the layers and the config are named. */
  readonly algorithm?: DigestAlgorithm
}

export function buildImage({
  layers: sizes = [1024],
  seed = 1,
  kind = 'oci',
  architecture = 'amd64',
  algorithm = 'sha256',
}: ImageOptions = {}): TestImage {
  const layers = sizes.map((sizeBytes, index) =>
    blobOf(sizeBytes, `${seed}/layer/${index}`, algorithm),
  )
  const diffIds = layers.map((layer) => digestOf(layer.bytes))
  const config = blobFrom(
    { architecture, os: 'linux', config: {}, rootfs: { type: 'layers', diff_ids: diffIds }, seed },
    algorithm,
  )
  const types = PARTS[kind]
  const manifest = manifestFrom(types.manifest, {
    config: descriptorOf(types.config, config),
    layers: layers.map((layer) => descriptorOf(types.layer, layer)),
  })
  return { manifest, config, layers }
}

/** An index (or manifest list) of images for different architectures. */
export function buildIndex(
  images: readonly TestImage[],
  { kind = 'oci' }: { kind?: ImageKind } = {},
): TestIndex {
  const manifest = manifestFrom(PARTS[kind].index, {
    manifests: images.map((image, index) => ({
      ...descriptorOf(image.manifest.mediaType, image.manifest),
      platform: { architecture: PLATFORMS[index] ?? `arch${index}`, os: 'linux' },
    })),
  })
  return { manifest, images }
}

/** An OCI artifact (a signature, an SBOM) that refers to `subject`. */
export function buildArtifact(
  subject: TestManifest,
  {
    artifactType = 'application/vnd.example.sbom.v1',
    seed = 1,
  }: { artifactType?: string; seed?: string | number } = {},
): TestImage {
  const config = blobFrom({}, 'sha256')
  const layer = blobOf(256, `${seed}/artifact`)
  const manifest = manifestFrom(MEDIA_TYPES.ociManifest, {
    artifactType,
    config: descriptorOf(EMPTY_CONFIG_TYPE, config),
    layers: [descriptorOf(artifactType, layer)],
    subject: descriptorOf(subject.mediaType, subject),
  })
  return { manifest, config, layers: [layer] }
}

/** A manifest with any fields: schemaVersion 2 and the media type come first, `fields` may override. */
export function manifestFrom(
  mediaType: string,
  fields: Readonly<Record<string, unknown>>,
): TestManifest {
  const bytes = Buffer.from(
    JSON.stringify({ schemaVersion: 2, mediaType, ...fields }, undefined, 3),
  )
  return { bytes, digest: digestOf(bytes), mediaType }
}

export function descriptorOf(mediaType: string, { bytes, digest }: TestBlob): object {
  return { mediaType, size: bytes.length, digest }
}

function blobFrom(json: object, algorithm: DigestAlgorithm): TestBlob {
  const bytes = Buffer.from(JSON.stringify(json))
  return { bytes, digest: digestOf(bytes, algorithm) }
}

/** Manifests that a cache must not trust or store, each wrong in one way. */
export const hostileManifests = {
  /** Schema 1: its digest is not that of its bytes. */
  schema1: (): TestManifest => {
    const mediaType = 'application/vnd.docker.distribution.manifest.v1+prettyjws'
    const fsLayers = [{ blobSum: blobOf(32, 'schema1').digest }]
    return manifestFrom(mediaType, { schemaVersion: 1, name: 'old/image', tag: 'latest', fsLayers })
  },
  /** An image and an index at once (CVE-2021-41190). */
  imageAndIndex: (): TestManifest => {
    const image = buildImage({ seed: 'confused' })
    return manifestFrom(MEDIA_TYPES.ociManifest, {
      config: descriptorOf(PARTS.oci.config, image.config),
      layers: [],
      manifests: [descriptorOf(image.manifest.mediaType, image.manifest)],
    })
  },
  /** Well formed, but longer than the 4 MiB that clients read. */
  oversized: (sizeBytes = 4 * 1024 * 1024 + 1): TestManifest => {
    const image = buildImage({ seed: 'oversized' })
    const fields = { config: descriptorOf(PARTS.oci.config, image.config), layers: [] }
    const withPadding = (padding: string): TestManifest =>
      manifestFrom(MEDIA_TYPES.ociManifest, { ...fields, annotations: { padding } })
    return withPadding('x'.repeat(sizeBytes - withPadding('').bytes.length))
  },
  /** A media type that nobody knows; otherwise an image. */
  unknownMediaType: (): TestManifest =>
    manifestFrom('application/vnd.example.unheard-of.v7+json', { layers: [] }),
} as const
