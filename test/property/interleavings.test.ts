// Whatever the order in which clients come, read and leave, in which bytes arrive and break off, and in which blobs
// get their names and lose them: one download at a time, the right bytes, and nothing left over.

import { mkdir, readdir } from 'node:fs/promises'
import * as fc from 'fast-check'
import { pino } from 'pino'
import { describe, expect, it, onTestFinished } from 'vitest'
import type { ByteSource } from '../../src/cache/answer.ts'
import { digestOf, matchesDigest, type Digest } from '../../src/oci/digest.ts'
import { RegistryError } from '../../src/oci/registry-error.ts'
import { SMALL_BLOB_MAX_BYTES } from '../../src/storage/blob-store.ts'
import { FileWriter } from '../../src/storage/file-writer.ts'
import { ContentIndex } from '../../src/storage/index/content-index.ts'
import { StoragePaths } from '../../src/storage/paths.ts'
import type { StorageThread } from '../../src/storage/storage-thread.ts'
import { bytesOf } from '../support/images.ts'
import { openFilesBelow } from '../support/open-files.ts'
import { ScheduledStage, type UpstreamPlan } from '../support/scheduled-stage.ts'
import { makeStorageThread } from '../support/storage-thread.ts'
import { makeTempDirectory } from '../support/temp-directory.ts'
import { waitFor } from '../support/wait-for.ts'

/** A few seconds; the seed of a failing run is in its report. */
const RUNS = 300

const client = fc.record({
  /** Only `absent` does not have the blob, at the upstream. */
  repository: fc.constantFrom('a', 'a', 'b', 'absent'),
  /** Where reading starts, as a part of the whole. */
  from: fc.constantFrom(0, 0, 0.3, 0.99),
  /** Reads after which it leaves; undefined: it stays. */
  leavesAfter: fc.option(fc.nat({ max: 3 }), { nil: undefined, freq: 4 }),
  scratchBytes: fc.constantFrom(20_000, 200_000),
  /** Whether it waits for ever, or until its time is up. */
  isPatient: fc.constantFrom(true, true, true, false),
})

const scenario = fc.record({
  sizeBytes: fc.constantFrom(1, 40_000, SMALL_BLOB_MAX_BYTES + 1, 300_000),
  isSizeAnnounced: fc.boolean(),
  chunks: fc.integer({ min: 1, max: 4 }),
  breaksAfter: fc.array(fc.nat({ max: 3 }), { maxLength: 3 }),
  refusals: fc.constantFrom(0, 0, 0, 1),
  wrongBodies: fc.constantFrom(0, 0, 0, 1),
  refusesCommits: fc.constantFrom(false, false, false, true),
  evictions: fc.nat({ max: 2 }),
  stops: fc.constantFrom(false, false, false, true),
  clients: fc.array(client, { minLength: 1, maxLength: 5 }),
})

type ClientPlan = typeof client extends fc.Arbitrary<infer T> ? T : never
type Scenario = typeof scenario extends fc.Arbitrary<infer T> ? T : never

interface Outcome {
  readonly plan: ClientPlan
  readonly hasLeft: boolean
  /** Whether it has read to the end. */
  readonly hasAll: boolean
  readonly readBytes: number
  /** Whether all that was read is what the digest names. */
  readonly isRight: boolean
  readonly error: unknown
}

/** Asks and reads as the plan says, and compares every byte. */
async function runClient(
  stage: ScheduledStage,
  plan: ClientPlan,
  bytes: Buffer,
  digest: Digest,
): Promise<Outcome> {
  const first = Math.floor(bytes.length * plan.from)
  const outcome = { plan, hasLeft: false, hasAll: false, readBytes: 0, isRight: true }
  let source: ByteSource | undefined
  try {
    await stage.pause('join')
    const deadlineMs = plan.isPatient ? Infinity : stage.clock.monotonic() + 25_000
    const answer = await stage.cache.get(stage.repository(plan.repository), digest, deadlineMs)
    outcome.isRight = answer.sizeBytes === bytes.length
    if (plan.leavesAfter === 0) {
      answer.discard()
      return { ...outcome, hasLeft: true, error: undefined }
    }
    const opened = answer.open(first, bytes.length - 1)
    source = Buffer.isBuffer(opened) ? sourceOf(opened) : opened
    const scratch = Buffer.alloc(plan.scratchBytes)
    for (let reads = 0, position = first; position < bytes.length; reads++) {
      if (reads === plan.leavesAfter) return { ...outcome, hasLeft: true, error: undefined }
      await stage.pause('read')
      const part = await source.read(position, scratch.subarray(0, bytes.length - position))
      outcome.isRight &&= part.equals(bytes.subarray(position, position + part.length))
      position += part.length
      outcome.readBytes = position - first
    }
    return { ...outcome, hasAll: true, error: undefined }
  } catch (error) {
    return { ...outcome, error }
  } finally {
    source?.close()
  }
}

