import { describe, expect, it } from 'vitest'
import { delay } from '../../../src/clock.ts'
import { LeapingClock } from '../../support/leaping-clock.ts'

describe('LeapingClock', () => {
  it('passes pauses by itself, in their order, and time with them', async () => {
    const clock = new LeapingClock()
    const over: number[] = []
    const pauses = [300, 100, 200].map((ms) => delay(clock, ms).then(() => over.push(ms)))
    expect(clock.pauses).toBe(3)
    await Promise.all(pauses)
    expect(over).toEqual([100, 200, 300])
    expect([clock.monotonic(), clock.pauses]).toEqual([300, 0])
  })

  it('fires what bounds a wait in a leap alone, each at its own time', async () => {
    const clock = new LeapingClock()
    const fired: number[] = []
    clock.setTimer(25_000, () => fired.push(clock.monotonic()))
    clock.setTimer(10_000, () => {
      fired.push(clock.monotonic())
      clock.setTimer(5_000, () => fired.push(clock.monotonic()))
    })
    const cancelled = clock.setTimer(12_000, () => fired.push(Number.NaN))
    cancelled()
    await delay(clock, 1_000)
    expect(fired).toEqual([])
    await clock.leap(24_000)
    expect(fired).toEqual([10_000, 15_000, 25_000])
    expect(clock.monotonic()).toBe(25_000)
  })
})
