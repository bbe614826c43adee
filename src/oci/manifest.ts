// Descriptors, media types, and what a manifest says of itself. A manifest's bytes are stored and served
// unchanged; this file only reads them. The type is told by the bytes (as registry:2 does, whose volume
// has no place for it), so that a wrong Content-Type from an upstream cannot change what is served.

import { parseDigest, type Digest } from './digest.ts'

export interface Descriptor {
  readonly digest: Digest
  readonly sizeBytes: number
  readonly mediaType: string
  /**
   * Whether registries take the manifest only if the repository has this: then the name in the manifest is
   * proof. Not so for what is to be had elsewhere, for the images of an index, and in manifests of other types.
   */
  readonly isProof: boolean
}

export const MEDIA_TYPES = {
  dockerManifest: 'application/vnd.docker.distribution.manifest.v2+json',
  dockerList: 'application/vnd.docker.distribution.manifest.list.v2+json',
  ociManifest: 'application/vnd.oci.image.manifest.v1+json',
  ociIndex: 'application/vnd.oci.image.index.v1+json',
} as const

/** Whether what has this type is an index. */
const SHAPES: ReadonlyMap<string, boolean> = new Map([
  [MEDIA_TYPES.dockerManifest, false],
  [MEDIA_TYPES.dockerList, true],
  [MEDIA_TYPES.ociManifest, false],
  [MEDIA_TYPES.ociIndex, true],
])

/** What these name is looked for by a registry when they are pushed. */
const CHECKED_TYPES: ReadonlySet<string> = new Set([
  MEDIA_TYPES.dockerManifest,
  MEDIA_TYPES.ociManifest,
])

const BLOB_TYPE = 'application/octet-stream'

/** Layers that need not be in the registry: it was not allowed to pass them on. */
const FOREIGN_TYPE = /\.(?:foreign|nondistributable)\./

/**
 * What upstreams are asked for, whatever the client asked us: one cached answer serves every client.
 * Schema 1 is left out on purpose: its digest is not that of its bytes, so it cannot be verified.
 */
export const MANIFEST_ACCEPT = Object.values(MEDIA_TYPES).join(', ')

/** Registries should accept 4 MiB, and clients stop reading there. */
export const MANIFEST_SIZE_MAX_BYTES = 4 * 1024 * 1024

/** Limits the work that one hostile manifest can cause; real ones stay below 200. */
const REFERENCES_MAX = 10_000

export interface ManifestContent {
  readonly mediaType: string
  /** Whether the manifest itself says so; else it was told by its shape. */
  readonly declaresType: boolean
  /** Blobs that this manifest names: config and layers. */
  readonly blobs: readonly Descriptor[]
  /** Manifests that this index names. */
  readonly manifests: readonly Descriptor[]
  /** Digest of the linux/amd64 child of an index, which clients without list support get. */
  readonly amd64: Digest | undefined
  readonly subject: Digest | undefined
}

/** A body that must not be stored or served as a manifest; the message says why. */
export class ManifestInvalidError extends Error {
  override readonly name = 'ManifestInvalidError'
}

type Json = Readonly<Record<string, unknown>>

/**
 * Whether a registry that has this type for a manifest has looked for what that names: it is the type that it was
 * pushed as, whatever the bytes say of themselves.
 *
 * @param servedAs the registry's header; undefined if there was none
 */
export function isCheckedType(servedAs: string | undefined): boolean {
  return servedAs === undefined || CHECKED_TYPES.has(servedAs)
}

/**
 * Reads a manifest or an index.
 *
 * @throws {ManifestInvalidError} not a JSON object; schema 1; an image and an index at once, or one that
 *   says that it is the other (CVE-2021-41190)
 */
