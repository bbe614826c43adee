import { existsSync } from 'node:fs'
import { mkdir, writeFile } from 'node:fs/promises'
import { dirname } from 'node:path'
import { describe, expect, it, vi } from 'vitest'
import { StorageError } from '../../../../src/storage/filesystem.ts'
import type { Link } from '../../../../src/storage/repository-index.ts'
import { blobOf, buildImage, buildIndex } from '../../../support/images.ts'
import {
  OTHER_REPOSITORY,
  REPOSITORY,
  openVolume,
  type VolumeRig,
} from '../../../support/volume-rig.ts'
import { waitFor } from '../../../support/wait-for.ts'

const TTL_MS = 1_000

const blob = blobOf(1000, 'kept or not')

/** Stores the blob, lets its ttl pass, and sweeps. */
async function expire(rig: VolumeRig): Promise<void> {
  await rig.keepBlob(blob)
  await rig.inventory.flush()
  await rig.clock.advance(TTL_MS)
  await rig.janitor.sweep()
}

const isStored = ({ paths }: VolumeRig): boolean => existsSync(paths.blobData(blob.digest))

describe('the janitor', () => {
  it('removes what nobody has used for the ttl', async () => {
    const rig = await openVolume({ ttlMs: TTL_MS })
    await expire(rig)
    expect(isStored(rig)).toBe(false)
    expect(rig.index.has(blob.digest)).toBe(false)
    expect(rig.index.totals).toEqual({
      blobs: 0,
      links: 0,
      tags: 0,
      directories: 0,
      allocatedBytes: 0,
    })
  })

  it('leaves the bytes, and their links, that another repository begins to use while the last link goes', async () => {
    const rig = await openVolume({
      ttlMs: TTL_MS,
      onUnlinked: ({ repository }, { inventory }) => {
        if (repository !== REPOSITORY) return
        inventory.addLink({ repository: OTHER_REPOSITORY, digest: blob.digest, kind: 'blob' })
      },
    })
    await expire(rig)
    expect(isStored(rig)).toBe(true)
    const holders = rig.index.linksOf(blob.digest).map(({ repository }) => repository)
    // The first one's is put back: what is in use goes with all of its links, or with none.
    expect(holders).toEqual([REPOSITORY, OTHER_REPOSITORY])
  })
})

describe('what a stop could not write down', () => {
  it('is looked for at the next start', async () => {
    const rig = await openVolume()
    await rig.keepBlob(blob)
    const refused = new StorageError('write', rig.paths.index, new Error('refused'))
    vi.spyOn(rig.index, 'write').mockRejectedValue(refused)
    await rig.close()
    await rig.open()
    expect(rig.index.wasComplete).toBe(false)
    expect(rig.index.has(blob.digest)).toBe(false)
    expect(rig.inventory.isAbsent(blob.digest)).toBe(false)
  })
})

/** A process that was killed between the bytes and their link. */
async function orphaned(options: Parameters<typeof openVolume>[0] = {}): Promise<VolumeRig> {
  const rig = await openVolume(options)
  await rig.blobs.put(blob.digest, blob.bytes)
  await killed(rig)
  return rig
}

async function killed(rig: VolumeRig): Promise<void> {
  await rig.crash()
  await rig.open()
}

/** What is noted is written down, as a round does it. */
async function noted(rig: VolumeRig): Promise<void> {
  rig.inventory.addStored(blob.digest, blob.bytes.length, { isManifest: false })
  await rig.inventory.flush()
}

