import { chmod, mkdir, stat, writeFile } from 'node:fs/promises'
import { join } from 'node:path'
import { describe, expect, it } from 'vitest'
import { digestOf } from '../../../src/oci/digest.ts'
import {
  ManifestInvalidError,
  MANIFEST_SIZE_MAX_BYTES,
  readManifest,
} from '../../../src/oci/manifest.ts'
import {
  blobOf,
  buildArtifact,
  buildImage,
  buildIndex,
  hostileManifests,
} from '../../support/images.ts'
import { makeDirectory, makeTempDirectory, removeDirectory } from '../../support/temp-directory.ts'
import { waitFor, within } from '../../support/wait-for.ts'

describe('makeTempDirectory', () => {
  const made: string[] = []

  it('makes an empty directory', async () => {
    const directory = await makeTempDirectory()
    made.push(directory)
    await writeFile(join(directory, 'file'), 'content')
    expect((await stat(directory)).isDirectory()).toBe(true)
  })

  it('has removed it when the test is over', async () => {
    await expect(stat(made[0] ?? '')).rejects.toThrow('ENOENT')
  })

  it('removes what is not writable', async () => {
    const directory = await makeDirectory()
    await mkdir(join(directory, 'locked'))
    await writeFile(join(directory, 'locked', 'file'), 'content')
    await chmod(join(directory, 'locked'), 0o500)
    await removeDirectory(directory)
    await expect(stat(directory)).rejects.toThrow('ENOENT')
  })
})

describe('waitFor', () => {
  it('returns what the condition returns once it holds', async () => {
    let polls = 0
    expect(await waitFor('three polls', () => ++polls >= 3 && polls)).toBe(3)
  })

  it('says what it waited for in vain', async () => {
    const never = waitFor('the moon', () => false, { deadlineMs: 0 })
    await expect(never).rejects.toThrow('timed out waiting for the moon')
  })

  it('bounds a promise that never settles', async () => {
    const never = within('an answer', new Promise(() => {}), { deadlineMs: 0 })
    await expect(never).rejects.toThrow('timed out waiting for an answer')
  })
})

describe('test images', () => {
  it.each(['docker', 'oci'] as const)('are valid %s images and indexes', (kind) => {
    const images = [1, 2].map((seed) => buildImage({ kind, seed, layers: [10, 2000] }))
    const [image] = images
    const content = readManifest(image?.manifest.bytes ?? Buffer.alloc(0))
    expect(content.mediaType).toBe(image?.manifest.mediaType)
    expect(content.blobs.map((blob) => blob.digest)).toEqual([
      image?.config.digest,
      ...(image?.layers.map((layer) => layer.digest) ?? []),
    ])
    expect(content.blobs.slice(1).map((blob) => blob.sizeBytes)).toEqual([10, 2000])

    const index = buildIndex(images, { kind })
    const indexContent = readManifest(index.manifest.bytes)
    expect(indexContent.mediaType).toBe(index.manifest.mediaType)
    expect(indexContent.amd64).toBe(image?.manifest.digest)
    expect(indexContent.manifests).toHaveLength(2)
  })

  it('are the same bytes for the same seed, and others for another', () => {
    expect(buildImage({ seed: 7 })).toEqual(buildImage({ seed: 7 }))
    expect(blobOf(100, 'a').digest).not.toBe(blobOf(100, 'b').digest)
    expect(blobOf(100, 'a', 'sha512').digest).toMatch(/^sha512:[0-9a-f]{128}$/)
  })

  it('have artifacts that name their subject', () => {
    const subject = buildImage().manifest
    const artifact = buildArtifact(subject)
    expect(readManifest(artifact.manifest.bytes).subject).toBe(subject.digest)
    expect(artifact.manifest.digest).toBe(digestOf(artifact.manifest.bytes))
  })

  it('have hostile manifests that are hostile', () => {
    expect(hostileManifests.oversized().bytes.length).toBe(MANIFEST_SIZE_MAX_BYTES + 1)
    for (const hostile of [hostileManifests.schema1(), hostileManifests.imageAndIndex()]) {
      expect(() => readManifest(hostile.bytes)).toThrow(ManifestInvalidError)
    }
  })
})
