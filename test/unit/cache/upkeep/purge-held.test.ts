// What a purge leaves for the sake of what stays: clients that had a layer already have never asked for it there.

import { describe, expect, it } from 'vitest'
import type { PurgeItem } from '../../../../src/cache/upkeep/purge-run.ts'
import type { PurgeRequest } from '../../../../src/cache/upkeep/purge-selection.ts'
import type { RepositoryName } from '../../../../src/oci/reference.ts'
import {
  buildArtifact,
  buildImage,
  buildIndex,
  descriptorOf,
  manifestFrom,
  type TestBlob,
  type TestImage,
} from '../../../support/images.ts'
import { openVolume, type VolumeRig } from '../../../support/volume-rig.ts'

const [A, B, C] = ['library/a', 'library/b', 'library/c'] as RepositoryName[] as [
  RepositoryName,
  RepositoryName,
  RepositoryName,
]
const HOUR_MS = 3_600_000

const image = buildImage({ seed: 'shared', layers: [9_000, 5_000] })
const blobs = [image.config, ...image.layers]

/** A pulled all of it, B only the manifest. */
async function sharedByB(): Promise<VolumeRig> {
  const rig = await openVolume()
  await rig.keepImage(image, { repository: A, tag: '1' })
  await rig.keepManifest(image.manifest, { repository: B, tag: '1' })
  return rig
}

/** Purges, and checks that the dry run has told the same before. */
async function purge(rig: VolumeRig, request: PurgeRequest): Promise<PurgeItem[]> {
  const dry = await rig.purge(request, { isDryRun: true })
  const real = await rig.purge(request)
  expect(dry.items).toEqual(real.items)
  expect(dry.summary).toEqual({ ...real.summary, isDryRun: true })
  await rig.inventory.flush()
  return real.items
}

function outcomesOf(items: readonly PurgeItem[], blob: TestBlob): string[] {
  return items.filter(({ digest }) => digest === blob.digest).map(({ outcome }) => outcome)
}

function holdersOf(rig: VolumeRig, { digest }: Pick<TestBlob, 'digest'>): string[] {
  return rig.index.linksOf(digest).map(({ repository }) => repository)
}

