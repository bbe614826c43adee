import { describe, expect, it } from 'vitest'
import { delay } from '../../../src/clock.ts'
import { FAKE_EPOCH_MS, FakeClock } from '../../support/fake-clock.ts'

describe('FakeClock', () => {
  it('stands still until it is advanced', async () => {
    const clock = new FakeClock()
    expect(clock.now()).toBe(FAKE_EPOCH_MS)
    await clock.advance(250)
    expect(clock.now()).toBe(FAKE_EPOCH_MS + 250)
    expect(clock.monotonic()).toBe(250)
  })

  it('fires due timers in order, each at its own time, and those that they set', async () => {
    const clock = new FakeClock()
    const fired: [string, number][] = []
    clock.setTimer(20, () => fired.push(['second', clock.monotonic()]))
    clock.setTimer(10, () => {
      fired.push(['first', clock.monotonic()])
      clock.setTimer(15, () => fired.push(['third', clock.monotonic()]))
    })
    clock.setTimer(31, () => fired.push(['later', clock.monotonic()]))
    await clock.advance(30)
    expect(fired).toEqual([
      ['first', 10],
      ['second', 20],
      ['third', 25],
    ])
    expect(clock.pendingTimers).toBe(1)
    expect(clock.nextTimerMs).toBe(1)
  })

  it('keeps the order in which timers due at the same time were set', async () => {
    const clock = new FakeClock()
    const fired: number[] = []
    for (const n of [1, 2, 3]) clock.setTimer(5, () => fired.push(n))
    await clock.advance(5)
    expect(fired).toEqual([1, 2, 3])
  })

  it('lets promises run between two timers', async () => {
    const clock = new FakeClock()
    const steps: string[] = []
    const first = delay(clock, 10).then(() => steps.push('after the first'))
    clock.setTimer(20, () => steps.push('the second'))
    await clock.advance(20)
    await first
    expect(steps).toEqual(['after the first', 'the second'])
  })

  it('forgets a cancelled timer', async () => {
    const clock = new FakeClock()
    let fired = false
    clock.setTimer(5, () => (fired = true))()
    await clock.advance(10)
    expect([fired, clock.pendingTimers]).toEqual([false, 0])
  })

  it('jumps the wall clock without moving monotonic time or firing timers', () => {
    const clock = new FakeClock()
    clock.setTimer(5, () => {
      throw new Error('a jump must not fire timers')
    })
    clock.jump(-86_400_000)
    expect(clock.now()).toBe(FAKE_EPOCH_MS - 86_400_000)
    expect(clock.monotonic()).toBe(0)
    expect(clock.pendingTimers).toBe(1)
  })
})
