import { describe, expect, it } from 'vitest'
import { LoginWindow } from '../../../src/upstream/login-window.ts'
import { FakeClock } from '../../support/fake-clock.ts'
import { nextTurn } from '../../support/wait-for.ts'

function openWindow() {
  const clock = new FakeClock()
  const window = new LoginWindow(clock)
  let inside = 0
  const enter = (signal = new AbortController().signal): Promise<void> =>
    window.enter(signal).then(() => void inside++)
  const leave = (): void => {
    inside--
    window.leave()
  }
  return { clock, window, enter, leave, inside: () => inside }
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