describe('bytes without a link', () => {
  it('that a crash has left go a minute after the next start has found them', async () => {
    const rig = await orphaned()
    await rig.janitor.start()
    await waitFor('the volume to be looked through', async () => {
      await rig.clock.advance(0)
      return rig.inventory.isComplete
    })
    await rig.clock.advance(59_000)
    expect(isStored(rig)).toBe(true)
    await waitFor('the bytes to go', async () => {
      await rig.clock.advance(1_000)
      return !isStored(rig)
    })
    await rig.close()
    await rig.open()
    expect(rig.index.wasComplete).toBe(true)
  })

  it('go too if the next process was killed before they went', async () => {
    const rig = await orphaned()
    await rig.janitor.scanVolume()
    expect(rig.index.has(blob.digest)).toBe(true)
    await killed(rig)
    await rig.janitor.scanVolume()
    await rig.janitor.sweepOrphans()
    expect(isStored(rig)).toBe(false)
  })

  it('go too if they were written down before their link was made', async () => {
    const rig = await openVolume()
    await rig.blobs.put(blob.digest, blob.bytes)
    await noted(rig)
    await killed(rig)
    await rig.janitor.scanVolume()
    await rig.janitor.sweepOrphans()
    expect(isStored(rig)).toBe(false)
  })

  it('go if the process that had found them was stopped before they went', async () => {
    const rig = await orphaned()
    await rig.janitor.scanVolume()
    await rig.close()
    await rig.open()
    expect(rig.index.wasComplete).toBe(false)
    await rig.janitor.scanVolume()
    await rig.janitor.sweepOrphans()
    expect(isStored(rig)).toBe(false)
  })

  it('stay if their link is just being made, whether that is written down yet or not', async () => {
    const rig = await orphaned()
    rig.inventory.addStored(blob.digest, blob.bytes.length, { isManifest: false })
    await rig.janitor.scanVolume()
    await rig.janitor.sweepOrphans()
    expect(isStored(rig)).toBe(true)
    await rig.inventory.flush()
    await rig.janitor.scanVolume()
    rig.inventory.addLink({ repository: REPOSITORY, digest: blob.digest, kind: 'blob' })
    await rig.janitor.sweepOrphans()
    expect(isStored(rig)).toBe(true)
  })

  it('are none of an image that is used: the last link to what it names stays, and goes with it', async () => {
    const image = buildImage({ layers: [1000] })
    const [layer = image.config] = image.layers
    const rig = await openVolume({ ttlMs: TTL_MS })
    // Its own repository never asked for the layer.
    await rig.keepManifest(image.manifest)
    await rig.keepBlob(layer, OTHER_REPOSITORY)
    await rig.inventory.flush()
    await rig.clock.advance(TTL_MS)
    rig.use(image.manifest, 'manifest')
    await rig.janitor.sweep()
    expect(rig.index.linksOf(layer.digest)).toMatchObject([{ repository: OTHER_REPOSITORY }])
    await killed(rig)
    await rig.janitor.scanVolume()
    await rig.janitor.sweepOrphans()
    expect(await rig.isStored(layer)).toBe(true)
    await rig.clock.advance(TTL_MS + 1)
    await rig.janitor.sweep()
    expect(rig.index.totals).toMatchObject({ blobs: 0, links: 0 })
    expect(await rig.isStored(layer)).toBe(false)
  })

  it('stay if somebody links them meanwhile', async () => {
    const rig = await openVolume({ ttlMs: TTL_MS })
    await rig.blobs.put(blob.digest, blob.bytes)
    await rig.janitor.scanVolume()
    rig.inventory.addLink({ repository: REPOSITORY, digest: blob.digest, kind: 'blob' })
    await rig.janitor.sweepOrphans()
    expect(isStored(rig)).toBe(true)
  })

  it('stay for their ttl in a volume that is taken over', async () => {
    const rig = await openVolume({
      ttlMs: TTL_MS,
      fill: async ({ blobs }) => void (await blobs.put(blob.digest, blob.bytes)),
    })
    await rig.janitor.sweepOrphans()
    expect(isStored(rig)).toBe(true)
    // Nor is it a crash of ours that has left them.
    await killed(rig)
    await rig.janitor.scanVolume()
    await rig.janitor.sweepOrphans()
    expect(isStored(rig)).toBe(true)
    await rig.clock.advance(TTL_MS)
    await rig.janitor.sweep()
    expect(isStored(rig)).toBe(false)
  })
})

describe('a last use in the future', () => {
  it('counts as one now: a clock that was wrong keeps nothing for ever', async () => {
    const rig = await openVolume({ ttlMs: TTL_MS })
    await rig.keepBlob(blob)
    await rig.inventory.flush()
    const link: Link = { repository: REPOSITORY, digest: blob.digest, kind: 'blob' }
    const atMs = rig.clock.now() + 365 * 86_400_000
    await rig.index.write([{ change: 'use', link, atMs }])
    await rig.janitor.sweep()
    expect(isStored(rig)).toBe(true)
    await rig.clock.advance(TTL_MS)
    await rig.janitor.sweep()
    expect(isStored(rig)).toBe(false)
  })
})

const rule = (match: string, ttlMs: number | undefined) => {
  return { match, isPinned: ttlMs === undefined, ttlMs }
}

