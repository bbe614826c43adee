import { existsSync } from 'node:fs'
import { mkdir, rm, symlink, utimes, writeFile } from 'node:fs/promises'
import path from 'node:path'
import { describe, expect, it } from 'vitest'
import { digestOf, type Digest } from '../../../../src/oci/digest.ts'
import type { Tag } from '../../../../src/oci/reference.ts'
import { FAKE_EPOCH_MS } from '../../../support/fake-clock.ts'
import {
  blobOf,
  buildArtifact,
  buildImage,
  buildIndex,
  hostileManifests,
  type TestBlob,
  type TestImage,
} from '../../../support/images.ts'
import {
  OTHER_REPOSITORY,
  REPOSITORY,
  openVolume,
  type VolumeRig,
} from '../../../support/volume-rig.ts'

const HOUR_MS = 3_600_000
const TTL_MS = 168 * HOUR_MS

/** A volume as another registry leaves it: bytes and links, and nobody has counted them. */
async function takeOver(
  fill: (rig: VolumeRig) => Promise<void>,
  options: { ttlMs?: number; uploadMaxAgeMs?: number } = {},
): Promise<VolumeRig> {
  const { ttlMs = 0, uploadMaxAgeMs = 0 } = options
  const rig = await openVolume({ ttlMs, janitor: { partialMaxAgeMs: uploadMaxAgeMs } })
  await fill(rig)
  await rig.crash()
  await rm(rig.paths.index, { recursive: true })
  await rig.open()
  await rig.janitor.scanVolume()
  return rig
}

async function putBlob({ blobs, repositories }: VolumeRig, { bytes, digest }: TestBlob) {
  await blobs.put(digest, bytes)
  await repositories.link({ repository: REPOSITORY, digest, kind: 'blob' })
}

/** As pushed, or pulled through another cache. */
async function putImage(rig: VolumeRig, image: TestImage, tag?: string): Promise<void> {
  for (const blob of [image.config, ...image.layers]) await putBlob(rig, blob)
  await putManifest(rig, image.manifest, tag)
}

async function putManifest(rig: VolumeRig, { bytes, digest }: TestBlob, tag?: string) {
  await rig.blobs.put(digest, bytes)
  await rig.repositories.link({ repository: REPOSITORY, digest, kind: 'manifest' })
  if (tag !== undefined) await rig.repositories.setTag(REPOSITORY, tag as Tag, digest)
}

async function write(file: string, content: string): Promise<void> {
  await mkdir(path.dirname(file), { recursive: true })
  await writeFile(file, content)
}

const summaryOf = (rig: VolumeRig): string =>
  rig.messages.findLast((line) => line.startsWith('found ')) ?? ''

const NOTHING_ODD = /in the volume$/