function sourceOf(bytes: Buffer): ByteSource {
  const read: ByteSource['read'] = async (position, { length }) =>
    bytes.subarray(position, position + length)
  return { read, close: () => {} }
}

async function stop(stage: ScheduledStage): Promise<{ askedBefore: number }> {
  await stage.pause('stop')
  await stage.cache.stop()
  return { askedBefore: stage.upstream.asked }
}

async function evict(stage: ScheduledStage): Promise<void> {
  await stage.pause('evict')
  await stage.evict()
}

function expectRight(outcome: Outcome, { refusals, stops, wrongBodies }: Scenario): void {
  const { error, hasAll, hasLeft, isRight, plan, readBytes } = outcome
  // Of wrong bytes nobody gets the last one.
  if (hasAll || wrongBodies === 0) expect(isRight).toBe(true)
  if (hasLeft) return
  const mayFail = stops || wrongBodies > 0 || !plan.isPatient
  if (plan.repository === 'absent') {
    expect([hasAll, readBytes]).toEqual([false, 0])
    if (!mayFail && refusals === 0) expect(error).toMatchObject({ code: 'BLOB_UNKNOWN' })
  } else if (!hasAll && !mayFail) {
    expect(refusals, String(error)).toBeGreaterThan(0)
    expect(error).toBeInstanceOf(RegistryError)
    expect(error).toMatchObject({ code: 'UNAVAILABLE' })
  }
}

/** How many bodies can be needed when nobody is to be given wrong bytes, or none. */
function bodiesMax(scenario: Scenario): number {
  const { breaksAfter, clients, evictions, refusesCommits, wrongBodies } = scenario
  // What is not kept is fetched again by whoever comes after the end.
  const repeated = refusesCommits ? clients.length : 1
  return repeated + breaksAfter.length + wrongBodies + evictions
}

async function expectNothingLeft(
  stage: ScheduledStage,
  { stops }: Scenario,
  digest: Digest,
): Promise<void> {
  const { paths, spools, upstream } = stage
  await waitFor('files to be closed', async () => {
    // What an impatient client left behind may have more to ask once the disk has answered.
    await stage.step()
    return (await openFilesBelow(paths.root)).length === 0
  })
  expect(upstream.openBodies).toBe(0)
  expect(await readdir(paths.temporary)).toEqual([])
  // What a stop has cut is kept for the next start, and known.
  const parts = await readdir(paths.spool)
  expect(parts.length).toBe(spools.partBytes(digest) > 0 ? 1 : 0)
  if (!stops) expect(parts).toEqual([])
}

/** Shared by all runs: each has a blob of its own. */
async function openContentIndex(thread: StorageThread): Promise<ContentIndex> {
  const paths = new StoragePaths(await makeTempDirectory())
  await mkdir(paths.temporary, { recursive: true })
  const writer = new FileWriter({ thread, paths })
  const index = await ContentIndex.open({ paths, writer, logger: pino({ enabled: false }) })
  onTestFinished(() => index.close())
  return index
}

describe('a blob', () => {
  it('is downloaded once and served right, in whatever order things happen', async () => {
    const thread = makeStorageThread()
    const root = await makeTempDirectory()
    const index = await openContentIndex(thread)
    let run = 0
    await fc.assert(
      fc.asyncProperty(fc.scheduler(), scenario, async (scheduler, plan) => {
        const bytes = bytesOf(plan.sizeBytes, `interleaving ${++run}`)
        const digest = digestOf(bytes)
        const upstreamPlan: UpstreamPlan = { ...plan, bytes, digest }
        const stage = new ScheduledStage(
          { scheduler, thread, index, root: `${root}/${run}` },
          upstreamPlan,
          plan,
        )
        await stage.prepare()
        const outcomes = plan.clients.map((one) => runClient(stage, one, bytes, digest))
        const evictions = Array.from({ length: plan.evictions }, () => evict(stage))
        const stopped = plan.stops ? stop(stage) : undefined
        const timersLeft = await stage.play(Promise.all([...outcomes, ...evictions, stopped]))

        for (const outcome of await Promise.all(outcomes)) expectRight(outcome, plan)
        expect(stage.upstream.openBodiesMax).toBeLessThanOrEqual(1)
        expect(stage.upstream.bodies).toBeLessThanOrEqual(bodiesMax(plan))
        if (stopped) expect(stage.upstream.asked).toBe((await stopped).askedBefore)
        // What an impatient client left behind may still wait for its turn then.
        if (plan.clients.every(({ isPatient }) => isPatient)) expect(timersLeft).toBe(0)
        await expectNothingLeft(stage, plan, digest)
        const stored = await stage.store.readWhole(digest, plan.sizeBytes)
        if (stored) expect(matchesDigest(stored, digest)).toBe(true)
      }),
      { numRuns: RUNS },
    )
  }, 120_000)
})
