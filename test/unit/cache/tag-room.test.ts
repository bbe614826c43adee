import { rm } from 'node:fs/promises'
import { describe, expect, it } from 'vitest'
import type { Tag } from '../../../src/oci/reference.ts'
import { diskUsage } from '../../support/disk-usage.ts'
import { buildImage } from '../../support/images.ts'
import {
  OTHER_REPOSITORY,
  REPOSITORY,
  openVolume,
  type VolumeRig,
} from '../../support/volume-rig.ts'

const LIMIT_BYTES = 2 * 1024 ** 2
const TAGS = 200
const image = buildImage({ seed: 'tagged' })
const moved = buildImage({ seed: 'moved' })

const tagAt = (number: number): Tag => `v${number}` as Tag

/** Of content, links and tags. */
const contentBytes = ({ paths }: VolumeRig): number =>
  diskUsage(paths.blobs) + diskUsage(paths.repositories)

/** What the two directories themselves take is counted with the cache's own. */
const TOPS_BYTES = 3 * 4096

describe('what tags take on disk', () => {
  it('counts as they are set, and in a volume that is found', async () => {
    const rig = await openVolume()
    await rig.keepImage(image)
    for (let number = 0; number < TAGS; number++) {
      await rig.setTag(tagAt(number), image.manifest.digest)
    }
    expect(rig.inventory.usedBytes + TOPS_BYTES).toBeGreaterThanOrEqual(contentBytes(rig))
    await rig.inventory.flush()
    expect(rig.inventory.usedBytes + TOPS_BYTES).toBeGreaterThanOrEqual(contentBytes(rig))
    const countedBytes = rig.inventory.usedBytes
    await rig.crash()
    await rm(rig.paths.index, { recursive: true })
    await rig.open()
    await rig.janitor.scanVolume()
    expect(rig.index.totals.tags).toBe(TAGS)
    expect(rig.inventory.usedBytes).toBe(countedBytes)
  })

  it('is never more than there is room for', async () => {
    const rig = await openVolume({ maxSizeBytes: LIMIT_BYTES })
    await rig.keepImage(moved)
    await rig.keepImage(image)
    const areSet = new Set<boolean>()
    for (let number = 0; number < TAGS; number++) {
      areSet.add(await rig.setTag(tagAt(number), image.manifest.digest))
      expect(diskUsage(rig.paths.root)).toBeLessThanOrEqual(LIMIT_BYTES)
    }
    // What is older has gone for them; then they went themselves, with what they point to.
    expect(await rig.isStored(moved.manifest)).toBe(false)
    expect(areSet).toContain(true)
  })

  it('can be had back, though what they point to is small', async () => {
    const rig = await openVolume({ maxSizeBytes: LIMIT_BYTES })
    await rig.keepImage(image)
    for (let number = 0; number < 50; number++) {
      await rig.setTag(tagAt(number), image.manifest.digest)
    }
    expect(await rig.keepImage(buildImage({ layers: [1024 ** 2], seed: 'large' }))).toBe(true)
    expect(await rig.isStored(image.manifest)).toBe(false)
    expect(diskUsage(rig.paths.root)).toBeLessThanOrEqual(LIMIT_BYTES)
  })

  it('no longer counts when a tag, what it points to, or all of its past is gone', async () => {
    const rig = await openVolume()
    await rig.inventory.flush()
    const nothingBytes = rig.inventory.usedBytes
    for (const { manifest } of [image, moved]) {
      await rig.keepManifest(manifest)
      await rig.keepManifest(manifest, { repository: OTHER_REPOSITORY })
      for (const tag of [tagAt(1), tagAt(2)]) {
        await rig.setTag(tag, manifest.digest)
        await rig.setTag(tag, manifest.digest, OTHER_REPOSITORY)
      }
    }
    await rig.inventory.flush()
    expect(rig.index.totals.tags).toBe(8)
    await rig.remover.untag(REPOSITORY, tagAt(1), image.manifest.digest)
    expect(await rig.repositories.readTag(REPOSITORY, tagAt(1))).toBe(moved.manifest.digest)
    await rig.remover.untag(REPOSITORY, tagAt(1), moved.manifest.digest)
    await rig.inventory.flush()
    expect(rig.index.totals.tags).toBe(6)
    const link = { digest: image.manifest.digest, kind: 'manifest' } as const
    await rig.remover.unlink({ ...link, repository: OTHER_REPOSITORY })
    await rig.inventory.flush()
    expect(rig.index.totals.tags).toBe(4)
    await rig.remover.remove(moved.manifest.digest)
    await rig.inventory.flush()
    expect(rig.index.totals.tags).toBe(0)
    await rig.remover.remove(image.manifest.digest)
    await rig.inventory.flush()
    expect(rig.inventory.usedBytes).toBe(nothingBytes)
  })
})
