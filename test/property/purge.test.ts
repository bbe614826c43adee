// Any images of some repositories, pulled whole or only by their manifests, and any purge of repositories: against a
// model that knows links and names only. What goes, and what keeps which link, is told before it happens.

import * as fc from 'fast-check'
import { describe, expect, it } from 'vitest'
import type { PurgeRequest } from '../../src/cache/upkeep/purge-selection.ts'
import type { Digest } from '../../src/oci/digest.ts'
import type { RepositoryName, Tag } from '../../src/oci/reference.ts'
import {
  buildArtifact,
  buildImage,
  buildIndex,
  descriptorOf,
  manifestFrom,
  type TestImage,
  type TestManifest,
} from '../support/images.ts'
import { openVolume, type VolumeRig } from '../support/volume-rig.ts'

const RUNS = 30
/** Ten times what it takes: then something hangs. */
const TIME_MAX_MS = 120_000
const HOUR_MS = 3_600_000

const REPOSITORIES = ['one/a', 'one/b', 'two/a', 'two/b'] as RepositoryName[]

/** Different configs over the same base, and one that has nothing in common with them. */
const IMAGES = makeImages()
const INDEXES = [IMAGES.slice(0, 2), IMAGES.slice(1, 3)].map((images) => buildIndex(images))
/** Goes along with an index, from wherever it was pulled. */
const SIGNATURES = INDEXES.map(({ manifest }) => buildArtifact(manifest))

function makeImages(): TestImage[] {
  const layers = [1, 2, 3].map((seed) => buildImage({ seed, layers: [500] }).layers).flat()
  const shared = [0, 1, 2].map((seed): TestImage => {
    const own = buildImage({ seed: `config ${seed}`, layers: [] })
    const of = layers.slice(0, seed + 1)
    const manifest = manifestFrom(own.manifest.mediaType, {
      config: descriptorOf('application/vnd.oci.image.config.v1+json', own.config),
      layers: of.map((layer) => descriptorOf('application/octet-stream', layer)),
    })
    return { ...own, layers: of, manifest }
  })
  return [...shared, buildImage({ seed: 'alone' })]
}

const MANIFESTS: readonly TestManifest[] = [
  ...IMAGES.map(({ manifest }) => manifest),
  ...INDEXES.map(({ manifest }) => manifest),
  ...SIGNATURES.map(({ manifest }) => manifest),
]
const WHOLE: readonly TestImage[] = [...IMAGES, ...SIGNATURES]

const pull = fc.record({
  repository: fc.constantFrom(...REPOSITORIES),
  /** Of all manifests; the blobs of an image come with it, or the client has them already. */
  manifest: fc.nat(MANIFESTS.length - 1),
  isWhole: fc.boolean(),
  tag: fc.constantFrom(undefined, 'x', 'y'),
  isLong: fc.boolean(),
})

const REQUESTS: readonly PurgeRequest[] = [
  ...REPOSITORIES.map((repository) => ({ repository })),
  ...REPOSITORIES.slice(0, 2).map((repository) => ({ repository, unusedForMs: HOUR_MS })),
  { repository: 'one/*' },
  { repository: '*/b' },
  { repository: '**' },
  { unusedForMs: HOUR_MS },
  { repository: 'two/*', unusedForMs: HOUR_MS },
]
const request = fc.constantFrom(...REQUESTS)
const tagRequest = fc.constantFrom<PurgeRequest>(
  { image: 'one/a:x' },
  { image: 'one/*:x' },
  { image: '**:*' },
  { image: 'two/b:y' },
  ...MANIFESTS.map(({ digest }) => ({ image: `one/a@${digest}` })),
)

type Pulls = readonly (typeof pull extends fc.Arbitrary<infer Each> ? Each : never)[]

async function fill(rig: VolumeRig, pulls: Pulls): Promise<void> {
  for (const { isLong, isWhole, manifest: number, repository, tag } of pulls) {
    // Some of it lies back by more than an age that is asked for.
    rig.clock.jump(isLong ? HOUR_MS : 1)
    const manifest = MANIFESTS[number]
    if (!manifest) continue
    await rig.keepManifest(manifest, tag === undefined ? { repository } : { repository, tag })
    const image = WHOLE.find((each) => each.manifest === manifest)
    if (!image || !isWhole) continue
    for (const blob of [image.config, ...image.layers]) await rig.keepBlob(blob, repository)
  }
  await rig.inventory.flush()
}

/** Who holds each stored digest. */
async function holdersIn({ index }: VolumeRig): Promise<Map<Digest, RepositoryName[]>> {
  const holders = new Map<Digest, RepositoryName[]>()
  for await (const { digest } of index.blobs()) {
    holders.set(
      digest,
      index.linksOf(digest).map(({ repository }) => repository),
    )
  }
  return holders
}

