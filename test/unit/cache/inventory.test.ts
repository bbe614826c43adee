import { describe, expect, it } from 'vitest'
import { digestOf } from '../../../src/oci/digest.ts'
import type { RepositoryName } from '../../../src/oci/reference.ts'
import { StorageError } from '../../../src/storage/filesystem.ts'
import { diskUsage } from '../../support/disk-usage.ts'
import { blobOf } from '../../support/images.ts'
import { nextTurn } from '../../support/wait-for.ts'
import {
  OTHER_REPOSITORY,
  REPOSITORY,
  openVolume,
  type VolumeRig,
} from '../../support/volume-rig.ts'

const blob = blobOf(1000, 'in the inventory')
const LINK = { digest: blob.digest, repository: REPOSITORY, kind: 'blob' } as const

/** The next writing fails. */
function refuseOnce({ index }: VolumeRig): void {
  const write = index.write.bind(index)
  index.write = async () => {
    index.write = write
    throw new StorageError('write', 'the index', new Error('the disk is full'))
  }
}

describe('the inventory', () => {
  it('notes the last use of each link, and writes it down when told to', async () => {
    const rig = await openVolume()
    await rig.keepBlob(blob)
    await rig.keepBlob(blob, OTHER_REPOSITORY)
    await rig.inventory.flush()
    const keptMs = rig.clock.now()
    await rig.clock.advance(1000)
    rig.inventory.touch(LINK)
    await rig.clock.advance(1000)
    rig.inventory.touch(LINK)
    const uses = (): number[] => {
      return rig.index.linksOf(blob.digest).map(({ lastUsedMs }) => lastUsedMs)
    }
    expect(uses()).toEqual([keptMs, keptMs])
    await rig.inventory.flush()
    expect(uses()).toEqual([keptMs + 2000, keptMs])
  })

  it('knows whether something is noted that was not written yet', async () => {
    const rig = await openVolume()
    await rig.keepBlob(blob)
    expect(rig.inventory.hasNoteOf(blob.digest)).toBe(true)
    await rig.inventory.flush()
    expect(rig.inventory.hasNoteOf(blob.digest)).toBe(false)
    rig.inventory.touch(LINK)
    expect(rig.inventory.hasNoteOf(blob.digest)).toBe(true)
    await rig.inventory.flush()
    expect(rig.inventory.hasNoteOf(blob.digest)).toBe(false)
  })

  it('keeps what it could not write down for the next time', async () => {
    const rig = await openVolume()
    await rig.keepBlob(blob)
    refuseOnce(rig)
    await expect(rig.inventory.flush()).rejects.toThrow('the disk is full')
    expect(rig.index.linksOf(blob.digest)).toHaveLength(0)
    await rig.inventory.flush()
    expect(rig.index.linksOf(blob.digest)).toHaveLength(1)
  })

  it('keeps the order of what happened around a writing that failed', async () => {
    const rig = await openVolume()
    await rig.keepBlob(blob)
    const other = blobOf(10, 'removed')
    await rig.keepBlob(other)
    refuseOnce(rig)
    const failed = expect(rig.inventory.flush()).rejects.toThrow('the disk is full')
    rig.inventory.addRemoved(other.digest)
    rig.inventory.forgetUse({ ...LINK, digest: other.digest })
    rig.inventory.addUnlinked({ ...LINK, digest: other.digest })
    await rig.keepBlob(blob, OTHER_REPOSITORY)
    await failed
    expect(rig.inventory.hasNoteOf(blob.digest)).toBe(true)
    await rig.inventory.flush()
    expect(rig.index.linksOf(blob.digest)).toHaveLength(2)
    expect(rig.index.has(other.digest)).toBe(false)
    expect(rig.index.totals).toMatchObject({ blobs: 1, links: 2 })
  })

  it('writes for each who asks for it, also after the writing of another has failed', async () => {
    const rig = await openVolume()
    await rig.keepBlob(blob)
    refuseOnce(rig)
    const [first, second] = await Promise.allSettled([rig.inventory.flush(), rig.inventory.flush()])
    expect([first.status, second.status]).toEqual(['rejected', 'fulfilled'])
    expect(rig.index.has(blob.digest)).toBe(true)
  })

  it('has what came again after it was gone', async () => {
    const rig = await openVolume()
    await rig.keepBlob(blob)
    await rig.inventory.flush()
    // A block, its directory, and a link with its own.
    expect(await rig.remover.remove(blob.digest)).toBe(4 * 4096)
    await rig.keepBlob(blob)
    await rig.inventory.flush()
    expect(rig.index.totals).toMatchObject({ blobs: 1, links: 1 })
    rig.inventory.addRemoved(blob.digest)
    await rig.inventory.flush()
    expect(rig.index.totals).toMatchObject({ blobs: 0, links: 0 })
  })

  it('counts each byte once, noted or written or in between, and never too few', async () => {
    const rig = await openVolume()
    const seen = new Set<number>()
    const write = rig.index.write.bind(rig.index)
    // Large enough for several chunks, between which others look at the sum.
    const blobs = Array.from({ length: 150 }, (_, seed) => blobOf(5000, seed))
    for (const each of blobs) await rig.keepBlob(each)
    const before = rig.inventory.usedBytes
    rig.index.write = async (changes) => {
      const writing = { isOver: false, promise: write(changes) }
      void writing.promise.finally(() => (writing.isOver = true))
      while (!writing.isOver) {
        seen.add(rig.inventory.usedBytes)
        await nextTurn()
      }
      await writing.promise
    }
    await rig.inventory.flush()
    expect([...seen]).toEqual([before])
    expect(rig.inventory.usedBytes).toBeLessThanOrEqual(before)
    const actual = diskUsage(rig.paths.blobs)
    expect(rig.inventory.usedBytes).toBeGreaterThanOrEqual(actual)
    expect(rig.index.totals.allocatedBytes).toBe(150 * 8192)
  })

  it('says surely absent only when all is known, and nothing is noted', async () => {
    const rig = await openVolume({ isScanned: false })
    expect(rig.inventory.isAbsent(blob.digest)).toBe(false)
    await rig.janitor.scanVolume()
    expect(rig.inventory.isAbsent(blob.digest)).toBe(true)
    await rig.keepBlob(blob)
    expect(rig.inventory.isAbsent(blob.digest)).toBe(false)
    const flushed = rig.inventory.flush()
    expect(rig.inventory.isAbsent(blob.digest)).toBe(false)
    await flushed
    expect(rig.inventory.isAbsent(blob.digest)).toBe(false)
    await rig.index.close()
    expect(rig.inventory.isAbsent(blob.digest)).toBe(false)
  })

  it('forgets uses rather than to grow without bound', async () => {
    const rig = await openVolume()
    rig.index.write = async () => {
      throw new StorageError('write', 'the index', new Error('the disk is full'))
    }
    let urgent = 0
    rig.inventory.onUrgent = () => urgent++
    const links = Array.from({ length: 100_001 }, (_, number) => {
      const repository = `library/${number}` as RepositoryName
      return { ...LINK, digest: digestOf(Buffer.from(String(number))), repository }
    })
    for (const link of links) rig.inventory.touch(link)
    expect(urgent).toBeGreaterThan(0)
    expect(rig.inventory.hasNoteOf(links[99_999]?.digest ?? blob.digest)).toBe(true)
    expect(rig.inventory.hasNoteOf(links[100_000]?.digest ?? blob.digest)).toBe(false)
  })

  it('says of what is new what operators of registry:2 look for', async () => {
    const rig = await openVolume({ ttlMs: 168 * 3_600_000 })
    rig.inventory.addLink(LINK)
    expect(rig.messages).toContain(
      `Adding new scheduler entry for ${REPOSITORY}@${blob.digest} with ttl=168h0m0s`,
    )
  })

  it('says nothing of a ttl where there is none', async () => {
    const rig = await openVolume()
    rig.inventory.addLink(LINK)
    expect(rig.messages.join()).not.toContain('scheduler entry')
  })
})
