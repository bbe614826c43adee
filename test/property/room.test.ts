// Any sequence of pulls, uses, downloads, readers, sweeps, evictions, stops and crashes, over a real volume with a
// small limit, against a small model of it. After each step: the disk is within the limit, what is counted is what
// is there, what is pinned or being read is there, no image is torn, and the oldest went first.

import { readdir } from 'node:fs/promises'
import * as fc from 'fast-check'
import { describe, expect, it } from 'vitest'
import type { Reservation } from '../../src/cache/disk-budget.ts'
import type { Digest } from '../../src/oci/digest.ts'
import type { RepositoryName, Tag } from '../../src/oci/reference.ts'
import { diskUsage } from '../support/disk-usage.ts'
import {
  blobOf,
  buildArtifact,
  buildImage,
  buildIndex,
  descriptorOf,
  manifestFrom,
  type TestBlob,
  type TestImage,
  type TestManifest,
} from '../support/images.ts'
import { OTHER_REPOSITORY, REPOSITORY, openVolume, type VolumeRig } from '../support/volume-rig.ts'
import { SENDER } from '../support/spool-rig.ts'

const KIB = 1024
const MAX_SIZE_BYTES = 2_500 * KIB
const TTL_MS = 3_600_000
const RUNS = 15
const STEPS_MAX = 30
/** Ten times what it takes: then something hangs. */
const TIME_MAX_MS = 60_000
/** What `blobs/`, `blobs/sha256/` and `repositories/` take by themselves. */
const EMPTY_BYTES = 12 * KIB
/** More than fit, with all that is there. */
const TAGS = 40
const PINNED_TAG = 'pinned'

/** What is pulled, used and removed as one. */
interface Family {
  readonly manifests: readonly TestManifest[]
  readonly images: readonly TestImage[]
}

function sharing(image: TestImage, seed: string): TestImage {
  const own = buildImage({ seed, layers: [60 * KIB] })
  const layers = [...image.layers.slice(0, 1), ...own.layers]
  const manifest = manifestFrom(own.manifest.mediaType, {
    config: descriptorOf('application/vnd.oci.image.config.v1+json', own.config),
    layers: layers.map((layer) => descriptorOf('application/octet-stream', layer)),
  })
  return { ...own, layers, manifest }
}

function families(): Family[] {
  const [amd64, arm64] = ['amd64', 'arm64'].map((seed) =>
    buildImage({ seed, layers: [80 * KIB, 3 * KIB] }),
  )
  const base = buildImage({ seed: 'base', layers: [250 * KIB, 20 * KIB] })
  const large = buildImage({ seed: 'large', layers: [700 * KIB, 300 * KIB] })
  if (!amd64 || !arm64) throw new Error('no images')
  const index = buildIndex([amd64, arm64])
  const sbom = buildArtifact(index.manifest)
  const singles = [base, sharing(base, 'one'), sharing(base, 'two'), large, buildImage()]
  return [
    {
      manifests: [index.manifest, amd64.manifest, arm64.manifest, sbom.manifest],
      images: [amd64, arm64, sbom],
    },
    ...singles.map((image) => ({ manifests: [image.manifest], images: [image] })),
  ]
}

const FAMILIES = families()
const LONE_BLOBS = [1, 2, 3].map((seed) => blobOf(seed * 90 * KIB, `lone ${seed}`))

const tagAt = (number: number): Tag => `t${number}` as Tag

const partsOf = ({ config, layers }: TestImage): TestBlob[] => [config, ...layers]

const family = fc.integer({ min: 0, max: FAMILIES.length - 1 })
const repository = fc.constantFrom(REPOSITORY, OTHER_REPOSITORY)
const amount = fc.integer({ min: 1, max: 900 * KIB })

