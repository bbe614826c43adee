// The limit to the disk, over real sockets: whatever many clients pull at once, what is on disk is never more.

import { join } from 'node:path'
import { describe, expect, it } from 'vitest'
import { diskUsage } from '../support/disk-usage.ts'
import { blobOf, buildImage, type TestImage } from '../support/images.ts'
import { startLayover, type Layover } from '../support/layover.ts'
import { plantBlob } from '../support/planted-volume.ts'
import { idle } from '../support/pulls.ts'
import { Random } from '../support/random.ts'
import { makeTempDirectory } from '../support/temp-directory.ts'
import { waitFor } from '../support/wait-for.ts'

const MIB = 1024 ** 2
const LIMIT_BYTES = 20 * MIB
const LIMITED = { storage: { maxsize: '20MiB' } }

const IMAGES = 16
const CLIENTS = 8
const PULLS = 60
/** Of one image: each takes 28 KiB where a directory takes a block. */
const TAGS = 40
/** Large, just larger than what is kept in memory, small. */
const LAYERS = [1_800_000, 600_000, 70_000, 900]

interface Pulled {
  readonly name: string
  readonly tag: string
  readonly image: TestImage
}

/** Some are wanted more often than others, and each under many tags. */
function makeTrace(random: Random): Pulled[] {
  const images = Array.from({ length: IMAGES }, (_, seed) => buildImage({ layers: LAYERS, seed }))
  return Array.from({ length: PULLS }, () => {
    const at = Math.floor(random.next() ** 2 * IMAGES)
    return {
      name: `library/app-${at}`,
      tag: `v${random.below(TAGS)}`,
      image: images[at] ?? buildImage(),
    }
  })
}

async function fetchRight(layover: Layover, path: string, bytes: Buffer): Promise<void> {
  const { body, status } = await layover.get(path)
  expect(status).toBe(200)
  expect(body.equals(bytes)).toBe(true)
}

describe('a cache with a limit', () => {
  it(
    'is within it at every moment while more is pulled than fits, and every byte is right',
    { timeout: 60_000 },
    async () => {
      const { layover, upstream } = await startLayover({ configuration: LIMITED })
      const trace = makeTrace(new Random(1))
      for (const { image, name, tag } of trace) upstream.addImage(name, tag, image)
      let mostBytes = 0
      const sample = (): void => {
        mostBytes = Math.max(mostBytes, diskUsage(layover.rootDirectory))
        expect(mostBytes).toBeLessThanOrEqual(LIMIT_BYTES)
      }
      const client = async (): Promise<void> => {
        for (let pulled = trace.shift(); pulled; pulled = trace.shift()) {
          const { image, name, tag } = pulled
          await fetchRight(layover, `/v2/${name}/manifests/${tag}`, image.manifest.bytes)
          sample()
          for (const { bytes, digest } of [image.config, ...image.layers]) {
            await fetchRight(layover, `/v2/${name}/blobs/${digest}`, bytes)
            sample()
          }
        }
      }
      await Promise.all(Array.from({ length: CLIENTS }, client))
      await idle(layover)
      sample()
      // It makes use of what it may have, too.
      expect(mostBytes).toBeGreaterThan(0.8 * LIMIT_BYTES)
      expect(await layover.metric('layover_evicted_blobs_total')).toBeGreaterThan(0)
    },
  )

  it('is within it when one image has more tags than there is room for', async () => {
    const { layover, upstream } = await startLayover({
      configuration: { storage: { maxsize: '2MiB' } },
    })
    const image = buildImage()
    for (let number = 0; number < 100; number++) {
      upstream.addImage('library/app', `v${number}`, image)
      await fetchRight(layover, `/v2/library/app/manifests/v${number}`, image.manifest.bytes)
      expect(diskUsage(layover.rootDirectory)).toBeLessThanOrEqual(2 * MIB)
    }
  })

  it('says stored of what it keeps, and only of that', async () => {
    const { layover, upstream } = await startLayover({
      configuration: { storage: { maxsize: '1MiB' } },
    })
    const [small, large] = [buildImage({ seed: 's' }), buildImage({ layers: [2 * MIB], seed: 'l' })]
    upstream.addImage('library/small', 'latest', small)
    upstream.addImage('library/large', 'latest', large)
    const isToldStored = async (path: string, method = 'GET'): Promise<boolean> => {
      const response = await layover.get(path, { method })
      expect(response.header('X-Cache')).toBe('MISS')
      return response.header('Cache-Status')?.endsWith('; stored') === true
    }
    expect(await isToldStored('/v2/library/small/manifests/latest')).toBe(true)
    const [layer] = small.layers
    const path = `/v2/library/small/blobs/${layer?.digest}`
    expect(await isToldStored(path, 'HEAD')).toBe(false)
    expect(await isToldStored(path)).toBe(true)
    const [tooLarge] = large.layers
    expect(await isToldStored(`/v2/library/large/blobs/${tooLarge?.digest}`)).toBe(false)
    await idle(layover)
  })

  it('brings a volume that it takes over within it', async () => {
    const rootDirectory = await makeTempDirectory()
    const blobs = Array.from({ length: 40 }, (_, seed) => blobOf(MIB, seed))
    for (const blob of blobs) await plantBlob(rootDirectory, 'library/app', blob)
    expect(diskUsage(rootDirectory)).toBeGreaterThan(2 * LIMIT_BYTES)
    const { layover, upstream } = await startLayover({ rootDirectory, configuration: LIMITED })
    const blobFiles = (): Promise<string[]> =>
      layover.files(join('docker', 'registry', 'v2', 'blobs', 'sha256'))
    await waitFor('the volume to be within the limit', async () => {
      // What has gone is counted when all that has to go has.
      const gone = await layover.metric('layover_evicted_blobs_total')
      const isOver = gone + (await blobFiles()).length === blobs.length
      return isOver && diskUsage(rootDirectory) <= LIMIT_BYTES
    })
    // No more than that: what is left is served from the disk.
    expect(diskUsage(rootDirectory)).toBeGreaterThan(0.8 * LIMIT_BYTES)
    const files = new Set(await blobFiles())
    const left = blobs.filter(({ digest }) => {
      const hex = digest.slice('sha256:'.length)
      return files.has(join(hex.slice(0, 2), hex, 'data'))
    })
    expect(left.length).toBeGreaterThan(10)
    for (const { bytes, digest } of left) {
      await fetchRight(layover, `/v2/library/app/blobs/${digest}`, bytes)
    }
    expect(upstream.requests).toHaveLength(0)
  })
})