describe('looking through a volume', () => {
  it('does not tell of what comes meanwhile as missing', async () => {
    const rig = await openVolume({})
    const { repositories } = rig
    const walk = repositories.repositories.bind(repositories)
    // When the bytes have been looked at, and before the links are.
    repositories.repositories = async function* comeAmidst() {
      await putBlob(rig, blobOf(9000, 'new'))
      yield* walk()
    }
    await rig.janitor.scanVolume()
    expect(summaryOf(rig)).toMatch(NOTHING_ODD)
  })

  it('comes to an end where a symbolic link leads back', async () => {
    const image = buildImage({ layers: [9000] })
    const rig = await takeOver(async (volume) => {
      await putImage(volume, image, 'latest')
      const { repositories } = volume.paths
      await symlink(repositories, path.join(repositories, 'loop'))
    })
    expect(rig.inventory.isComplete).toBe(true)
    expect(rig.index.totals).toMatchObject({ blobs: 3, links: 3 })
  })

  it('finds what is there, and how it belongs together', async () => {
    const image = buildImage({ layers: [9000, 100] })
    const index = buildIndex([image])
    const sbom = buildArtifact(image.manifest)
    const signature = buildImage({ seed: 'cosign' })
    const rig = await takeOver(async (volume) => {
      await putManifest(volume, index.manifest, 'latest')
      await putImage(volume, image)
      await putImage(volume, sbom)
      await putImage(volume, signature, `${image.manifest.digest.replace(':', '-')}.sig`)
    })
    const namesOf = ({ digest }: TestBlob): Digest[] => rig.index.namesOf(digest).sort()
    expect(namesOf(index.manifest)).toEqual([image.manifest.digest])
    const parts = [image.config, ...image.layers, sbom.manifest, signature.manifest]
    expect(namesOf(image.manifest)).toEqual(parts.map(({ digest }) => digest).sort())
    expect(rig.index.totals).toMatchObject({ blobs: 11, links: 11 })
    expect(rig.index.blob(image.layers[0]?.digest ?? image.config.digest)).toMatchObject({
      allocatedBytes: 12_288,
      isManifest: false,
      namedBy: 1,
    })
    expect(summaryOf(rig)).toMatch(/^found 11 blobs \(0\.0 GiB\) and 11 links in 1 repositories/)
    expect(summaryOf(rig)).toMatch(NOTHING_ODD)
  })

  it('finds nothing in an empty one', async () => {
    const rig = await openVolume()
    expect(summaryOf(rig)).toBe(
      'found 0 blobs (0.0 GiB) and 0 links in 0 repositories in the volume',
    )
    expect(rig.inventory.isComplete).toBe(true)
  })

  it('says all that is odd in one line', async () => {
    const image = buildImage({ layers: [1000] })
    const [layer] = image.layers
    const rig = await takeOver(
      async (volume) => {
        await putImage(volume, image, 'latest')
        // Cut short by a crash.
        await write(volume.paths.blobData(layer?.digest ?? image.config.digest), 'cut')
        const dangling = blobOf(8, 'dangling').digest
        await volume.repositories.link({ repository: REPOSITORY, digest: dangling, kind: 'blob' })
        await volume.repositories.setTag(REPOSITORY, 'dangling' as Tag, dangling)
        await mkdir(path.dirname(volume.paths.blobData(blobOf(8, 'empty').digest)), {
          recursive: true,
        })
        await write(path.join(volume.paths.repository(REPOSITORY), '_uploads/id/data'), 'half')
      },
      { uploadMaxAgeMs: 1 },
    )
    // Files are as old as the test; the clock of the rig stands in the past.
    expect(summaryOf(rig)).toBe(
      'found 3 blobs (0.0 GiB) and 4 links in 1 repositories in the volume; ' +
        '1 damaged blobs set aside, 1 images without all of their layers, 1 tags without a manifest, ' +
        '1 links without bytes, 1 empty blob directories removed: all of it is fetched again when asked for',
    )
  })

  it('spreads what it finds over half a ttl, and believes what registry:2 says of later', async () => {
    const [spread, later] = [blobOf(8, 'spread'), blobOf(8, 'later')]
    const expiresAtMs = FAKE_EPOCH_MS + TTL_MS - 5_000
    const rig = await takeOver(
      async (volume) => {
        for (const blob of [spread, later]) await putBlob(volume, blob)
        const key = `${REPOSITORY}@${later.digest}`
        const entry = { Key: key, ExpiryData: new Date(expiresAtMs).toISOString(), EntryType: 0 }
        await writeFile(volume.paths.schedulerState, JSON.stringify({ [key]: entry }))
      },
      { ttlMs: TTL_MS },
    )
    const lastUsedMs = (blob: TestBlob): number =>
      rig.index.link(blob.digest, REPOSITORY)?.lastUsedMs ?? 0
    expect(lastUsedMs(later)).toBe(FAKE_EPOCH_MS - 5_000)
    expect(lastUsedMs(spread)).toBe(rig.retention.assumedLastUseMs(spread.digest, REPOSITORY))
  })

  it('knows which links lead to nothing, and leaves them', async () => {
    const { digest } = blobOf(8, 'dangling')
    const link = { repository: REPOSITORY, digest, kind: 'blob' } as const
    const rig = await takeOver((volume) => volume.repositories.link(link))
    expect(rig.index.linksOf(digest)).toEqual([])
    expect(await rig.repositories.has(link)).toBe(true)
  })

  it('can be told to stop, and has not seen all then', async () => {
    const rig = await openVolume({
      isScanned: false,
      fill: async ({ blobs }) =>
        void (await blobs.put(blobOf(8, 'a').digest, blobOf(8, 'a').bytes)),
    })
    const scanning = rig.janitor.scanVolume()
    await rig.janitor.stop()
    await scanning
    expect(rig.inventory.isComplete).toBe(false)
    expect(rig.inventory.isCounted).toBe(false)
    expect(rig.index.hasSeenAll).toBe(false)
  })
})