const step = fc.oneof(
  {
    weight: 6,
    arbitrary: fc.record({
      do: fc.constant('pull' as const),
      family,
      repository,
      tag: fc.constantFrom('latest', 'v1', PINNED_TAG),
    }),
  },
  { weight: 3, arbitrary: fc.record({ do: fc.constant('use' as const), family, repository }) },
  {
    weight: 3,
    arbitrary: fc.record({
      do: fc.constant('tag' as const),
      family,
      repository,
      tags: fc.array(fc.nat(TAGS - 1), { minLength: 1, maxLength: 20 }),
    }),
  },
  {
    weight: 1,
    arbitrary: fc.record({ do: fc.constant('untag' as const), repository, tag: fc.nat(TAGS - 1) }),
  },
  { weight: 1, arbitrary: fc.record({ do: fc.constant('unlink' as const), family, repository }) },
  { weight: 3, arbitrary: fc.record({ do: fc.constant('borrow' as const), family, repository }) },
  {
    weight: 2,
    arbitrary: fc.record({
      do: fc.constant('purge' as const),
      repository,
      tag: fc.constantFrom(undefined, 'latest', PINNED_TAG),
      unusedForMs: fc.constantFrom(undefined, 3),
    }),
  },
  { weight: 2, arbitrary: fc.record({ do: fc.constant('pull blob' as const), blob: fc.nat(2) }) },
  { weight: 2, arbitrary: fc.record({ do: fc.constant('read' as const), family }) },
  { weight: 2, arbitrary: fc.record({ do: fc.constant('leave' as const) }) },
  { weight: 2, arbitrary: fc.record({ do: fc.constant('reserve' as const), bytes: amount }) },
  { weight: 1, arbitrary: fc.record({ do: fc.constant('release' as const) }) },
  { weight: 2, arbitrary: fc.record({ do: fc.constant('break' as const), bytes: amount }) },
  { weight: 2, arbitrary: fc.record({ do: fc.constant('make room' as const), bytes: amount }) },
  { weight: 1, arbitrary: fc.record({ do: fc.constant('trim' as const) }) },
  { weight: 2, arbitrary: fc.record({ do: fc.constant('sweep' as const), ms: fc.nat(TTL_MS) }) },
  { weight: 1, arbitrary: fc.record({ do: fc.constant('flush' as const) }) },
  { weight: 1, arbitrary: fc.record({ do: fc.constant('crash' as const) }) },
  { weight: 1, arbitrary: fc.record({ do: fc.constant('restart' as const) }) },
)
type Step = typeof step extends fc.Arbitrary<infer Each> ? Each : never

interface Reader {
  readonly digest: Digest
  close(): void
}

class Model {
  readonly #rig: VolumeRig
  /** Families of which everything was kept, and when they were used last. */
  readonly #usedMs = new Map<Family, number>()
  /** What the pinned tags point to. */
  readonly #pinned = new Map<RepositoryName, Family>()
  #readers: Reader[] = []
  #rooms: Reservation[] = []
  #broken = 0

  constructor(rig: VolumeRig) {
    this.#rig = rig
  }

  async apply(taken: Step): Promise<void> {
    const rig = this.#rig
    // Nothing happens at the same time as something else.
    rig.clock.jump(1)
    switch (taken.do) {
      case 'pull':
        return this.#pull(FAMILIES[taken.family], taken.repository, taken.tag)
      case 'use':
        return this.#use(FAMILIES[taken.family], taken.repository)
      case 'borrow':
        return this.#borrow(FAMILIES[taken.family], taken.repository)
      case 'purge':
        return this.#purge(taken)
      case 'tag':
        return this.#tag(FAMILIES[taken.family], taken.repository, taken.tags)
      case 'untag':
        return this.#untag(taken.repository, tagAt(taken.tag))
      case 'unlink':
        return this.#unlink(FAMILIES[taken.family], taken.repository)
      case 'pull blob':
        return void (await rig.keepBlob(LONE_BLOBS[taken.blob] ?? blobOf(1, 'none')))
      case 'read':
        return this.#read(FAMILIES[taken.family])
      case 'leave':
        return this.#readers.shift()?.close()
      case 'reserve':
        return this.#reserve(taken.bytes)
      case 'release':
        return this.#rooms.shift()?.release()
      case 'break':
        return this.#break(taken.bytes)
      case 'make room':
        return this.#makeRoom(() => rig.evictor.makeRoom(taken.bytes))
      case 'trim':
        return this.#makeRoom(() => rig.budget.trim())
      case 'sweep':
        rig.clock.jump(taken.ms)
        return rig.janitor.sweep()
      case 'flush':
        return rig.inventory.flush()
      case 'crash':
        return this.#startAgain(() => rig.crash())
      case 'restart':
        return this.#startAgain(() => rig.close())
    }
  }

  async check(): Promise<void> {
    await this.#checkLimit()
    await this.#checkPromises()
    await this.#rig.inventory.flush()
    await this.#checkLimit()
    await this.#checkIndex()
  }