describe('what an image names that stays', () => {
  it.each<[string, PurgeRequest]>([
    ['repository', { repository: A }],
    ['tag', { image: `${A}:1` }],
    ['digest', { image: `${A}@${image.manifest.digest}` }],
    ['pattern', { image: 'library/a*:*' }],
  ])('keeps its last link when it is purged by %s', async (_, request) => {
    const rig = await sharedByB()
    const items = await purge(rig, request)
    expect(outcomesOf(items, image.manifest)).toEqual(['unlinked'])
    for (const blob of blobs) {
      expect(outcomesOf(items, blob)).toEqual(['kept'])
      expect(holdersOf(rig, blob)).toEqual([A])
    }
    expect(await rig.isStored(image.manifest, ...blobs)).toBe(true)
    expect(await rig.repositories.listTags(A)).toEqual([])
    // And goes with what named it.
    await purge(rig, { repository: B })
    expect(outcomesOf(await purge(rig, { repository: A }), image.config)).toEqual(['removed'])
    expect(rig.index.totals).toMatchObject({ blobs: 0, links: 0, tags: 0 })
  })

  it('goes when all that names it goes too, in whatever order', async () => {
    for (const isReversed of [false, true]) {
      const rig = await openVolume()
      const [first, second] = isReversed ? [B, A] : [A, B]
      await rig.keepImage(image, { repository: first, tag: '1' })
      await rig.keepManifest(image.manifest, { repository: second, tag: '1' })
      const items = await purge(rig, { repository: 'library/*' })
      expect(items.map(({ outcome }) => outcome)).toEqual(Array(4).fill('removed'))
      expect(rig.index.totals).toMatchObject({ blobs: 0, links: 0, tags: 0 })
    }
  })

  it('goes with the images of a tag that several repositories have, and no bytes stay behind', async () => {
    const rig = await openVolume()
    await rig.keepImage(image, { repository: A, tag: '1' })
    await rig.keepImage(image, { repository: B, tag: '1' })
    await rig.keepManifest(image.manifest, { repository: C, tag: '1' })
    const before = rig.inventory.usedBytes
    const items = await purge(rig, { image: 'library/*:1' })
    expect(outcomesOf(items, image.manifest)).toEqual(['unlinked', 'unlinked', 'removed'])
    expect(outcomesOf(items, image.config)).toEqual(['unlinked', 'removed'])
    expect(rig.index.totals).toMatchObject({ blobs: 0, links: 0, tags: 0 })
    const freed = items.reduce((sum, { freedBytes }) => sum + freedBytes, 0)
    expect(freed).toBeGreaterThan(0)
    expect(freed).toBeLessThanOrEqual(before)
  })

  it.each<[string, PurgeRequest]>([
    ['repositories', { repository: 'library/a?' }],
    ['tags', { image: 'library/a?:1' }],
  ])('keeps one link of several that go with %s', async (_, request) => {
    const rig = await openVolume()
    const names = ['library/a1', 'library/a2', 'library/a3'] as RepositoryName[]
    for (const repository of names) await rig.keepImage(image, { repository, tag: '1' })
    await rig.keepManifest(image.manifest, { repository: B, tag: '1' })
    const items = await purge(rig, request)
    for (const blob of blobs) {
      expect(outcomesOf(items, blob).toSorted()).toEqual(['kept', 'unlinked', 'unlinked'])
      expect(holdersOf(rig, blob)).toHaveLength(1)
    }
  })

  it('is counted by how many name it: one that stays is enough', async () => {
    const rig = await openVolume()
    const other = sharing(image)
    await rig.keepImage(image, { repository: A, tag: '1' })
    await rig.keepManifest(other.manifest, { repository: B, tag: '1' })
    const items = await purge(rig, { repository: A })
    const [shared] = image.layers
    if (!shared) throw new Error('it has layers')
    expect(outcomesOf(items, shared)).toEqual(['kept'])
    expect(outcomesOf(items, image.config)).toEqual(['removed'])
    expect(holdersOf(rig, shared)).toEqual([A])
  })

  it('stays with an index that stays, down to the layers, without a tag', async () => {
    const rig = await openVolume()
    const index = buildIndex([image])
    await rig.keepImage(image, { repository: A, tag: 'amd64' })
    await rig.keepManifest(index.manifest, { repository: B, tag: 'all' })
    const items = await purge(rig, { repository: A })
    expect(outcomesOf(items, image.manifest)).toEqual(['kept', 'untagged'])
    expect(items.filter(({ outcome }) => outcome === 'kept')).toHaveLength(4)
    expect(await rig.isStored(index.manifest, image.manifest, ...blobs)).toBe(true)
    expect(await rig.repositories.listTags(A)).toEqual([])
    expect(rig.index.totals.tags).toBe(1)
  })

  it('goes when it is named by its digest', async () => {
    const rig = await sharedByB()
    const items = await purge(rig, { image: `${A}@${image.config.digest}` })
    expect(outcomesOf(items, image.config)).toEqual(['removed'])
  })

  it('stays however long ago its own repository was used', async () => {
    const rig = await sharedByB()
    await rig.inventory.flush()
    rig.clock.jump(HOUR_MS)
    rig.use(image.manifest, 'manifest', B)
    const items = await purge(rig, { unusedForMs: HOUR_MS / 2 })
    expect(items.filter(({ outcome }) => outcome === 'kept')).toHaveLength(3)
    expect(await rig.isStored(...blobs)).toBe(true)
    rig.clock.jump(HOUR_MS)
    await purge(rig, { unusedForMs: HOUR_MS / 2 })
    expect(rig.index.totals.blobs).toBe(0)
  })

  it('stays with what is being read', async () => {
    const rig = await openVolume()
    await rig.keepImage(image, { repository: A, tag: '1' })
    const file = await rig.blobs.open(image.manifest.digest)
    const items = await purge(rig, { repository: A })
    file?.close()
    expect(outcomesOf(items, image.manifest)).toEqual(['in-use'])
    expect(items.filter(({ outcome }) => outcome === 'kept')).toHaveLength(3)
    expect(await rig.isStored(...blobs)).toBe(true)
  })

  it('stays where a pin keeps the image, in another repository', async () => {
    const rig = await openVolume({
      rules: [{ match: 'library/b:1', isPinned: true, ttlMs: undefined }],
    })
    await rig.keepImage(image, { repository: A, tag: '1' })
    await rig.keepManifest(image.manifest, { repository: B, tag: '1' })
    const items = await purge(rig, { repository: '**' })
    expect(outcomesOf(items, image.config)).toEqual(['kept'])
    expect(await rig.isStored(...blobs)).toBe(true)
    await purge(rig, { repository: '**', isForced: true })
    expect(rig.index.totals.blobs).toBe(0)
  })

  it('is told of once the index has forgotten what is gone', async () => {
    const rig = await openVolume()
    const other = sharing(image)
    await rig.keepImage(image, { repository: A, tag: '1' })
    await rig.keepImage(other, { repository: A, tag: '2' })
    const third = sharing(image, 'third')
    await rig.keepManifest(third.manifest, { repository: B, tag: '1' })
    const signature = buildArtifact(image.manifest)
    await rig.keepImage(signature, { repository: A })
    await rig.inventory.flush()
    const purging = rig.purging({ repository: A }, { isDryRun: false })
    const kept: string[] = []
    for await (const { digest, outcome } of purging) {
      if (outcome === 'kept' && digest) kept.push(digest)
      // As the janitor does while it runs.
      await rig.inventory.flush()
    }
    expect(kept).toEqual([image.layers[0]?.digest])
  })
})

/** Another image with the same first layer. */
function sharing({ layers }: TestImage, seed = 'other'): TestImage {
  const own = buildImage({ seed, layers: [2_000] })
  const all = [...layers.slice(0, 1), ...own.layers]
  const manifest = manifestFrom(own.manifest.mediaType, {
    config: descriptorOf('application/vnd.oci.image.config.v1+json', own.config),
    layers: all.map((layer) => descriptorOf('application/octet-stream', layer)),
  })
  return { ...own, layers: all, manifest }
}
