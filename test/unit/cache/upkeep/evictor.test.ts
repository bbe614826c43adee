import { existsSync } from 'node:fs'
import { mkdir } from 'node:fs/promises'
import { describe, expect, it } from 'vitest'
import type { Tag } from '../../../../src/oci/reference.ts'
import { StorageError } from '../../../../src/storage/filesystem.ts'
import {
  blobOf,
  buildArtifact,
  buildImage,
  buildIndex,
  descriptorOf,
  manifestFrom,
  type TestBlob,
  type TestImage,
} from '../../../support/images.ts'
import { SENDER } from '../../../support/spool-rig.ts'
import {
  OTHER_REPOSITORY,
  REPOSITORY,
  openVolume,
  type VolumeRig,
} from '../../../support/volume-rig.ts'

const KIB = 1024
const SECOND_MS = 1_000
const ALL_BYTES = 2 ** 40

const pinned = (match: string) => ({ match, isPinned: true, ttlMs: undefined })
const partsOf = ({ config, layers, manifest }: TestImage): TestBlob[] => [
  manifest,
  config,
  ...layers,
]

/** Keeps images one after the other, each a second younger. */
async function keepImages(rig: VolumeRig, ...images: readonly TestImage[]): Promise<void> {
  for (const [number, image] of images.entries()) {
    await rig.keepImage(image, { tag: `v${number}` })
    rig.clock.jump(SECOND_MS)
  }
  await rig.inventory.flush()
}

const threeImages = (): [TestImage, TestImage, TestImage] => [
  buildImage({ seed: 'one', layers: [100 * KIB, 8 * KIB] }),
  buildImage({ seed: 'two', layers: [100 * KIB, 8 * KIB] }),
  buildImage({ seed: 'three', layers: [100 * KIB, 8 * KIB] }),
]

/** Two images that share their first layer. */
function sharingImages(): [TestImage, TestImage, shared: TestBlob] {
  const [one, two] = threeImages()
  const [shared] = one.layers
  if (!shared) throw new Error('no layer')
  const layers = [shared, ...two.layers.slice(1)]
  const manifest = manifestFrom(two.manifest.mediaType, {
    config: descriptorOf('application/vnd.oci.image.config.v1+json', two.config),
    layers: layers.map((layer) => descriptorOf('application/octet-stream', layer)),
  })
  return [one, { ...two, layers, manifest }, shared]
}

/** What is left of the parts. */
async function left(rig: VolumeRig, ...parts: readonly TestBlob[]): Promise<boolean[]> {
  return Promise.all(parts.map((part) => rig.isStored(part)))
}

const gone = (image: TestImage): boolean[] => partsOf(image).map(() => false)
const whole = (image: TestImage): boolean[] => partsOf(image).map(() => true)

