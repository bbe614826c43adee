import { existsSync } from 'node:fs'
import { readdir, rm } from 'node:fs/promises'
import { join } from 'node:path'
import { describe, expect, it, onTestFinished, vi } from 'vitest'
import { PurgeRun } from '../../../../src/cache/upkeep/purge-run.ts'
import { selectionOf } from '../../../../src/cache/upkeep/purge-selection.ts'
import { StoredNames } from '../../../../src/cache/upkeep/stored-names.ts'
import type { Tag } from '../../../../src/oci/reference.ts'
import { buildImage, type TestImage } from '../../../support/images.ts'
import {
  OTHER_REPOSITORY,
  REPOSITORY,
  openVolume,
  type VolumeRig,
} from '../../../support/volume-rig.ts'

const TTL_MS = 1_000
const TAGS = 10

const LATEST = 'latest' as Tag

const tagAt = (number: number): Tag => `v${number}` as Tag

/** One repository with some images, each with a tag, and all of them once `latest`. */
async function openTagged(): Promise<{ rig: VolumeRig; images: TestImage[] }> {
  const rig = await openVolume({ ttlMs: TTL_MS })
  const images = Array.from({ length: TAGS }, (_, at) => buildImage({ seed: `image ${at}` }))
  for (const [at, image] of images.entries()) {
    await rig.keepImage(image, { tag: tagAt(at) })
    await rig.repositories.setTag(REPOSITORY, LATEST, image.manifest.digest)
  }
  await rig.inventory.flush()
  return { rig, images }
}

async function sweep(rig: VolumeRig): Promise<void> {
  await rig.clock.advance(TTL_MS)
  await rig.janitor.sweep()
}

async function evict(rig: VolumeRig): Promise<void> {
  let bytes = 0
  for await (const blob of rig.index.blobs()) bytes += rig.inventory.freedBy(blob)
  await rig.evictor.makeRoom(bytes)
}

async function purge(rig: VolumeRig): Promise<void> {
  const names = new StoredNames({ name: 'registry.example', isDockerHub: false })
  const selection = selectionOf({ repository: REPOSITORY }, { names, nowMs: rig.clock.now() })
  for await (const item of new PurgeRun(rig, selection, { isDryRun: false }).items()) {
    expect(item.outcome).toBe('removed')
  }
  await rig.inventory.flush()
}

describe('many removals from one repository', () => {
  it.each([
    ['expire', sweep],
    ['are evicted', evict],
    ['are purged', purge],
  ])('that %s read its tags once, not once for each', async (_what, removeAll) => {
    const { rig } = await openTagged()
    const listTags = vi.spyOn(rig.repositories, 'listTags')
    const readTag = vi.spyOn(rig.repositories, 'readTag')
    await removeAll(rig)
    expect(rig.index.totals.blobs).toBe(0)
    expect(await readdir(rig.paths.repositories)).toEqual([])
    // A purge reads them for itself, and looks at the end whether one is left.
    expect(listTags.mock.calls.length).toBeLessThanOrEqual(2)
    // Once for all; again those that point to the manifest, or once did, when that goes.
    expect(readTag.mock.calls.length).toBeLessThanOrEqual(5 * (TAGS + 1))
  })

  it('leave a tag that has moved on meanwhile', async () => {
    const { images, rig } = await openTagged()
    const [one, two, three] = images.map(({ manifest }) => manifest.digest)
    if (!one || !two || !three) throw new Error('no images')
    const remover = rig.remover.batch()
    await remover.remove(one)
    await rig.repositories.setTag(REPOSITORY, tagAt(1), three)
    await remover.remove(two)
    expect(await rig.repositories.readTag(REPOSITORY, tagAt(1))).toBe(three)
    expect(await rig.repositories.readTag(REPOSITORY, tagAt(0))).toBeUndefined()
    // Of what is gone not even the history tells.
    for (const digest of [one, two]) {
      expect(existsSync(rig.paths.tagHistoryLink(REPOSITORY, LATEST, digest))).toBe(false)
    }
    expect(existsSync(rig.paths.tagHistoryLink(REPOSITORY, LATEST, three))).toBe(true)
  })

  it('find a tag that another registry has left without a history', async () => {
    const { images, rig } = await openTagged()
    const [one] = images.map(({ manifest }) => manifest.digest)
    if (!one) throw new Error('no image')
    await rm(join(rig.paths.tag(REPOSITORY, tagAt(0)), 'index'), { recursive: true })
    await rig.remover.remove(one)
    expect(await rig.repositories.listTags(REPOSITORY)).not.toContain(tagAt(0))
  })
})

describe('content that somebody begins to use while its links go', () => {
  it('stays as it was: with its links, and the tags that no one has set since', async () => {
    const image = buildImage()
    const { digest } = image.manifest
    const rig = await openVolume({
      onUnlinked: (_link, { blobs }) => onTestFinished(blobs.hold(digest)),
    })
    await rig.keepImage(image, { tag: LATEST })
    await rig.keepImage(image, { tag: tagAt(1), repository: OTHER_REPOSITORY })
    await rig.inventory.flush()
    const { totals } = rig.index

    expect(await rig.remover.remove(digest)).toBeUndefined()

    await rig.inventory.flush()
    expect(rig.index.totals).toEqual(totals)
    for (const [repository, tag] of [
      [REPOSITORY, LATEST],
      [OTHER_REPOSITORY, tagAt(1)],
    ] as const) {
      expect(await rig.repositories.has({ repository, digest, kind: 'manifest' })).toBe(true)
      expect(await rig.repositories.readTag(repository, tag)).toBe(digest)
      expect(rig.index.link(digest, repository)?.kind).toBe('manifest')
    }
  })
})

describe('content that somebody begins to hold while its links go', () => {
  it('stays with them, also when the index has been told of it by then', async () => {
    const image = buildImage()
    const { digest } = image.manifest
    const rig = await openVolume()
    await rig.keepImage(image)
    await rig.inventory.flush()
    const newcomer = { digest, repository: OTHER_REPOSITORY, kind: 'manifest' } as const
    const { repositories } = rig
    const unlink = repositories.unlink.bind(repositories)
    repositories.unlink = async (link) => {
      await unlink(link)
      await repositories.link(newcomer)
      await rig.index.write([{ change: 'use', link: newcomer, atMs: rig.clock.now() }])
    }

    expect(await rig.remover.remove(digest)).toBeUndefined()

    expect(await rig.blobs.stat(digest)).toBeDefined()
    expect(await repositories.has(newcomer)).toBe(true)
  })
})

describe('another volume in the place of ours', () => {
  it('loses nothing by what the index knows of ours', async () => {
    const { images, rig } = await openTagged()
    const digest = images[0]?.manifest.digest
    if (!digest) throw new Error('there is no image')
    await rig.index.noteChangedVolume({ isForeign: true })
    await sweep(rig)
    expect(await rig.remover.remove(digest)).toBeUndefined()
    expect(await rig.blobs.stat(digest)).toBeDefined()
    await rig.index.noteChangedVolume({ isForeign: false })
    await rig.janitor.sweep()
    expect(await rig.blobs.stat(digest)).toBeUndefined()
  })
})

describe('a removal without an index', () => {
  it('is none: who holds the bytes cannot be told', async () => {
    const { images, rig } = await openTagged()
    const digest = images[0]?.manifest.digest
    if (!digest) throw new Error('there is no image')
    await rig.index.close()
    expect(await rig.remover.remove(digest)).toBeUndefined()
    expect(await rig.blobs.stat(digest)).toBeDefined()
  })
})
