// Images made from nothing, the same bytes on every machine: layers are tar archives of pseudo-random
// bytes (nothing compresses them, as with real layers that arrive compressed), and gzip only wraps them.

import { createCipheriv, createHash } from 'node:crypto'
import { readFileSync } from 'node:fs'
import { gzipSync } from 'node:zlib'
import { tarArchive, type TarEntry } from './tar.ts'

export type ImageKind = 'docker' | 'oci'
export type Architecture = 'amd64' | 'arm64'

/** Where Debian's busybox-static puts it: a shell that needs nothing else in its image. */
export const BUSYBOX_PATH = '/usr/bin/busybox'
const BUSYBOX_APPLETS = ['cat', 'echo', 'sh', 'true', 'uname']

const CREATED = '2024-01-01T00:00:00Z'

const MEDIA_TYPES = {
  docker: {
    index: 'application/vnd.docker.distribution.manifest.list.v2+json',
    manifest: 'application/vnd.docker.distribution.manifest.v2+json',
    config: 'application/vnd.docker.container.image.v1+json',
    layer: 'application/vnd.docker.image.rootfs.diff.tar.gzip',
  },
  oci: {
    index: 'application/vnd.oci.image.index.v1+json',
    manifest: 'application/vnd.oci.image.manifest.v1+json',
    config: 'application/vnd.oci.image.config.v1+json',
    layer: 'application/vnd.oci.image.layer.v1.tar+gzip',
  },
} as const

/** Bytes with their name. */
export interface Content {
  readonly mediaType: string
  readonly digest: string
  readonly bytes: Buffer
}

export interface Image {
  readonly manifest: Content
  readonly config: Content
  readonly layers: readonly Content[]
}

export interface ImageOptions {
  readonly kind: ImageKind
  readonly architecture: Architecture
  /** Another seed, other content. */
  readonly seed: string
  /** One layer for each. */
  readonly layerSizesBytes: readonly number[]
  /** Adds a layer with busybox, so that a container of it can run. */
  readonly isRunnable: boolean
}

export function digestOf(bytes: Buffer): string {
  return `sha256:${createHash('sha256').update(bytes).digest('hex')}`
}

export function buildImage(options: ImageOptions): Image {
  const { kind, architecture, seed, layerSizesBytes, isRunnable } = options
  const types = MEDIA_TYPES[kind]
  const randomArchive = (sizeBytes: number, i: number) => (): Buffer => {
    const bytes = randomBytes(sizeBytes, `${seed}/${architecture}/${i}`)
    return tarArchive([{ name: `layer-${i}.bin`, mode: 0o644, content: bytes }])
  }
  // One archive at a time: of a big image only what is pushed stays in memory.
  const archives = [...(isRunnable ? [busyboxArchive] : []), ...layerSizesBytes.map(randomArchive)]
  const built = archives.map((archive) => {
    const bytes = archive()
    return { diffId: digestOf(bytes), layer: content(types.layer, gzipSync(bytes, { level: 0 })) }
  })
  const layers = built.map(({ layer }) => layer)
  const config = jsonContent(types.config, {
    architecture,
    os: 'linux',
    created: CREATED,
    config: { Env: ['PATH=/bin'], Cmd: ['/bin/sh'] },
    rootfs: { type: 'layers', diff_ids: built.map(({ diffId }) => diffId) },
    history: built.map(() => ({ created: CREATED, created_by: seed })),
  })
  const manifest = jsonContent(types.manifest, {
    schemaVersion: 2,
    mediaType: types.manifest,
    config: descriptorOf(config),
    layers: layers.map(descriptorOf),
  })
  return { manifest, config, layers }
}

/** @param images by the architecture that they are for */
export function buildIndex(
  kind: ImageKind,
  images: Readonly<Record<Architecture, Image>>,
): Content {
  const manifests = Object.entries(images).map(([architecture, image]) => ({
    ...descriptorOf(image.manifest),
    platform: { architecture, os: 'linux' },
  }))
  const mediaType = MEDIA_TYPES[kind].index
  return jsonContent(mediaType, { schemaVersion: 2, mediaType, manifests })
}

/**
 * An artifact that is about `subject` (a bill of materials, say), and the index that lists it under the
 * tag `sha256-<hex of subject>`, for registries without the referrers API.
 *
 * @see https://github.com/opencontainers/distribution-spec/blob/main/spec.md#referrers-tag-schema
 */
export function buildArtifact(subject: Content): { artifact: Image; referrers: Content } {
  const artifactType = 'application/spdx+json'
  const config = content('application/vnd.oci.empty.v1+json', Buffer.from('{}'))
  const document = jsonContent(artifactType, { spdxVersion: 'SPDX-2.3', name: subject.digest })
  const { manifest: mediaType, index } = MEDIA_TYPES.oci
  const manifest = jsonContent(mediaType, {
    schemaVersion: 2,
    mediaType,
    artifactType,
    config: descriptorOf(config),
    layers: [descriptorOf(document)],
    subject: descriptorOf(subject),
  })
  const manifests = [{ ...descriptorOf(manifest), artifactType }]
  const referrers = jsonContent(index, { schemaVersion: 2, mediaType: index, manifests })
  return { artifact: { manifest, config, layers: [document] }, referrers }
}

function busyboxArchive(): Buffer {
  const links = BUSYBOX_APPLETS.map((applet): TarEntry => {
    return { name: `bin/${applet}`, mode: 0o777, linkTo: 'busybox' }
  })
  const program = { name: 'bin/busybox', mode: 0o755, content: readFileSync(BUSYBOX_PATH) }
  return tarArchive([{ name: 'bin/', mode: 0o755 }, program, ...links])
}

function jsonContent(mediaType: string, json: unknown): Content {
  return content(mediaType, Buffer.from(JSON.stringify(json, undefined, 2)))
}

function content(mediaType: string, bytes: Buffer): Content {
  return { mediaType, digest: digestOf(bytes), bytes }
}

function descriptorOf({ mediaType, digest, bytes }: Content): Record<string, unknown> {
  return { mediaType, digest, size: bytes.length }
}

function randomBytes(sizeBytes: number, seed: string): Buffer {
  const key = createHash('sha256').update(seed).digest()
  return createCipheriv('aes-256-ctr', key, Buffer.alloc(16)).update(Buffer.alloc(sizeBytes))
}