describe('making room', () => {
  it('removes the least recently used image, whole, with its links and its tag', async () => {
    const rig = await openVolume()
    const [one, two, three] = threeImages()
    await keepImages(rig, one, two, three)
    rig.use(one.manifest, 'manifest')
    const freedBytes = await rig.evictor.makeRoom(KIB)
    expect(freedBytes).toBeGreaterThanOrEqual(108 * KIB)
    expect(await left(rig, ...partsOf(two))).toEqual(gone(two))
    expect(await left(rig, ...partsOf(one))).toEqual(whole(one))
    expect(await left(rig, ...partsOf(three))).toEqual(whole(three))
    expect(await rig.repositories.listTags(REPOSITORY)).toEqual(['v0', 'v2'])
    for (const { digest } of partsOf(two)) {
      for (const kind of ['blob', 'manifest'] as const) {
        expect(await rig.repositories.has({ repository: REPOSITORY, digest, kind })).toBe(false)
      }
      expect(existsSync(rig.paths.blobData(digest))).toBe(false)
    }
    expect(rig.index.totals.blobs).toBe(8)
  })

  it('removes as many images as it takes, the oldest first', async () => {
    const rig = await openVolume()
    const [one, two, three] = threeImages()
    await keepImages(rig, one, two, three)
    await rig.evictor.makeRoom(250 * KIB)
    expect(await left(rig, ...partsOf(one), ...partsOf(two))).toEqual([...gone(one), ...gone(two)])
    expect(await left(rig, ...partsOf(three))).toEqual(whole(three))
  })

  it('removes nothing when all that may go would not be enough', async () => {
    const rig = await openVolume()
    const [one, two] = threeImages()
    await keepImages(rig, one, two)
    await leavePart(rig, blobOf(50 * KIB, 'part'), 50 * KIB)
    expect(await rig.evictor.makeRoom(ALL_BYTES)).toBe(0)
    expect(await left(rig, ...partsOf(one), ...partsOf(two))).toEqual([
      ...whole(one),
      ...whole(two),
    ])
    expect(rig.spools.partBytesTotal).toBe(50 * KIB)
  })

  it('removes an index with all its images, and what refers to them', async () => {
    const rig = await openVolume()
    const [one, two] = threeImages()
    const index = buildIndex([one, two])
    const signature = buildArtifact(index.manifest)
    const cosign = buildImage({ seed: 'cosign', layers: [300] })
    await rig.keepManifest(index.manifest, { tag: 'latest' })
    for (const image of [one, two, signature]) await rig.keepImage(image)
    await rig.keepImage(cosign, { tag: `${one.manifest.digest.replace(':', '-')}.sig` })
    rig.clock.jump(SECOND_MS)
    await rig.keepBlob(blobOf(10, 'younger'))
    await rig.evictor.makeRoom(1)
    const all = [index.manifest, ...[one, two, signature, cosign].flatMap(partsOf)]
    expect(await left(rig, ...all)).toEqual(all.map(() => false))
    expect(rig.index.totals.blobs).toBe(1)
  })

  it('leaves the layers that another image needs', async () => {
    const rig = await openVolume()
    const [one, two, shared] = sharingImages()
    await keepImages(rig, one, two)
    await rig.evictor.makeRoom(1)
    expect(await left(rig, one.manifest, one.config, shared)).toEqual([false, false, true])
    expect(await left(rig, ...partsOf(two))).toEqual(whole(two))
    await rig.evictor.makeRoom(1)
    expect(await left(rig, ...partsOf(two))).toEqual(gone(two))
    expect(rig.index.totals.blobs).toBe(0)
  })

  it('takes shared layers along when it takes all images that share them', async () => {
    const rig = await openVolume()
    const [one, two, shared] = sharingImages()
    await keepImages(rig, one, two)
    // Without the layer it would not be enough.
    expect(await rig.evictor.makeRoom(110 * KIB)).toBeGreaterThan(110 * KIB)
    expect(await rig.isStored(shared)).toBe(false)
  })

  it('leaves a layer that somebody wanted for itself, long after the image', async () => {
    const rig = await openVolume()
    const [one, two] = threeImages()
    await keepImages(rig, one, two)
    const [layer] = one.layers
    if (!layer) throw new Error('no layer')
    rig.clock.jump(3_600_000)
    rig.use(layer, 'blob')
    await rig.evictor.makeRoom(1)
    expect(await left(rig, one.manifest, layer, two.manifest)).toEqual([false, true, true])
  })

  it('keeps the order of those it has looked at and had no need of', async () => {
    const rig = await openVolume()
    const [one, two, three] = threeImages()
    // Children come before their index, when they were used at the same time.
    for (const image of [one, two, three]) {
      await rig.keepManifest(buildIndex([image]).manifest)
      await rig.keepImage(image)
    }
    await rig.inventory.flush()
    const order = async (): Promise<string[]> => {
      const digests: string[] = []
      for await (const { digest } of rig.index.oldestFirst()) digests.push(digest)
      return digests
    }
    const before = await order()
    await rig.evictor.makeRoom(1)
    const after = await order()
    expect(after).toEqual(before.filter((digest) => after.includes(digest)))
    expect(after).toHaveLength(before.length - 5)
  })

  it('counts what it removed', async () => {
    const rig = await openVolume()
    const [one, two] = threeImages()
    await keepImages(rig, one, two)
    const freedBytes = await rig.evictor.makeRoom(1)
    const text = await rig.metrics.registry.metrics()
    expect(text).toContain('layover_evicted_blobs_total 4')
    expect(text).toContain(`layover_evicted_bytes_total ${freedBytes}`)
  })
})

