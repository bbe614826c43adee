import { describe, expect, it } from 'vitest'
import {
  LoginWindow,
  REQUEST_WINDOW,
  TOKEN_WINDOW,
  type Ticket,
} from '../../../../src/upstream/login/login-window.ts'
import { FakeClock } from '../../../support/fake-clock.ts'
import { nextTurn } from '../../../support/wait-for.ts'

function openWindow(options = TOKEN_WINDOW) {
  const clock = new FakeClock()
  const window = new LoginWindow(clock, options)
  const tickets: Ticket[] = []
  const enter = (signal = new AbortController().signal): Promise<void> =>
    window.enter(signal).then((ticket) => void tickets.push(ticket))
  /** The first who has entered. */
  const leave = (): void => {
    const ticket = tickets.shift()
    if (ticket) window.leave(ticket)
  }
  return { clock, window, enter, leave, inside: () => tickets.length }
}

describe('the window', () => {
  it('lets four in, and more with each that is accepted, up to eight', async () => {
    const { enter, inside, leave, window } = openWindow()
    for (let i = 0; i < 100; i++) void enter()
    const sizes: number[] = []
    for (let i = 0; i < 6; i++) {
      await nextTurn()
      sizes.push(inside())
      window.widen()
      leave()
    }
    expect(sizes).toEqual([4, 5, 6, 7, 8, 8])
  })

  it('is narrow again when nothing was accepted for a second', async () => {
    const { clock, enter, inside, leave, window } = openWindow()
    for (let i = 0; i < 20; i++) window.widen()
    await clock.advance(999)
    for (let i = 0; i < 8; i++) await enter()
    expect(inside()).toBe(8)
    await clock.advance(1)
    for (let i = 0; i < 10; i++) void enter()
    for (let i = 0; i < 4; i++) leave()
    await nextTurn()
    expect(inside()).toBe(4)
    leave()
    await nextTurn()
    expect(inside()).toBe(4)
  })

  it('keeps no room for one who left, neither while it waited nor as it was let in', async () => {
    const { enter, inside, leave } = openWindow()
    for (let i = 0; i < 4; i++) await enter()
    const [first, second] = [new AbortController(), new AbortController()]
    const left = [enter(first.signal), enter(second.signal)].map((entered) =>
      entered.catch((error: unknown) => error),
    )
    void enter()
    first.abort('left')
    leave()
    second.abort('left as well')
    expect(await Promise.all(left)).toEqual(['left', 'left as well'])
    await nextTurn()
    expect(inside()).toBe(4)
  })
})

describe('the window of requests that carry the login themselves', () => {
  it('lets four in, and all when one is accepted', async () => {
    const { enter, inside, window } = openWindow(REQUEST_WINDOW)
    for (let i = 0; i < 100; i++) void enter()
    await nextTurn()
    expect(inside()).toBe(4)
    window.widen()
    await nextTurn()
    expect(inside()).toBe(100)
  })

  it('lets twice as many in with each second without an answer, and leaves no timer behind', async () => {
    const { clock, enter, inside } = openWindow(REQUEST_WINDOW)
    for (let i = 0; i < 100; i++) void enter()
    const sizes: number[] = []
    for (const afterMs of [0, 999, 1, 1_000, 1_000, 1_000]) {
      await clock.advance(afterMs)
      await nextTurn()
      sizes.push(inside())
    }
    expect(sizes).toEqual([4, 4, 4 + 8, 12 + 16, 28 + 32, 100])
    expect(clock.pendingTimers).toBe(0)
  })

  it('does not count who has been under way for a second', async () => {
    const { clock, enter, inside, window } = openWindow(REQUEST_WINDOW)
    window.widen()
    await clock.advance(900)
    for (let i = 0; i < 60; i++) await enter()
    await clock.advance(100)
    for (let i = 0; i < 5; i++) void enter()
    await clock.advance(899)
    expect(inside()).toBe(60)
    await clock.advance(1)
    expect(inside()).toBe(60 + 4)
    await clock.advance(100)
    expect(inside()).toBe(60 + 5)
  })

  it('lets few in again when all have left who had no answer', async () => {
    const { clock, enter, inside, leave } = openWindow(REQUEST_WINDOW)
    for (let i = 0; i < 12; i++) void enter()
    await clock.advance(1_000)
    for (let i = 0; i < 12; i++) leave()
    expect(inside()).toBe(0)
    for (let i = 0; i < 12; i++) void enter()
    await nextTurn()
    expect(inside()).toBe(4)
  })

  it('leaves no timer behind for one who left while it waited', async () => {
    const { clock, enter } = openWindow(REQUEST_WINDOW)
    for (let i = 0; i < 4; i++) await enter()
    const leaver = new AbortController()
    const left = enter(leaver.signal).catch((error: unknown) => error)
    expect(clock.pendingTimers).toBe(1)
    leaver.abort('left')
    expect(await left).toBe('left')
    expect(clock.pendingTimers).toBe(0)
  })

  it('lets nobody in while a refusal is looked into, whoever else is accepted meanwhile', async () => {
    const { clock, enter, inside, leave, window } = openWindow(REQUEST_WINDOW)
    await enter()
    window.widen()
    const ends = [window.hold(), window.hold()]
    for (let i = 0; i < 10; i++) void enter()
    window.widen()
    leave()
    await nextTurn()
    expect(inside()).toBe(0)
    ends[0]?.()
    // Twice is once.
    ends[0]?.()
    await clock.advance(999)
    expect(inside()).toBe(0)
    ends[1]?.()
    await nextTurn()
    expect(inside()).toBe(4)
  })

  it('lets few in when that takes more than a second, also then', async () => {
    const { clock, enter, inside, window } = openWindow(REQUEST_WINDOW)
    window.widen()
    window.hold()
    for (let i = 0; i < 10; i++) void enter()
    await clock.advance(1_000)
    expect(inside()).toBe(4)
    window.widen()
    await nextTurn()
    expect(inside()).toBe(4)
    // Not twice as many.
    await clock.advance(1_000)
    expect(inside()).toBe(8)
    expect(clock.pendingTimers).toBe(1)
  })

  it('is no longer open to those who entered before a refusal, until that is known', async () => {
    const { clock, window } = openWindow(REQUEST_WINDOW)
    const { signal } = new AbortController()
    const before = await window.enter(signal)
    expect(window.isOpenTo(before)).toBe(true)
    const end = window.hold()
    expect(window.isOpenTo(before)).toBe(false)
    await clock.advance(1_000)
    const after = await window.enter(signal)
    expect([before, after].map((ticket) => window.isOpenTo(ticket))).toEqual([false, true])
    end()
    expect(window.isOpenTo(before)).toBe(true)
  })

  it('lets all in who wait for a login that was refused', async () => {
    const { clock, enter, inside, window } = openWindow(REQUEST_WINDOW)
    for (let i = 0; i < 100; i++) void enter()
    window.admitAll()
    await nextTurn()
    expect(inside()).toBe(100)
    expect(clock.pendingTimers).toBe(0)
  })
})
