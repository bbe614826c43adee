import { readdir, writeFile } from 'node:fs/promises'
import { describe, expect, it } from 'vitest'
import { diskUsage } from '../../../support/disk-usage.ts'
import { blobOf, buildImage, type TestBlob } from '../../../support/images.ts'
import { openVolume, type VolumeRig } from '../../../support/volume-rig.ts'

const blob = blobOf(300_000, 'damaged')

async function damage({ paths }: VolumeRig, { bytes, digest }: TestBlob): Promise<void> {
  await writeFile(paths.blobData(digest), Buffer.alloc(bytes.length))
}

async function find(rig: VolumeRig, { digest }: TestBlob): Promise<void> {
  const info = await rig.blobs.stat(digest)
  if (!info) throw new Error('nothing is stored')
  expect(await rig.blobs.verify(digest, info)).toBe(false)
}

/** Everything that the volume has is counted, but for links that lead to nothing now. */
async function checkCount(rig: VolumeRig): Promise<void> {
  const { paths } = rig
  const linkBytes = diskUsage(paths.repositories)
  expect(rig.budget.usedBytes).toBeGreaterThanOrEqual(diskUsage(paths.root) - linkBytes)
  await rig.inventory.flush()
  expect(rig.budget.usedBytes).toBeGreaterThanOrEqual(diskUsage(paths.root) - linkBytes)
}

describe('stored bytes that do not match their name', () => {
  it('count where they are set aside, from that moment on', async () => {
    const rig = await openVolume()
    await rig.keepBlob(blob)
    // Whatever is made once.
    await rig.keepBlob(blobOf(10, 'other'))
    await damage(rig, blobOf(10, 'other'))
    await find(rig, blobOf(10, 'other'))
    await rig.inventory.flush()
    await rig.budget.measure()
    await damage(rig, blob)
    await find(rig, blob)
    await checkCount(rig)
    expect(rig.index.has(blob.digest)).toBe(false)
    await rig.budget.measure()
    await checkCount(rig)
  })

  it('are told of whoever finds out', async () => {
    const rig = await openVolume()
    const { manifest } = buildImage()
    await rig.keepManifest(manifest)
    await damage(rig, manifest)
    expect(await rig.blobs.readWhole(manifest.digest, 10_000)).toBeUndefined()
    expect(await readdir(rig.paths.quarantine)).toHaveLength(1)
    expect(rig.messages.filter((message) => message.includes('is damaged'))).toHaveLength(1)
    await rig.inventory.flush()
    expect(rig.inventory.isAbsent(manifest.digest)).toBe(true)
  })

  it('leave what takes their place meanwhile, and that is counted', async () => {
    const rig = await openVolume()
    await rig.keepBlob(blob)
    await damage(rig, blob)
    const info = await rig.blobs.stat(blob.digest)
    if (!info) throw new Error('nothing is stored')
    await Promise.all([rig.blobs.quarantine(blob.digest, info), rig.keepBlob(blob)])
    expect(await rig.blobs.readWhole(blob.digest, blob.bytes.length)).toEqual(blob.bytes)
    await rig.inventory.flush()
    expect(rig.index.has(blob.digest)).toBe(true)
    await rig.keepBlob(blob)
    await Promise.all([rig.keepBlob(blob), rig.blobs.quarantine(blob.digest, info)])
    await rig.inventory.flush()
    expect(rig.index.has(blob.digest)).toBe(true)
    expect(await rig.isStored(blob)).toBe(true)
  })
})