describe('what is in use', () => {
  it('stays, with all of its image, while somebody reads a part of it', async () => {
    const rig = await openVolume()
    const [one, two] = threeImages()
    await keepImages(rig, one, two)
    const file = await rig.blobs.open(one.layers[1]?.digest ?? one.manifest.digest)
    await rig.evictor.makeRoom(1)
    expect(await left(rig, ...partsOf(one))).toEqual(whole(one))
    expect(await left(rig, ...partsOf(two))).toEqual(gone(two))
    file?.close()
    await rig.evictor.makeRoom(1)
    expect(await left(rig, ...partsOf(one))).toEqual(gone(one))
  })

  it('goes to the end of the line, so that nobody looks at it each time', async () => {
    const rig = await openVolume()
    const [one, two, three] = threeImages()
    await keepImages(rig, one, two, three)
    const file = await rig.blobs.open(one.manifest.digest)
    await rig.evictor.makeRoom(1)
    file?.close()
    await rig.evictor.makeRoom(1)
    expect(await left(rig, one.manifest, two.manifest, three.manifest)).toEqual([
      true,
      false,
      false,
    ])
  })

  it('stays when it is used at the moment in which it should go', async () => {
    const [one, two] = threeImages()
    let isFirst = true
    const rig = await openVolume({
      onUnlinked: ({ digest }, { inventory }) => {
        if (!isFirst || digest !== one.manifest.digest) return
        isFirst = false
        inventory.touch({ repository: REPOSITORY, digest, kind: 'manifest' })
      },
    })
    await keepImages(rig, one, two)
    expect(await rig.evictor.makeRoom(1)).toBeGreaterThan(0)
    expect(await left(rig, ...partsOf(one))).toEqual(whole(one))
    expect(await left(rig, ...partsOf(two))).toEqual(gone(two))
  })

  it('does not give away the layers that it shares with what goes', async () => {
    const [one, two, shared] = sharingImages()
    let isFirst = true
    const rig = await openVolume({
      onUnlinked: ({ digest }, { inventory }) => {
        if (!isFirst || digest !== one.manifest.digest) return
        isFirst = false
        inventory.touch({ repository: REPOSITORY, digest, kind: 'manifest' })
      },
    })
    const three = threeImages()[2]
    await keepImages(rig, one, two, three)
    // The first two should go, and so the layer; but one of them is wanted again.
    await rig.evictor.makeRoom(110 * KIB)
    expect(await left(rig, ...partsOf(one))).toEqual(whole(one))
    expect(await left(rig, two.manifest, shared, three.manifest)).toEqual([false, true, false])
  })
})

describe('what is pinned', () => {
  it('by the name of its repository stays', async () => {
    const rig = await openVolume({ rules: [pinned('library/a')] })
    const [one, two] = threeImages()
    await rig.keepImage(one, { repository: REPOSITORY })
    rig.clock.jump(SECOND_MS)
    await rig.keepImage(two, { repository: OTHER_REPOSITORY })
    expect(await rig.evictor.makeRoom(1)).toBeGreaterThan(0)
    expect(await left(rig, ...partsOf(one))).toEqual(whole(one))
    expect(await left(rig, ...partsOf(two))).toEqual(gone(two))
    expect(await rig.evictor.makeRoom(1)).toBe(0)
  })

  it('by a tag stays with all that it names and all that refers to it', async () => {
    const rig = await openVolume({ rules: [pinned('library/*:20-*')] })
    const [one, two, three] = threeImages()
    const index = buildIndex([one, two])
    const signature = buildArtifact(index.manifest)
    await rig.keepManifest(index.manifest, { tag: '20-slim' })
    for (const image of [one, two, signature]) await rig.keepImage(image)
    rig.clock.jump(SECOND_MS)
    await rig.keepImage(three, { tag: 'latest' })
    expect(await rig.evictor.makeRoom(ALL_BYTES)).toBe(0)
    await rig.evictor.makeRoom(1)
    const kept = [index.manifest, ...[one, two, signature].flatMap(partsOf)]
    expect(await left(rig, ...kept)).toEqual(kept.map(() => true))
    expect(await left(rig, ...partsOf(three))).toEqual(gone(three))
  })

  it('stays when the index that names it goes', async () => {
    const rig = await openVolume({ rules: [pinned('library/a:pinned')] })
    const [one, two] = threeImages()
    const index = buildIndex([one, two])
    await rig.keepManifest(index.manifest, { tag: 'latest' })
    await rig.keepImage(one, { tag: 'pinned' })
    await rig.keepImage(two)
    expect(await rig.evictor.makeRoom(1)).toBeGreaterThan(0)
    expect(await rig.isStored(index.manifest)).toBe(false)
    expect(await left(rig, ...partsOf(one))).toEqual(whole(one))
    expect(await left(rig, ...partsOf(two))).toEqual(gone(two))
  })

  it('may go when the tag has moved on', async () => {
    const rig = await openVolume({ rules: [pinned('library/a:v0')] })
    const [one, two] = threeImages()
    await keepImages(rig, one)
    expect(await rig.evictor.makeRoom(1)).toBe(0)
    await rig.keepImage(two, { tag: 'v0' })
    expect(await rig.evictor.makeRoom(1)).toBeGreaterThan(0)
    expect(await rig.isStored(one.manifest)).toBe(false)
    expect(await rig.repositories.readTag(REPOSITORY, 'v0' as Tag)).toBe(two.manifest.digest)
    expect(existsSync(rig.paths.tagHistoryLink(REPOSITORY, 'v0' as Tag, one.manifest.digest))).toBe(
      false,
    )
  })
})