describe('manifests that are none', () => {
  it.each([
    ['schema 1', hostileManifests.schema1().bytes],
    ['an image and an index at once', hostileManifests.imageAndIndex().bytes],
    ['not JSON', Buffer.from('layers')],
  ])('name nothing: %s', async (_what, bytes) => {
    const manifest = { bytes, digest: digestOf(bytes) }
    const rig = await takeOver((volume) => putManifest(volume, manifest))
    expect(rig.index.namesOf(manifest.digest)).toEqual([])
    expect(rig.index.totals).toMatchObject({ blobs: 1, links: 1 })
  })

  it('are set aside when their bytes are wrong', async () => {
    const image = buildImage()
    const rig = await takeOver(async (volume) => {
      await putImage(volume, image)
      await write(volume.paths.blobData(image.manifest.digest), '{}')
    })
    expect(existsSync(rig.paths.quarantined(image.manifest.digest))).toBe(true)
    expect(await rig.isStored(image.manifest)).toBe(false)
  })
})

describe('a blob of another size than its manifest says', () => {
  it('is set aside when its bytes are wrong, and counts no longer', async () => {
    const image = buildImage({ layers: [20_000] })
    const digest = image.layers[0]?.digest ?? image.config.digest
    const rig = await takeOver(async (volume) => {
      await putImage(volume, image)
      await write(volume.paths.blobData(digest), 'cut')
    })
    expect(rig.index.has(digest)).toBe(false)
    expect(existsSync(rig.paths.quarantined(digest))).toBe(true)
    expect(rig.index.totals.allocatedBytes).toBe(2 * 4096)
  })

  it('stays when its bytes are right: the manifest was wrong', async () => {
    const image = buildImage({ layers: [20_000] })
    const lying = Buffer.from(image.manifest.bytes.toString().replace('20000', '20001'))
    const manifest = { bytes: lying, digest: digestOf(lying) }
    const rig = await takeOver(async (volume) => {
      await putImage(volume, image)
      await putManifest(volume, manifest)
    })
    expect(rig.index.totals.blobs).toBe(4)
    expect(summaryOf(rig)).toMatch(NOTHING_ODD)
  })
})

async function withUploads(uploadMaxAgeMs: number): Promise<{ old: boolean; young: boolean }> {
  const rig = await takeOver(
    async (volume) => {
      await putBlob(volume, blobOf(8, 'a'))
      for (const [name, ageMs] of Object.entries({ old: 2 * HOUR_MS, young: 0 })) {
        const upload = path.join(volume.paths.repository(REPOSITORY), '_uploads', name)
        await write(path.join(upload, 'data'), 'half')
        const changedAt = new Date(FAKE_EPOCH_MS - ageMs)
        await utimes(upload, changedAt, changedAt)
      }
    },
    { uploadMaxAgeMs },
  )
  const uploads = path.join(rig.paths.repository(REPOSITORY), '_uploads')
  return {
    old: existsSync(path.join(uploads, 'old')),
    young: existsSync(path.join(uploads, 'young')),
  }
}

describe('unfinished uploads of registry:2', () => {
  it('go when they are old', async () => {
    expect(await withUploads(HOUR_MS)).toEqual({ old: false, young: true })
  })

  it('stay when the configuration keeps them', async () => {
    expect(await withUploads(0)).toEqual({ old: true, young: true })
  })
})