describe('rules for what expires', () => {
  it('have a ttl for some repositories', async () => {
    const rig = await openVolume({ ttlMs: 10 * TTL_MS, rules: [rule('library/a', TTL_MS)] })
    const other = blobOf(1000, 'of the other')
    await rig.keepBlob(blob)
    await rig.keepBlob(other, OTHER_REPOSITORY)
    rig.clock.jump(TTL_MS)
    await rig.janitor.sweep()
    expect(isStored(rig)).toBe(false)
    expect(await rig.isStored(other)).toBe(true)
    rig.clock.jump(9 * TTL_MS)
    await rig.janitor.sweep()
    expect(await rig.isStored(other)).toBe(false)
  })

  it('let nothing expire of a repository that is pinned', async () => {
    const rig = await openVolume({ ttlMs: TTL_MS, rules: [rule('library/a', undefined)] })
    const other = blobOf(1000, 'of the other')
    await rig.keepBlob(blob)
    await rig.keepBlob(blob, OTHER_REPOSITORY)
    await rig.keepBlob(other, OTHER_REPOSITORY)
    rig.clock.jump(100 * TTL_MS)
    await rig.janitor.sweep()
    expect(isStored(rig)).toBe(true)
    expect(rig.index.linksOf(blob.digest).map(({ repository }) => repository)).toEqual([REPOSITORY])
    expect(await rig.isStored(other)).toBe(false)
  })

  it('let nothing expire of an image that a pinned tag points to, wherever its parts were asked for', async () => {
    const rig = await openVolume({ ttlMs: TTL_MS, rules: [rule('library/a:3', undefined)] })
    const image = buildImage({ layers: [1000] })
    const index = buildIndex([image])
    const old = buildImage({ seed: 'old' })
    await rig.keepImage(old, { tag: '3' })
    await rig.keepManifest(index.manifest, { tag: '3' })
    await rig.keepManifest(image.manifest)
    for (const part of [image.config, ...image.layers]) await rig.keepBlob(part, OTHER_REPOSITORY)
    for (let sweep = 0; sweep < 3; sweep++) {
      rig.clock.jump(TTL_MS)
      await rig.janitor.sweep()
    }
    const parts = [index.manifest, image.manifest, image.config, ...image.layers]
    expect(await rig.isStored(...parts)).toBe(true)
    expect(await rig.isStored(old.manifest)).toBe(false)
    // An asking for the manifest as a blob changes nothing.
    rig.use(index.manifest, 'blob')
    rig.clock.jump(2 * TTL_MS)
    await rig.janitor.sweep()
    expect(await rig.isStored(...parts)).toBe(true)
  })
})

describe('a round of the janitor', () => {
  it('keeps the disk within its bounds, and shows how full it is', async () => {
    const disk = { totalBytes: 2 ** 40, freeBytes: 2 ** 40 }
    const rig = await openVolume({ maxSizeBytes: 10_000_000, disk: () => disk })
    const images = [1, 2, 3].map((seed) => buildImage({ seed, layers: [3_000_000] }))
    for (const image of images) {
      expect(await rig.keepImage(image)).toBe(true)
      rig.clock.jump(1_000)
    }
    // Another program has taken nearly all that is left: a margin is to stay free, and a little more.
    disk.freeBytes = 16 * 1024 ** 2
    // More than a twentieth of the room.
    const wrong = rig.paths.quarantined(blob.digest)
    await mkdir(dirname(wrong), { recursive: true })
    await writeFile(wrong, Buffer.alloc(600_000))
    await rig.janitor.start()
    const show = (): Promise<string> => rig.metrics.registry.metrics()
    await waitFor('room to be made', async () => {
      await rig.clock.advance(5_000)
      return (await show()).includes('layover_stored_blobs 6')
    })
    const isKept = await Promise.all(images.map(({ manifest }) => rig.isStored(manifest)))
    expect(isKept).toEqual([false, true, true])
    expect(existsSync(wrong)).toBe(false)
    expect(await show()).toContain(`layover_storage_limit_bytes ${rig.budget.limitBytes}`)
    expect(await show()).toContain(`layover_storage_used_bytes ${rig.budget.usedBytes}`)
    expect(rig.budget.usedBytes).toBeLessThanOrEqual(rig.budget.limitBytes * 0.98)
  })
})
