// What clients get while a purge runs, between one thing that it takes and the next: none of it is torn.

import { describe, expect, it } from 'vitest'
import type { Purging } from '../../../../src/cache/upkeep/purge.ts'
import type { PurgeItem } from '../../../../src/cache/upkeep/purge-run.ts'
import type { PurgeRequest } from '../../../../src/cache/upkeep/purge-selection.ts'
import type { RepositoryName, Tag } from '../../../../src/oci/reference.ts'
import { buildImage, type TestImage } from '../../../support/images.ts'
import { openVolume, type VolumeRig } from '../../../support/volume-rig.ts'

const [A, B, A2] = ['library/a', 'library/b', 'library/a2'] as RepositoryName[] as [
  RepositoryName,
  RepositoryName,
  RepositoryName,
]
const HOUR_MS = 3_600_000
const IMAGES = [1, 2].map((seed) => buildImage({ seed, layers: [9_000, 5_000] }))

/** A has both images, and its purge has come to the first thing. @returns the image that it has not touched */
async function begin(rig: VolumeRig, request: PurgeRequest): Promise<[Purging, TestImage]> {
  for (const [at, image] of IMAGES.entries()) {
    await rig.keepImage(image, { repository: A, tag: `${at + 1}` })
  }
  await rig.inventory.flush()
  rig.clock.jump(HOUR_MS)
  const purging = rig.purging(request, { isDryRun: false })
  const first = await purging.next()
  const touched = first.done ? undefined : first.value.digest
  const rest = IMAGES.filter((image) => partsOf(image).every(({ digest }) => digest !== touched))
  expect(rest).toHaveLength(1)
  return [purging, rest[0] as TestImage]
}

function partsOf({ config, layers, manifest }: TestImage) {
  return [manifest, config, ...layers]
}

async function rest(purging: Purging): Promise<PurgeItem[]> {
  const items: PurgeItem[] = []
  for await (const item of purging) items.push(item)
  return items
}

/** Bytes, links and the tag, on disk. */
async function isWhole(
  { blobs, repositories }: VolumeRig,
  image: TestImage,
  repository: RepositoryName,
  tag: string,
): Promise<boolean> {
  for (const { digest } of partsOf(image)) {
    const kind = digest === image.manifest.digest ? 'manifest' : 'blob'
    if (!(await blobs.stat(digest))) return false
    if (!(await repositories.has({ repository, digest, kind }))) return false
  }
  return (await repositories.readTag(repository, tag as Tag)) === image.manifest.digest
}

const WAYS: [string, PurgeRequest][] = [
  ['repository', { repository: A }],
  ['tags', { image: `${A}:*` }],
]

describe('while a purge runs', () => {
  it.each(WAYS)('by %s, what another repository gets stays whole', async (_, request) => {
    const rig = await openVolume()
    const [purging, image] = await begin(rig, request)
    await rig.keepImage(image, { repository: B, tag: 'b' })
    const items = await rest(purging)
    expect(await isWhole(rig, image, B, 'b')).toBe(true)
    for (const { digest } of partsOf(image)) {
      const outcomes = items.filter((item) => item.digest === digest).map((item) => item.outcome)
      expect(outcomes).toEqual(['unlinked'])
    }
  })

  it.each(WAYS)('by %s, a manifest that another gets keeps its layers', async (_, request) => {
    const rig = await openVolume()
    const [purging, image] = await begin(rig, request)
    // Its client has them already.
    await rig.keepManifest(image.manifest, { repository: B, tag: 'b' })
    const items = await rest(purging)
    expect(await rig.isStored(...partsOf(image))).toBe(true)
    expect(items.filter(({ outcome }) => outcome === 'kept')).toHaveLength(3)
  })

  it.each(['library/b', 'library/b:*'])('what %s pins by then stays', async (match) => {
    const rig = await openVolume({ rules: [{ match, isPinned: true, ttlMs: undefined }] })
    const other = buildImage({ seed: 'pinned already', layers: [100] })
    await rig.keepImage(other, { repository: B, tag: 'old' })
    const [purging, image] = await begin(rig, { repository: 'library/a*' })
    await rig.keepImage(image, { repository: B, tag: 'b' })
    await rest(purging)
    expect(await isWhole(rig, image, B, 'b')).toBe(true)
    expect(await isWhole(rig, other, B, 'old')).toBe(true)
  })

  it.each(WAYS)('by age and %s, what is used stays whole', async (_, request) => {
    const rig = await openVolume()
    const [purging, image] = await begin(rig, { ...request, unusedForMs: HOUR_MS / 2 })
    rig.use(image.manifest, 'manifest', A)
    for (const blob of [image.config, ...image.layers]) rig.use(blob, 'blob', A)
    const tag = `${IMAGES.indexOf(image) + 1}`
    await rest(purging)
    expect(await isWhole(rig, image, A, tag)).toBe(true)
    expect(rig.index.totals.blobs).toBe(4)
  })

  it.each([false, true])(
    'an image that several repositories lose stays with one that gets it (written down: %s)',
    async (isWritten) => {
      const rig = await openVolume()
      const [image] = IMAGES as [TestImage]
      for (const repository of [A, A2]) await rig.keepImage(image, { repository, tag: '1' })
      const purging = rig.purging({ image: 'library/a*:1' }, { isDryRun: false })
      for (const _ of partsOf(image)) {
        expect((await purging.next()).value).toMatchObject({ outcome: 'unlinked' })
      }
      await rig.keepImage(image, { repository: B, tag: 'b' })
      if (isWritten) await rig.inventory.flush()
      await rest(purging)
      expect(await isWhole(rig, image, B, 'b')).toBe(true)
      expect(rig.index.totals.blobs).toBe(4)
    },
  )

  it('what its own clients ask for does not keep it from going', async () => {
    const rig = await openVolume()
    const [purging, image] = await begin(rig, { repository: A })
    rig.use(image.manifest, 'manifest', A)
    const items = await rest(purging)
    expect(new Set(items.map(({ outcome }) => outcome))).toEqual(new Set(['removed']))
    await rig.inventory.flush()
    expect(rig.index.totals.blobs).toBe(0)
  })
})