describe('after a crash', () => {
  it('what has vanished is forgotten, and what nobody noted is found', async () => {
    const [vanished, found, kept] = [blobOf(8, 'vanished'), blobOf(8, 'found'), blobOf(8, 'kept')]
    const rig = await openVolume()
    for (const blob of [vanished, kept]) await rig.keepBlob(blob)
    await rig.inventory.flush()
    await rig.keepBlob(found)
    await rm(rig.paths.blobData(vanished.digest))
    await rig.crash()
    await rig.open()
    expect(rig.inventory.isComplete).toBe(false)
    // Nearly all was counted before.
    expect(rig.inventory.isCounted).toBe(true)
    await rig.janitor.scanVolume()
    expect(rig.index.has(vanished.digest)).toBe(false)
    expect(rig.index.link(found.digest, REPOSITORY)).toBeDefined()
    expect(rig.index.totals).toMatchObject({ blobs: 2, links: 2, allocatedBytes: 8192 })
    expect(summaryOf(rig)).toContain('1 blobs that had vanished')
  })

  it('a manifest is read again whose names were not written down', async () => {
    const image = buildImage()
    const rig = await openVolume()
    await putImage(rig, image)
    const { digest } = image.manifest
    await rig.index.write([
      { change: 'store', digest, allocatedBytes: 4096, isManifest: true, atMs: 1 },
    ])
    await rig.crash()
    await rig.open()
    await rig.janitor.scanVolume()
    expect(rig.index.namesOf(digest)).toHaveLength(2)
  })

  it('the last uses that were written down are still known', async () => {
    const blob = blobOf(8, 'used')
    const rig = await openVolume({ ttlMs: TTL_MS })
    await rig.keepBlob(blob)
    await rig.keepBlob(blob, OTHER_REPOSITORY)
    await rig.inventory.flush()
    const before = rig.index.linksOf(blob.digest)
    rig.clock.jump(HOUR_MS)
    await rig.crash()
    await rig.open()
    await rig.janitor.scanVolume()
    expect(rig.index.linksOf(blob.digest)).toEqual(before)
  })

  it('an orderly stop leaves nothing to look for', async () => {
    const rig = await openVolume()
    await rig.keepBlob(blobOf(8, 'a'))
    await rig.close()
    await rig.open()
    expect(rig.inventory.isComplete).toBe(true)
    expect(rig.index.totals.links).toBe(1)
  })
})

describe('while the volume is looked through', () => {
  it('bytes that arrive in an empty directory stay', async () => {
    const blob = blobOf(8, 'arrives')
    const rig = await openVolume({
      isScanned: false,
      fill: async ({ paths }) => {
        await mkdir(path.dirname(paths.blobData(blob.digest)), { recursive: true })
      },
    })
    // The scan has found no bytes; before it acts on that, a download ends.
    const stat = rig.blobs.stat.bind(rig.blobs)
    rig.blobs.stat = async (digest) => {
      const info = await stat(digest)
      if (!info) await rig.keepBlob(blob)
      return info
    }
    await rig.janitor.scanVolume()
    expect(existsSync(rig.paths.blobData(blob.digest))).toBe(true)
    await rig.inventory.flush()
    expect(rig.index.has(blob.digest)).toBe(true)
  })

  it('what is stored after its turn is not taken for vanished', async () => {
    const rig = await openVolume({ isScanned: false })
    const blob = blobOf(8, 'late')
    const shards = rig.blobs.shards.bind(rig.blobs)
    rig.blobs.shards = async function* () {
      for await (const shard of shards()) {
        // Listed, and then stored.
        if (blob.digest.startsWith(`sha256:${shard.hexPrefix}`)) {
          await rig.keepBlob(blob)
          await rig.inventory.flush()
        }
        yield shard
      }
    }
    await rig.janitor.scanVolume()
    expect(rig.index.link(blob.digest, REPOSITORY)).toBeDefined()
  })
})

const parts = ({ config, layers, manifest }: TestImage): Digest[] =>
  [manifest, config, ...layers].map(({ digest }) => digest)

describe('images that were found', () => {
  it('go whole when room is needed, with the index that names them', async () => {
    const indexes = Array.from({ length: 12 }, (_, number) => {
      const images = ['amd64', 'arm64'].map((seed) => {
        return buildImage({ seed: `${number} ${seed}`, layers: [20_000, 9_000, 500] })
      })
      return { top: buildIndex(images), images }
    })
    const rig = await takeOver(async (volume) => {
      for (const { images, top } of indexes) {
        for (const image of images) await putImage(volume, image)
        await putManifest(volume, top.manifest, 'latest')
      }
    })

    await rig.evictor.makeRoom(Math.floor(rig.inventory.usedBytes * 0.4))
    await rig.inventory.flush()

    const stored = indexes.map(({ images, top }) => {
      const digests = [top.manifest.digest, ...images.flatMap(parts)]
      return digests.filter((digest) => rig.index.has(digest)).length / digests.length
    })
    expect(new Set(stored)).toEqual(new Set([0, 1]))
  })
})
