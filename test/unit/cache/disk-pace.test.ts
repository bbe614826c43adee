import { pino } from 'pino'
import { describe, expect, it } from 'vitest'
import { DiskPace } from '../../../src/cache/disk-pace.ts'
import { Metrics } from '../../../src/telemetry/metrics.ts'
import { FakeClock } from '../../support/fake-clock.ts'
import { nextTurn, within } from '../../support/wait-for.ts'

const MIB = 1024 * 1024
const KIB = 1024
const { signal } = new AbortController()

/** A disk for which so many bytes wait. */
function beside(patientBytes: number) {
  const waiting: (() => void)[] = []
  const caughtUp = (): Promise<void> => new Promise((resolve) => waiting.push(resolve))
  const blobs = { patientBytes, caughtUp }
  const clock = new FakeClock()
  const warnings: string[] = []
  const logger = pino({}, { write: (line) => warnings.push((JSON.parse(line) as Line).msg) })
  const metrics = new Metrics()
  const pace = new DiskPace({ blobs, clock, logger, metrics })
  return {
    blobs,
    clock,
    metrics,
    pace,
    warnings,
    catchUp: async (): Promise<void> => {
      blobs.patientBytes = 0
      for (const resolve of waiting.splice(0)) resolve()
      await nextTurn()
    },
  }
}

interface Line {
  readonly msg: string
}

describe('a download of something small', () => {
  it('begins at once when little waits for the disk', () => {
    const { clock, pace } = beside(512 * KIB)
    expect(pace.keep(10 * KIB, signal)).toBeUndefined()
    expect(clock.pendingTimers).toBe(0)
  })

  it.each([10 * KIB, undefined])('begins when the disk has caught up (%s bytes)', async (size) => {
    const { catchUp, clock, pace } = beside(2 * MIB)
    const begun = pace.keep(size, signal)
    expect(begun).toBeDefined()
    await catchUp()
    await within('the download', Promise.resolve(begun))
    expect(clock.pendingTimers).toBe(0)
    expect(pace.keep(size, signal)).toBeUndefined()
  })

  it('waits a second for a disk that hangs, all of them together, and not again', async () => {
    const { catchUp, clock, blobs, pace } = beside(2 * MIB)
    const first = pace.keep(10 * KIB, signal)
    await clock.advance(999)
    const second = pace.keep(10 * KIB, signal)
    expect(second).toBeDefined()
    await clock.advance(1)
    await within('the downloads', Promise.all([first, second]))
    expect(pace.keep(10 * KIB, signal)).toBeUndefined()
    await catchUp()
    blobs.patientBytes = 2 * MIB
    expect(pace.keep(10 * KIB, signal)).toBeDefined()
  })

  it('is stopped while it waits', async () => {
    const { pace } = beside(2 * MIB)
    const stop = new AbortController()
    const begun = pace.keep(10 * KIB, stop.signal)
    stop.abort()
    await within('the download', Promise.resolve(begun))
  })

  it('is not kept when far too much waits already; the log says so once', async () => {
    const { catchUp, blobs, metrics, pace, warnings } = beside(16 * MIB)
    expect(pace.takes(10 * KIB)).toBe(true)
    blobs.patientBytes++
    expect(pace.takes(10 * KIB)).toBe(false)
    expect(pace.takes(10 * KIB)).toBe(false)
    expect(warnings).toEqual([expect.stringContaining('served but not kept')])
    const counted = await metrics.notKept.get()
    expect(counted.values).toMatchObject([{ value: 2, labels: { type: 'blob' } }])
    await catchUp()
    expect(pace.takes(10 * KIB)).toBe(true)
    blobs.patientBytes = 17 * MIB
    pace.takes(10 * KIB)
    expect(warnings).toHaveLength(2)
  })
})

describe('a download of something large', () => {
  it('begins at once, and is kept, however much waits', () => {
    const { pace } = beside(17 * MIB)
    expect(pace.keep(65 * KIB, signal)).toBeUndefined()
    expect(pace.takes(65 * KIB)).toBe(true)
    expect(pace.takes(undefined)).toBe(true)
  })
})
