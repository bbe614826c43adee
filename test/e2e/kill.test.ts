// The cache is killed at random moments, again and again, while 200 mixed pulls run. The choices follow from a
// seed, which stands in the name of the test: E2E_SEED=… makes others.

import { readFileSync } from 'node:fs'
import { join } from 'node:path'
import { beforeAll, expect, it } from 'vitest'
import type { FakeUpstream } from '../support/fake-upstream.ts'
import { rawGet, type RawRequestOptions } from '../support/http-client.ts'
import { buildImage, type TestBlob, type TestImage } from '../support/images.ts'
import { Random } from '../support/random.ts'
import { waitFor } from '../support/wait-for.ts'
import { IS_COMPARISON, startBeforeFakeUpstream, type Cache } from './support/cache.ts'
import { orphansOf, readVolume, wrongBlobs, type Volume } from './support/volume.ts'
import { SEED } from './support/seed.ts'
import { openWorkspace } from './support/workspace.ts'

const ROUNDS = 20
const PULLS = 200
const CLIENTS = 16
const NEW_IMAGES_PER_ROUND = 8
/** In memory only, small, above what is spooled in memory, and several blocks of a spool. */
const LAYER_SIZES_BYTES = [200, 30_000, 90_000, 400_000, 1_500_000]
const TAG = 'latest'

interface Pushed {
  readonly repository: string
  readonly image: TestImage
}

const workspace = openWorkspace()
const random = new Random(SEED)
const pushed: Pushed[] = []
let upstream: FakeUpstream
let cache: Cache
let root: string

beforeAll(async () => {
  ;({ upstream, cache, root } = await startBeforeFakeUpstream(workspace))
})

function push(seed: string): Pushed {
  const layers = Array.from({ length: 1 + random.below(3) }, () => random.pick(LAYER_SIZES_BYTES))
  const one = { repository: `library/${seed}`, image: buildImage({ seed, layers }) }
  upstream.addImage(one.repository, TAG, one.image)
  pushed.push(one)
  return one
}

const blobsOf = ({ image }: Pushed): TestBlob[] => [image.config, ...image.layers]
const blobPath = ({ repository }: Pushed, { digest }: TestBlob): string =>
  `/v2/${repository}/blobs/${digest}`

/** @returns false when the cache went away; what came of the answer was right all the same */
async function fetchRight(
  path: string,
  expected: Buffer,
  options: RawRequestOptions = {},
): Promise<boolean> {
  const answer = await rawGet(cache.url + path, options).catch(() => undefined)
  if (answer?.status === undefined) return false
  expect(answer.status, path).toBeLessThan(300)
  const wanted = options.method === 'HEAD' ? Buffer.alloc(0) : expected
  if (answer.ending === 'complete') expect(answer.body.equals(wanted), path).toBe(true)
  else expect(answer.body.equals(wanted.subarray(0, answer.body.length)), path).toBe(true)
  return answer.ending === 'complete' || options.leaveAfterBytes !== undefined
}

/** @returns whether all of it arrived */
async function pullAll(one: Pushed, reference: string, known: Set<Pushed>): Promise<boolean> {
  const { manifest } = one.image
  const path = `/v2/${one.repository}/manifests/${reference}`
  if (!(await fetchRight(path, manifest.bytes))) return false
  if (reference === TAG) known.add(one)
  const blobs = blobsOf(one).map((blob) => fetchRight(blobPath(one, blob), blob.bytes))
  return (await Promise.all(blobs)).every(Boolean)
}

/**
 * One of the things that clients do, chosen now and done later: what is chosen must not depend on who is faster.
 * Images whose tag a client was told go into `known`.
 */
function somePull(one: Pushed, known: Set<Pushed>): () => Promise<boolean> {
  const { digest } = one.image.manifest
  const blob = random.pick(blobsOf(one))
  const path = blobPath(one, blob)
  const first = random.below(blob.bytes.length)
  const headers = { Range: `bytes=${first}-` }
  return random.pick([
    () => pullAll(one, TAG, known),
    () => pullAll(one, TAG, known),
    () => pullAll(one, digest, known),
    () => fetchRight(path, blob.bytes, { method: 'HEAD' }),
    () => fetchRight(path, blob.bytes.subarray(first), { headers }),
    () => fetchRight(path, blob.bytes, { leaveAfterBytes: first + 1 }),
  ])
}

/** Runs the pulls, some at a time, until one meets a cache that is gone. */
async function runPulls(pulls: readonly (() => Promise<boolean>)[]): Promise<boolean> {
  const left = [...pulls]
  let isServed = true
  const client = async (): Promise<void> => {
    for (let pull = left.shift(); pull && isServed; pull = left.shift()) {
      if (!(await pull())) isServed = false
    }
  }
  await Promise.all(Array.from({ length: CLIENTS }, client))
  return isServed
}

