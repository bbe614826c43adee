import { describe, expect, it } from 'vitest'
import { DownloadPatience } from '../../../src/cache/download-patience.ts'
import { FakeClock } from '../../support/fake-clock.ts'

const MIB = 1024 * 1024

/** Attempts that each bring so much, and take so long. @returns how many there are until it is given up */
async function attempts(bytes: number, durationMs: number): Promise<number> {
  const clock = new FakeClock()
  const patience = new DownloadPatience(clock, 5 * MIB)
  for (let count = 1; ; count++) {
    await clock.advance(durationMs)
    if (!patience.noteBreak(5 * MIB + count * bytes)) return count
  }
}

describe('a download that breaks again and again is given up', () => {
  it.each([
    ['after five attempts without a byte', 0, 1_000, 5],
    ['after three minutes in which next to nothing came', 1_000, 26_000, 7],
    ['after three minutes in which less than a MiB came', 140_000, 26_000, 7],
    ['not while a MiB comes in three minutes, but after 100 attempts', MIB / 5, 26_000, 100],
    ['after 100 attempts, however quick they are', 100, 1_000, 100],
  ])('%s', async (_when, bytes, durationMs, count) => {
    expect(await attempts(bytes, durationMs)).toBe(count)
  })

  it('but not for how long one attempt took that brought much', async () => {
    const clock = new FakeClock()
    const patience = new DownloadPatience(clock, 0)
    await clock.advance(3_600_000)
    expect(patience.noteBreak(100 * MIB)).toBe(true)
  })
})