/** What is left, told in another way: all that stays, and then what that names, and so on. */
function expected(
  { index }: VolumeRig,
  before: ReadonlyMap<Digest, readonly RepositoryName[]>,
  isGoing: (digest: Digest, repository: RepositoryName) => boolean,
): Map<Digest, readonly RepositoryName[]> {
  const left = new Map<Digest, readonly RepositoryName[]>()
  for (const [digest, holders] of before) {
    const others = holders.filter((repository) => !isGoing(digest, repository))
    if (others.length > 0) left.set(digest, others)
  }
  for (const [digest] of left) {
    for (const part of index.namesOf(digest)) {
      if (before.has(part) && !left.has(part)) left.set(part, before.get(part) ?? [])
    }
  }
  return left
}

function matches({ repository = '**' }: PurgeRequest, name: RepositoryName): boolean {
  const wanted = repository.split('/')
  return (
    repository === '**' ||
    name.split('/').every((part, at) => ['*', part].includes(wanted[at] ?? ''))
  )
}

async function purgedAsTold(rig: VolumeRig, wanted: PurgeRequest): Promise<string[]> {
  const dry = await rig.purge(wanted, { isDryRun: true })
  const usedBytes = rig.inventory.usedBytes
  const real = await rig.purge(wanted)
  expect(real.items).toEqual(dry.items)
  expect(real.summary).toEqual({ ...dry.summary, isDryRun: false })
  await rig.inventory.flush()
  expect(rig.inventory.usedBytes).toBeLessThanOrEqual(usedBytes)
  return real.items.map(({ outcome }) => outcome)
}

/** No stored manifest lacks what it named before, and nothing is stored that nobody holds. */
async function checkWhole(
  rig: VolumeRig,
  namesBefore: ReadonlyMap<Digest, readonly Digest[]>,
  before: ReadonlyMap<Digest, unknown>,
): Promise<void> {
  const after = await holdersIn(rig)
  for (const [digest, holders] of after) {
    expect(holders.length).toBeGreaterThan(0)
    for (const part of namesBefore.get(digest) ?? []) {
      if (before.has(part)) expect(after.has(part)).toBe(true)
    }
  }
}

const OPTIONS = {
  numRuns: RUNS,
  interruptAfterTimeLimit: TIME_MAX_MS,
  markInterruptAsFailure: true,
}

describe('a purge', () => {
  it(
    'of repositories takes what nothing that stays names, and one link of the rest stays',
    async () => {
      const pulls = fc.array(pull, { maxLength: 14, size: 'max' })
      await fc.assert(
        fc.asyncProperty(pulls, request, async (pulled, wanted) => {
          const rig = await openVolume()
          await fill(rig, pulled)
          const before = await holdersIn(rig)
          const usedBeforeMs =
            wanted.unusedForMs === undefined ? Infinity : rig.clock.now() - wanted.unusedForMs
          const isGoing = (digest: Digest, repository: RepositoryName): boolean => {
            const usedMs = rig.index.link(digest, repository)?.lastUsedMs ?? 0
            return matches(wanted, repository) && usedMs <= usedBeforeMs
          }
          const left = expected(rig, before, isGoing)
          const isHeld = (digest: Digest): boolean =>
            (left.get(digest) ?? []).every((repository) => isGoing(digest, repository))
          const held = new Set([...left.keys()].filter(isHeld))
          const outcomes = await purgedAsTold(rig, wanted)
          const after = await holdersIn(rig)
          expect([...after.keys()].toSorted()).toEqual([...left.keys()].toSorted())
          for (const [digest, holders] of after) {
            if (!held.has(digest)) expect(holders).toEqual(left.get(digest))
            else expect(before.get(digest)).toEqual(expect.arrayContaining(holders))
            if (held.has(digest)) expect(holders).toHaveLength(1)
          }
          expect(outcomes.filter((outcome) => outcome === 'kept')).toHaveLength(held.size)
          for (const repository of REPOSITORIES) {
            if (!matches(wanted, repository) || usedBeforeMs !== Infinity) continue
            expect(await rig.repositories.listTags(repository)).toEqual([])
          }
          await rig.close()
        }),
        OPTIONS,
      )
    },
    2 * TIME_MAX_MS,
  )

  it(
    'of images leaves no image torn, and no bytes that nobody holds',
    async () => {
      const pulls = fc.array(pull, { maxLength: 14, size: 'max' })
      await fc.assert(
        fc.asyncProperty(pulls, tagRequest, async (pulled, wanted) => {
          const rig = await openVolume()
          await fill(rig, pulled)
          const before = await holdersIn(rig)
          const names = new Map([...before.keys()].map((each) => [each, rig.index.namesOf(each)]))
          // What is named by its digest goes whatever names it.
          for (const [digest, parts] of names) {
            names.set(
              digest,
              parts.filter((part) => !wanted.image?.endsWith(part)),
            )
          }
          await purgedAsTold(rig, wanted)
          await checkWhole(rig, names, before)
          for (const repository of REPOSITORIES) {
            const tags: Tag[] = await rig.repositories.listTags(repository)
            if (wanted.image === '**:*') expect(tags).toEqual([])
          }
          await rig.close()
        }),
        OPTIONS,
      )
    },
    2 * TIME_MAX_MS,
  )
})