/** Goes on where each download stopped, and not from the beginning. */
function expectResumed({ parts }: Volume, sizes: ReadonlyMap<string, number>): void {
  for (const [digest, partBytes] of parts) {
    if (partBytes === 0) continue
    const [first] = upstream.requests.filter(
      ({ method, reference }) => method === 'GET' && reference === digest,
    )
    expect(first?.headers.range, `${digest}, ${partBytes} of ${sizes.get(digest)}`).toBe(
      `bytes=${partBytes}-`,
    )
    expect(upstream.bytesSent(digest)).toBeLessThanOrEqual(
      Math.max(1, (sizes.get(digest) ?? 0) - partBytes),
    )
  }
}

async function round(number: number): Promise<{ wasCut: boolean; resumed: number }> {
  const fresh = Array.from({ length: NEW_IMAGES_PER_ROUND }, (_, at) => push(`r${number}-${at}`))
  const sizes = new Map(
    pushed.flatMap(blobsOf).map(({ bytes, digest }) => [digest as string, bytes.length]),
  )
  const freshBlobs = fresh.flatMap(blobsOf)
  const freshBytes = freshBlobs.reduce((sum, { bytes }) => sum + bytes.length, 0)
  const known = new Set<Pushed>()
  const touched = new Set(fresh)
  const pulls = Array.from({ length: PULLS }, () => {
    const one = random.pick(random.below(4) === 0 ? pushed : fresh)
    touched.add(one)
    return somePull(one, known)
  })
  upstream.reset()
  // Slow enough for the kill to meet downloads that are under way.
  const stopPacing = upstream.fault({ kind: 'blob', method: 'GET' }, { bytesPerSecond: 4_000_000 })
  const killAtBytes = random.next() * freshBytes
  let isOver = false
  const running = runPulls(pulls).finally(() => (isOver = true))
  const isTime = (): boolean =>
    isOver ||
    freshBlobs.reduce((sum, { digest }) => sum + upstream.bytesSent(digest), 0) >= killAtBytes
  await waitFor('the moment to kill', isTime, { deadlineMs: 30_000 })
  await cache.crash()
  const wasCut = !(await running)
  stopPacing()

  const before = readVolume(root)
  expect(wrongBlobs(root)).toEqual([])
  for (const { image, repository } of known) {
    expect(before.tags.get(`${repository}:${TAG}`)).toBe(image.manifest.digest)
  }
  await waitFor('the upstream to notice', () => upstream.activeConnections === 0)
  upstream.reset()
  await cache.start()
  // Now and then it dies again while it looks at what it has.
  if (random.below(4) === 0) await cache.crashAndRestart()
  expect(readVolume(root).temporary).toEqual([])

  const again = [...touched].map((one) => () => pullAll(one, TAG, known))
  expect(await runPulls(again)).toBe(true)
  expectResumed(before, sizes)
  await waitFor('all downloads to be stored, and nothing to be left', () => {
    const volume = readVolume(root)
    return volume.parts.size + orphansOf(volume).length + volume.temporary.length === 0
  })
  return { wasCut, resumed: before.parts.size }
}

it.skipIf(IS_COMPARISON)(
  `survives ${ROUNDS} kills at random moments: right bytes, no tag lost, downloads go on (E2E_SEED=${SEED})`,
  async () => {
    let cuts = 0
    let resumed = 0
    for (let number = 0; number < ROUNDS; number++) {
      const result = await round(number)
      cuts += result.wasCut ? 1 : 0
      resumed += result.resumed
    }
    // Else the moments were none.
    expect(cuts).toBeGreaterThan(ROUNDS / 4)
    expect(resumed).toBeGreaterThan(0)

    // A stop that comes before the volume was looked through leaves the file as it was.
    await waitFor('the volume to be looked through', () => {
      const messages = cache.logLines().map(({ msg }) => msg)
      const lastOf = (start: string): number =>
        messages.findLastIndex((message) => message.startsWith(start))
      return lastOf('found ') > lastOf('Registry configured')
    })
    await cache.stop()
    const state: unknown = JSON.parse(readFileSync(join(root, 'scheduler-state.json'), 'utf8'))
    const expected = [...readVolume(root).links].sort()
    expect(Object.keys(state as object).sort()).toEqual(expected)
    expect(wrongBlobs(root)).toEqual([])
    await upstream.down()
    await cache.start()
    const all = pushed.map((one) => () => pullAll(one, TAG, new Set()))
    expect(await runPulls(all)).toBe(true)
    expect(cache.logLines().filter(({ level }) => level === 'error')).toEqual([])
    expect(cache.logLines().filter(({ msg }) => msg.includes('rebuilt'))).toEqual([])
  },
  // Half a minute on a machine of its own.
  300_000,
)