export function readManifest(bytes: Uint8Array): ManifestContent {
  const json = parseObject(bytes)
  if (json['schemaVersion'] === 1) {
    throw new ManifestInvalidError('schema 1 manifests cannot be verified and are not supported')
  }
  const children = json['manifests']
  if (children !== undefined && (json['layers'] !== undefined || json['config'] !== undefined)) {
    throw new ManifestInvalidError('the manifest claims to be an image and an index at once')
  }
  const declared = declaredType(json)
  const declaresType = declared !== undefined
  const mediaType = declared ?? typeByShape(json)
  if (SHAPES.has(mediaType) && SHAPES.get(mediaType) !== Array.isArray(children)) {
    throw new ManifestInvalidError(
      `the manifest is not of the shape that its type says: ${mediaType}`,
    )
  }
  if (Array.isArray(children)) {
    const manifests = descriptorsIn(children, MEDIA_TYPES.ociManifest, false)
    const [amd64, subject] = [amd64Of(children), subjectOf(json)]
    return { mediaType, declaresType, blobs: [], manifests, amd64, subject }
  }
  const isChecked = CHECKED_TYPES.has(mediaType)
  const blobs = [
    ...descriptorsIn([json['config'], ...listOf(json['layers'])], BLOB_TYPE, isChecked),
    // Where the retired OCI artifact manifest has its content.
    ...descriptorsIn(listOf(json['blobs']), BLOB_TYPE, false),
  ]
  const subject = subjectOf(json)
  return { mediaType, declaresType, blobs, manifests: [], amd64: undefined, subject }
}

function parseObject(bytes: Uint8Array): Json {
  let json: unknown
  try {
    json = JSON.parse(
      Buffer.from(bytes.buffer, bytes.byteOffset, bytes.byteLength).toString('utf8'),
    )
  } catch (error) {
    throw new ManifestInvalidError('the manifest is not JSON', { cause: error })
  }
  if (!isObject(json)) throw new ManifestInvalidError('the manifest is not a JSON object')
  return json
}

function declaredType(json: Json): string | undefined {
  const declared = json['mediaType']
  // A header value must not carry what the bytes may: anything unusual counts as nothing.
  return typeof declared === 'string' && /^[\w.+/-]{1,255}$/.test(declared) ? declared : undefined
}

function typeByShape(json: Json): string {
  return Array.isArray(json['manifests']) ? MEDIA_TYPES.ociIndex : MEDIA_TYPES.ociManifest
}

function descriptorsIn(
  list: readonly unknown[],
  defaultType: string,
  isChecked: boolean,
): Descriptor[] {
  if (list.length > REFERENCES_MAX) {
    throw new ManifestInvalidError(`the manifest names more than ${REFERENCES_MAX} objects`)
  }
  return list.flatMap((item) => descriptorIn(item, defaultType, isChecked) ?? [])
}

function descriptorIn(item: unknown, defaultType = '', isChecked = false): Descriptor | undefined {
  if (!isObject(item)) return undefined
  const { digest: text, size, urls } = item
  const mediaType = typeof item['mediaType'] === 'string' ? item['mediaType'] : defaultType
  const digest = typeof text === 'string' ? parseDigest(text) : undefined
  if (!digest || typeof size !== 'number' || !Number.isSafeInteger(size) || size < 0) {
    return undefined
  }
  return {
    digest,
    sizeBytes: size,
    mediaType,
    isProof: isChecked && listOf(urls).length === 0 && !FOREIGN_TYPE.test(mediaType),
  }
}

function amd64Of(children: readonly unknown[]): Digest | undefined {
  for (const child of children) {
    const platform = isObject(child) ? child['platform'] : undefined
    if (!isObject(platform)) continue
    if (platform['os'] === 'linux' && platform['architecture'] === 'amd64') {
      return descriptorIn(child)?.digest
    }
  }
  return undefined
}

function subjectOf(json: Json): Digest | undefined {
  return descriptorIn(json['subject'])?.digest
}

function listOf(value: unknown): readonly unknown[] {
  return Array.isArray(value) ? value : []
}

function isObject(value: unknown): value is Json {
  return typeof value === 'object' && value !== null && !Array.isArray(value)
}
