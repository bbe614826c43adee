import { describe, expect, it } from 'vitest'
import { MEDIA_TYPES, ManifestInvalidError, readManifest } from '../../../src/oci/manifest.ts'
import {
  blobOf,
  buildArtifact,
  buildImage,
  buildIndex,
  hostileManifests,
} from '../../support/images.ts'

function read(json: unknown): ReturnType<typeof readManifest> {
  return readManifest(Buffer.from(JSON.stringify(json)))
}

describe('a manifest', () => {
  it('of an image names its config and layers, with their sizes', () => {
    const { config, layers, manifest } = buildImage({ layers: [10, 20] })
    const content = readManifest(manifest.bytes)
    const expected = [config, ...layers].map(({ bytes, digest }) => [digest, bytes.length])
    expect(content.blobs.map(({ digest, sizeBytes }) => [digest, sizeBytes])).toEqual(expected)
    expect(content).toMatchObject({ mediaType: MEDIA_TYPES.ociManifest, manifests: [] })
  })

  it('of an index names its images, of which linux/amd64 is known', () => {
    const images = [buildImage({ seed: 1 }), buildImage({ seed: 2 })]
    const content = readManifest(buildIndex(images).manifest.bytes)
    expect(content.manifests.map(({ digest }) => digest)).toEqual(
      images.map(({ manifest }) => manifest.digest),
    )
    expect(content.amd64).toBe(images[0]?.manifest.digest)
  })

  it('of an index without linux/amd64 has none', () => {
    const { digest } = buildImage().manifest
    const platform = { os: 'windows', architecture: 'amd64' }
    const content = read({ schemaVersion: 2, manifests: [{ digest, size: 1, platform }] })
    expect(content.amd64).toBeUndefined()
    expect(content.manifests).toHaveLength(1)
  })

  it('of an artifact names its subject', () => {
    const { manifest } = buildImage()
    expect(readManifest(buildArtifact(manifest).manifest.bytes).subject).toBe(manifest.digest)
  })

  it('without a media type is told by its shape', () => {
    expect(read({ schemaVersion: 2, manifests: [] }).mediaType).toBe(MEDIA_TYPES.ociIndex)
    expect(read({ schemaVersion: 2, layers: [] }).mediaType).toBe(MEDIA_TYPES.ociManifest)
  })

  it.each(['a\r\nSet-Cookie: x', '', 'x'.repeat(256), 7, null])(
    'with a media type that no header may carry (%j) is told by its shape',
    (mediaType) => {
      expect(read({ schemaVersion: 2, mediaType, layers: [] }).mediaType).toBe(
        MEDIA_TYPES.ociManifest,
      )
    },
  )

  it('leaves out what has no digest that can be verified, or no size', () => {
    const { digest } = blobOf(1, 1)
    const bad = [{ digest: 'md5:ab', size: 1 }, { digest }, { digest, size: -1 }, { size: 1 }, 'x']
    const content = read({ schemaVersion: 2, layers: [...bad, { digest, size: 1 }] })
    expect(content.blobs).toHaveLength(1)
  })
})

describe('what is no manifest', () => {
  it.each([
    ['schema 1', hostileManifests.schema1().bytes],
    ['an image and an index at once', hostileManifests.imageAndIndex().bytes],
    ['not JSON', Buffer.from('<html>')],
    ['a list', Buffer.from('[]')],
    ['null', Buffer.from('null')],
    ['nothing', Buffer.alloc(0)],
  ])('is refused: %s', (_, bytes) => {
    expect(() => readManifest(bytes)).toThrow(ManifestInvalidError)
  })

  it('is what names more than any image needs', () => {
    const layers = Array.from({ length: 10_001 }, () => ({}))
    expect(() => read({ schemaVersion: 2, layers })).toThrow(ManifestInvalidError)
  })
})
