import { existsSync } from 'node:fs'
import { rm, stat, truncate, writeFile } from 'node:fs/promises'
import { describe, expect, it, onTestFinished } from 'vitest'
import { accountForDamage } from '../../../../src/cache/upkeep/damaged-content.ts'
import { Scrubber, type ScrubberOptions } from '../../../../src/cache/upkeep/scrubber.ts'
import type { Digest } from '../../../../src/oci/digest.ts'
import type { DigestRun } from '../../../../src/storage/digester.ts'
import { OwnBytes } from '../../../../src/storage/disk-space.ts'
import { blobOf, type TestBlob } from '../../../support/images.ts'
import { makeVolumeRig } from '../../../support/stored-content-rig.ts'
import { waitFor } from '../../../support/wait-for.ts'

const HOUR_MS = 3_600_000
const MINUTE_MS = 60_000
const MIB = 1024 ** 2
const DAILY: ScrubberOptions = { intervalMs: 24 * HOUR_MS, bytesPerSecond: 20e6 }

type Blob = TestBlob & { readonly digest: Digest }

/** A volume with blobs, and whatever reads it again. */
async function setUp(count = 3, sizeBytes = 1_000) {
  const rig = await makeVolumeRig()
  const stored = Array.from({ length: count }, (_, seed) => blobOf(sizeBytes, seed) as Blob)
  // As the scrubber meets them.
  stored.sort((a, b) => (a.digest < b.digest ? -1 : 1))
  for (const { bytes, digest } of stored) await rig.store(digest, bytes)
  await rig.inventory.flush()
  const forgotten: Digest[] = []
  const deps = { ...rig, onRemoved: (digest: Digest) => void forgotten.push(digest) }
  accountForDamage({ ...deps, own: new OwnBytes({ paths: rig.paths, indexBytes: () => 0 }) })
  const make = (options: ScrubberOptions = DAILY): Scrubber => {
    const scrubber = new Scrubber(deps, options)
    onTestFinished(() => scrubber.stop())
    return scrubber
  }
  return { ...rig, forgotten, make, stored }
}

type SetUp = Awaited<ReturnType<typeof setUp>>

/** Lets time pass while it pauses, and only then. */
async function until({ clock }: SetUp, what: string, isSo: () => boolean): Promise<void> {
  await waitFor(what, async () => {
    if (isSo()) return true
    await clock.advance(clock.nextTimerMs ?? 0)
    return isSo()
  })
}

function untilDone(all: SetUp, scrubber: Scrubber): Promise<void> {
  return until(all, 'the pass to end', () => !scrubber.status.isRunning)
}

async function pass(all: SetUp, scrubber = all.make()): Promise<Scrubber> {
  expect(scrubber.startNow()).toBe(true)
  await untilDone(all, scrubber)
  return scrubber
}

/** Changes a byte and nothing else that could be seen without reading. */
async function damage({ paths }: SetUp, { bytes, digest }: Blob): Promise<void> {
  const wrong = Buffer.from(bytes)
  wrong[wrong.length - 1] = (wrong.at(-1) ?? 0) ^ 1
  await writeFile(paths.blobData(digest), wrong)
}

async function counted({ metrics }: SetUp, name: string): Promise<number> {
  const metric = await metrics.registry.getSingleMetric(name)?.get()
  return metric?.values.reduce((sum, { value }) => sum + value, 0) ?? Number.NaN
}

function first({ stored: [blob] }: SetUp): Blob {
  if (!blob) throw new Error('nothing is stored')
  return blob
}