/** What a broken download leaves, as old as the clock says. */
async function leavePart(rig: VolumeRig, blob: TestBlob, sizeBytes: number): Promise<void> {
  await mkdir(rig.paths.spool, { recursive: true })
  const options = {
    sender: SENDER,
    sizeBytes: 2 * blob.bytes.length + 100 * KIB,
    resumedBytes: 0,
    isKept: true,
  }
  const spool = await rig.spools.open(blob.digest, options)
  await spool.append(blob.bytes.subarray(0, sizeBytes))
  spool.fail(new Error('the upstream went away'))
  await spool.release()
  await rig.spools.giveBack(spool, { sender: SENDER })
}

describe('what broken downloads have left', () => {
  it('goes in its turn, as content does', async () => {
    const rig = await openVolume()
    const [one, two] = threeImages()
    const [old, young] = [blobOf(90 * KIB, 'old part'), blobOf(90 * KIB, 'young part')]
    await leavePart(rig, old, 80 * KIB)
    rig.clock.jump(SECOND_MS)
    await keepImages(rig, one)
    await leavePart(rig, young, 80 * KIB)
    rig.clock.jump(SECOND_MS)
    await keepImages(rig, two)
    expect(await rig.evictor.makeRoom(1)).toBe(80 * KIB)
    expect(rig.spools.partBytes(old.digest)).toBe(0)
    expect(await rig.isStored(one.manifest)).toBe(true)
    await rig.evictor.makeRoom(1)
    expect(await rig.isStored(one.manifest)).toBe(false)
    expect(rig.spools.partBytes(young.digest)).toBe(80 * KIB)
    await rig.evictor.makeRoom(1)
    expect(rig.spools.partBytes(young.digest)).toBe(0)
    expect(await rig.isStored(two.manifest)).toBe(true)
  })

  it('stays when a download is about to go on with it', async () => {
    const rig = await openVolume()
    const part = blobOf(90 * KIB, 'claimed')
    await leavePart(rig, part, 80 * KIB)
    expect(rig.spools.claim(part.digest, SENDER)).toBe(80 * KIB)
    expect(await rig.evictor.makeRoom(1)).toBe(0)
    expect(rig.spools.partBytesTotal).toBe(80 * KIB)
    rig.spools.unclaim(part.digest)
    expect(await rig.evictor.makeRoom(1)).toBe(80 * KIB)
  })
})

describe('when nothing can be written', () => {
  it('content goes all the same: that makes the room for notes', async () => {
    const rig = await openVolume()
    const [one, two] = threeImages()
    await keepImages(rig, one, two)
    const write = rig.index.write.bind(rig.index)
    rig.index.write = async () => {
      throw new StorageError('write', 'the index', new Error('the disk is full'))
    }
    expect(await rig.evictor.makeRoom(1)).toBeGreaterThan(0)
    expect(await left(rig, ...partsOf(one))).toEqual(gone(one))
    rig.index.write = write
    await rig.inventory.flush()
    expect(rig.index.totals.blobs).toBe(4)
  })
})

describe('a volume that was never looked through', () => {
  it('loses nothing: what belongs together is not known yet', async () => {
    const rig = await openVolume({
      isScanned: false,
      fill: async ({ blobs }) => {
        const { bytes, digest } = blobOf(KIB, 'of another registry')
        await blobs.put(digest, bytes)
      },
    })
    await rig.keepBlob(blobOf(KIB, 'new'))
    await rig.inventory.flush()
    expect(await rig.evictor.makeRoom(1)).toBe(0)
    await rig.janitor.scanVolume()
    expect(await rig.evictor.makeRoom(1)).toBeGreaterThan(0)
  })
})