  end(): void {
    for (const reader of this.#readers) reader.close()
    for (const room of this.#rooms) room.release()
    expect(this.#rig.budget.reservedBytes).toBe(0)
  }

  async #pull(pulled: Family | undefined, repository: RepositoryName, tag: string): Promise<void> {
    if (!pulled) return
    const [root, ...children] = pulled.manifests
    if (!root) return
    let isKept = await this.#rig.keepManifest(root, { repository, tag })
    if (tag === PINNED_TAG && isKept) this.#pinned.set(repository, pulled)
    for (const child of children) {
      isKept = (await this.#rig.keepManifest(child, { repository })) && isKept
    }
    for (const blob of pulled.images.flatMap(partsOf)) {
      isKept = (await this.#rig.keepBlob(blob, repository)) && isKept
    }
    // What came first may have gone for what came last.
    if (isKept && (await this.#isWhole(pulled))) this.#usedMs.set(pulled, this.#rig.clock.now())
  }

  /** As clients do that have all of it already, from another repository, and ask for the manifest only. */
  async #borrow(borrowed: Family | undefined, repository: RepositoryName): Promise<void> {
    const [root] = borrowed?.manifests ?? []
    if (!borrowed || !root || !(await this.#isWhole(borrowed))) return
    await this.#rig.keepManifest(root, { repository })
  }

  async #purge(taken: Extract<Step, { do: 'purge' }>): Promise<void> {
    const { repository, tag, unusedForMs } = taken
    const image = tag === undefined ? repository : `${repository}:${tag}`
    // Named in full, what is pinned goes too.
    if (tag !== 'latest') this.#pinned.delete(repository)
    await this.#rig.purge({ image, unusedForMs })
  }

  /** As clients do that have all layers already. */
  async #use(used: Family | undefined, repository: RepositoryName): Promise<void> {
    const [root] = used?.manifests ?? []
    if (!used || !root || !this.#usedMs.has(used)) return
    const link = { repository, digest: root.digest, kind: 'manifest' } as const
    if (!(await this.#rig.repositories.has(link))) return
    this.#rig.use(root, 'manifest', repository)
    this.#usedMs.set(used, this.#rig.clock.now())
  }

  /** The same image under many names; some had another one before. */
  async #tag(
    tagged: Family | undefined,
    repository: RepositoryName,
    numbers: readonly number[],
  ): Promise<void> {
    const [root] = tagged?.manifests ?? []
    if (!root) return
    const link = { repository, digest: root.digest, kind: 'manifest' } as const
    for (const number of numbers) {
      if (!(await this.#rig.repositories.has(link))) return
      await this.#rig.setTag(tagAt(number), root.digest, repository)
      await this.#checkLimit()
    }
  }

  async #untag(repository: RepositoryName, tag: Tag): Promise<void> {
    const { remover, repositories } = this.#rig
    const digest = await repositories.readTag(repository, tag)
    if (digest) await remover.untag(repository, tag, digest)
  }

  async #unlink(unlinked: Family | undefined, repository: RepositoryName): Promise<void> {
    const [root] = unlinked?.manifests ?? []
    if (!unlinked || !root) return
    const link = { repository, digest: root.digest, kind: 'manifest' } as const
    if (!(await this.#rig.repositories.has(link))) return
    if (this.#pinned.get(repository) === unlinked) this.#pinned.delete(repository)
    await this.#rig.remover.unlink(link)
  }

  async #read(read: Family | undefined): Promise<void> {
    const layer = read?.images[0]?.layers[0]
    const file = layer && (await this.#rig.blobs.open(layer.digest))
    if (layer && file) this.#readers.push({ digest: layer.digest, close: () => file.close() })
  }

  async #reserve(bytes: number): Promise<void> {
    const room = await this.#rig.budget.reserve(bytes)
    if (room) this.#rooms.push(room)
  }

  /** A download that breaks off, and leaves a part. */
  async #break(sizeBytes: number): Promise<void> {
    const { budget, spools } = this.#rig
    const blob = blobOf(sizeBytes, `broken ${this.#broken++}`)
    const room = await budget.reserve(sizeBytes + 32 * KIB)
    if (!room) return
    const options = {
      sender: SENDER,
      sizeBytes: sizeBytes + 100 * KIB,
      resumedBytes: 0,
      isKept: true,
    }
    const spool = await spools.open(blob.digest, options)
    await spool.append(blob.bytes)
    spool.fail(new Error('the upstream went away'))
    await spool.release()
    await spools.giveBack(spool, { sender: SENDER })
    room.release()
  }

  /** The oldest families go first; those that are pinned or being read are passed over. */
  async #makeRoom(make: () => Promise<unknown>): Promise<void> {
    const before = await this.#whole()
    const mustStay = before.filter((each) => this.#isProtected(each, { byShared: false }))
    await make()
    const after = new Set(await this.#whole())
    const gone = before.filter((each) => !after.has(each))
    expect(gone.filter((each) => mustStay.includes(each))).toEqual([])
    const youngestGoneMs = Math.max(...gone.map((each) => this.#usedMs.get(each) ?? 0))
    for (const each of after) {
      if (this.#isProtected(each, { byShared: true })) continue
      expect(this.#usedMs.get(each) ?? 0).toBeGreaterThan(youngestGoneMs)
    }
  }

  async #startAgain(stop: () => Promise<void>): Promise<void> {
    this.end()
    this.#readers = []
    this.#rooms = []
    await stop()
    await this.#rig.open()
    if (!this.#rig.inventory.isComplete) await this.#rig.janitor.scanVolume()
    // What was not written down is forgotten.
    for (const each of await this.#whole()) {
      const digest = each.manifests[0]?.digest
      this.#usedMs.set(each, (digest && this.#rig.index.blob(digest)?.lastUsedMs) ?? 0)
    }
  }

  /** @param options.byShared also by who reads a layer that another image names: that one may stay without this */
  #isProtected(each: Family, { byShared }: { byShared: boolean }): boolean {
    const parts = new Set(each.images.flatMap(partsOf).map(({ digest }) => digest))
    const isRead = this.#readers.some(({ digest }) => {
      const isShared = (this.#rig.index.blob(digest)?.namedBy ?? 0) > 1
      return parts.has(digest) && (byShared || !isShared)
    })
    return isRead || [...this.#pinned.values()].includes(each)
  }

  async #whole(): Promise<Family[]> {
    const known = [...this.#usedMs.keys()]
    const areWhole = await Promise.all(known.map((each) => this.#isWhole(each)))
    return known.filter((_, index) => areWhole[index])
  }

  #isWhole({ images, manifests }: Family): Promise<boolean> {
    return this.#rig.isStored(...manifests, ...images.flatMap(partsOf))
  }

  /** What stands on disk, and what was promised, is no more than the limit; and no more than is counted. */
  async #checkLimit(): Promise<void> {
    const { budget, inventory, paths, spools } = this.#rig
    const { reservedBytes } = budget
    expect(diskUsage(paths.root) + reservedBytes).toBeLessThanOrEqual(MAX_SIZE_BYTES)
    const contentBytes = diskUsage(paths.blobs) + diskUsage(paths.repositories)
    expect(inventory.usedBytes + EMPTY_BYTES).toBeGreaterThanOrEqual(contentBytes)
    expect(diskUsage(paths.spool)).toBeLessThan(spools.partBytesTotal + 128 * KIB)
  }

  async #checkPromises(): Promise<void> {
    for (const { digest } of this.#readers) expect(await this.#rig.isStored({ digest })).toBe(true)
    for (const [each] of this.#usedMs) {
      const isWhole = await this.#isWhole(each)
      if (isWhole) continue
      expect([...this.#pinned.values()]).not.toContain(each)
      const [root] = each.manifests
      // Not torn: without its layers there is no manifest, either.
      if (root) expect(await this.#rig.isStored(root)).toBe(false)
      this.#usedMs.delete(each)
    }
  }

  /** The tables say what the tree says, and each the same as the others. */
  async #checkIndex(): Promise<void> {
    const { index, paths } = this.#rig
    const stored = new Map<Digest, number>()
    for await (const { allocatedBytes, digest } of index.blobs()) stored.set(digest, allocatedBytes)
    expect(stored.size).toBe((await filesIn(paths.blobs)).length)
    let links = 0
    for await (const { digest } of index.links()) {
      expect(stored.has(digest)).toBe(true)
      links++
    }
    const files = await filesIn(paths.repositories)
    const linkFiles = files.filter((file) => !file.includes('/tags/'))
    expect(links).toBe(linkFiles.length)
    const tags = files.filter((file) => /\/tags\/[^/]+\/index\//.test(file)).length
    const allocatedBytes = [...stored.values()].reduce((sum, bytes) => sum + bytes, 0)
    expect(index.totals).toMatchObject({ blobs: stored.size, links, tags, allocatedBytes })
    const order: Digest[] = []
    for await (const { digest } of index.oldestFirst()) order.push(digest)
    expect(order.toSorted()).toEqual([...stored.keys()].toSorted())
    for (const digest of stored.keys()) {
      const named = [...stored.keys()].filter((other) => index.namesOf(other).includes(digest))
      expect(index.blob(digest)?.namedBy).toBe(named.length)
    }
  }
}

async function filesIn(directory: string): Promise<string[]> {
  const entries = await readdir(directory, { recursive: true, withFileTypes: true }).catch(() => [])
  return entries
    .filter((entry) => entry.isFile())
    .map((entry) => `${entry.parentPath}/${entry.name}`)
}

describe('a small disk', () => {
  it('keeps its promises, whatever happens', { timeout: 2 * TIME_MAX_MS }, async () => {
    const steps = fc.array(step, { maxLength: STEPS_MAX, size: 'max' })
    await fc.assert(
      fc.asyncProperty(steps, async (taken) => {
        const rig = await openVolume({
          maxSizeBytes: MAX_SIZE_BYTES,
          ttlMs: TTL_MS,
          rules: [{ match: `library/*:${PINNED_TAG}`, isPinned: true, ttlMs: undefined }],
        })
        const model = new Model(rig)
        for (const each of taken) {
          await model.apply(each)
          await model.check()
        }
        model.end()
        await rig.close()
      }),
      { numRuns: RUNS, interruptAfterTimeLimit: TIME_MAX_MS, markInterruptAsFailure: true },
    )
  })
})