describe('a pass', () => {
  it('reads all blobs, counts their bytes, and leaves what is right', async () => {
    const all = await setUp(3, 70_000)
    const { status } = await pass(all)
    expect(status).toMatchObject({ blobs: 3, bytes: 210_000, damaged: 0, unreadable: 0 })
    expect(await counted(all, 'layover_scrubbed_bytes_total')).toBe(210_000)
    for (const { digest } of all.stored) expect(existsSync(all.paths.blobData(digest))).toBe(true)
    expect(all.lines.at(-1)?.msg).toContain('read 3 stored blobs')
  })

  it('sets a damaged blob aside, tells of it, counts it, and has it forgotten', async () => {
    const all = await setUp()
    const { digest } = first(all)
    await damage(all, first(all))
    const { status } = await pass(all)
    expect(status).toMatchObject({ blobs: 3, damaged: 1 })
    expect(existsSync(all.paths.blobData(digest))).toBe(false)
    expect(existsSync(all.paths.quarantined(digest))).toBe(true)
    expect(all.forgotten).toEqual([digest])
    expect(await counted(all, 'layover_digest_mismatches_total')).toBe(1)
    expect(all.lines.find((line) => line.digest === digest)?.msg).toContain('is damaged')
    await all.inventory.flush()
    expect(all.index.has(digest)).toBe(false)
    expect(all.inventory.isAbsent(digest)).toBe(true)
  })

  it('sets a blob aside that was cut short', async () => {
    const all = await setUp()
    await truncate(all.paths.blobData(first(all).digest), 10)
    expect((await pass(all)).status.damaged).toBe(1)
  })

  it('takes a blob that has vanished out of the index', async () => {
    const all = await setUp()
    const { digest } = first(all)
    await rm(all.paths.blobData(digest))
    expect((await pass(all)).status).toMatchObject({ blobs: 2, damaged: 0, unreadable: 0 })
    await all.inventory.flush()
    expect(all.index.has(digest)).toBe(false)
  })

  it('looks again at a blob that shrinks while it is read', async () => {
    const all = await setUp(1, 9 * MIB)
    const { digest } = first(all)
    const scrubber = all.make()
    scrubber.startNow()
    await waitFor('it to pause in the blob', () => all.clock.pendingTimers === 1)
    await truncate(all.paths.blobData(digest), MIB)
    await untilDone(all, scrubber)
    expect(scrubber.status).toMatchObject({ damaged: 1, unreadable: 0 })
    expect((await stat(all.paths.quarantined(digest))).size).toBe(MIB)
  })

  it('leaves a blob in peace that has taken the place of a damaged one', async () => {
    const all = await setUp(1, 9 * MIB)
    const { bytes, digest } = first(all)
    await damage(all, first(all))
    const scrubber = all.make()
    scrubber.startNow()
    await waitFor('it to pause in the blob', () => all.clock.pendingTimers === 1)
    await all.blobs.put(digest, bytes)
    await untilDone(all, scrubber)
    expect(scrubber.status.damaged).toBe(0)
    expect(existsSync(all.paths.blobData(digest))).toBe(true)
  })

  it('tells of blobs that cannot be read, leaves them, and gives up after ten in a row', async () => {
    const all = await setUp(15)
    const failing: DigestRun = {
      ...all.blobs.hash(first(all).digest),
      advance: () => undefined,
      finish: () => Promise.reject(Object.assign(new Error('EIO'), { code: 'EIO' })),
      abort: () => undefined,
    }
    all.blobs.hash = () => failing
    const { status } = await pass(all)
    expect(status).toMatchObject({ unreadable: 10, damaged: 0 })
    expect(await counted(all, 'layover_storage_errors_total')).toBe(10)
    expect(all.lines.at(-1)?.msg).toContain('gave up')
    for (const { digest } of all.stored) expect(existsSync(all.paths.blobData(digest))).toBe(true)
    // Not again within the minute.
    expect(all.index.scrubPosition?.after).toBeUndefined()
  })

  it('reads no faster than it may', async () => {
    const all = await setUp(2, 10 * MIB)
    const scrubber = all.make({ intervalMs: undefined, bytesPerSecond: MIB })
    const startMs = all.clock.monotonic()
    scrubber.startNow()
    await untilDone(all, scrubber)
    const tookS = (all.clock.monotonic() - startMs) / 1000
    // 20 MiB and two files; a pause follows on 4 MiB, so the last bytes may have none.
    expect(tookS).toBeGreaterThan(16)
    expect(tookS).toBeLessThan(20.5)
  })

  it('pauses for small files too: opening them costs a disk as much', async () => {
    const all = await setUp(200, 10)
    const scrubber = all.make({ intervalMs: undefined, bytesPerSecond: MIB })
    const startMs = all.clock.monotonic()
    scrubber.startNow()
    await untilDone(all, scrubber)
    expect(all.clock.monotonic() - startMs).toBeGreaterThan(12_000)
  })

  it('stops at once, in the middle of a blob, and the next process goes on there', async () => {
    const all = await setUp(4, 5 * MIB)
    const scrubber = all.make({ intervalMs: undefined, bytesPerSecond: MIB })
    scrubber.startNow()
    await until(all, 'two blobs to be read', () => scrubber.status.blobs === 2)
    await waitFor('it to pause', () => all.clock.pendingTimers === 1)
    await scrubber.stop()
    expect(all.index.scrubPosition?.after).toBe(all.stored[1]?.digest)
    const next = await pass(all)
    expect(next.status.blobs).toBe(2)
    expect(all.index.scrubPosition?.after).toBeUndefined()
  })

  it('does not begin twice, nor before the volume is known, nor after the stop', async () => {
    const all = await setUp(1, 9 * MIB)
    const scrubber = all.make()
    all.inventory.setComplete(false)
    expect(scrubber.startNow()).toBe(false)
    all.inventory.setComplete(true)
    expect(scrubber.startNow()).toBe(true)
    expect(scrubber.startNow()).toBe(false)
    await scrubber.stop()
    expect(scrubber.startNow()).toBe(false)
  })
})

describe('the interval', () => {
  it('counts from the begin of a pass, and over restarts', async () => {
    const all = await setUp()
    const { clock, index } = all
    const scrubber = all.make()
    scrubber.start()
    await clock.advance(MINUTE_MS)
    await untilDone(all, scrubber)
    const begun = index.scrubPosition?.startedAtMs
    expect(begun).toBeDefined()
    await clock.advance(20 * HOUR_MS)
    await scrubber.stop()
    const next = all.make()
    next.start()
    await clock.advance(3 * HOUR_MS)
    expect(index.scrubPosition?.startedAtMs).toBe(begun)
    await clock.advance(HOUR_MS)
    await waitFor('the next pass', async () => {
      await clock.advance(MINUTE_MS)
      return index.scrubPosition?.startedAtMs !== begun
    })
  })

  it('is not put off by a clock that was wrong once', async () => {
    const all = await setUp()
    await all.index.setScrubPosition({
      startedAtMs: all.clock.now() + 1_000 * HOUR_MS,
      after: undefined,
    })
    const scrubber = all.make()
    scrubber.start()
    await all.clock.advance(MINUTE_MS)
    await untilDone(all, scrubber)
    expect(scrubber.status.blobs).toBe(3)
  })

  it('may be missing: then a pass begins only when somebody asks', async () => {
    const all = await setUp()
    const scrubber = all.make({ intervalMs: undefined, bytesPerSecond: 20e6 })
    scrubber.start()
    await all.clock.advance(1_000 * HOUR_MS)
    expect(all.index.scrubPosition).toBeUndefined()
    await pass(all, scrubber)
    expect(scrubber.status.blobs).toBe(3)
  })
})
