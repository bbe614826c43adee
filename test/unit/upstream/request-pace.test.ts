import { describe, expect, it } from 'vitest'
import { RequestPace } from '../../../src/upstream/request-pace.ts'
import { FakeClock } from '../../support/fake-clock.ts'
import { failureOf } from './small-server.ts'

const { signal } = new AbortController()

describe('the pace of requests', () => {
  it('lets as many go at once as a second allows, and the next ones in their turn', async () => {
    const clock = new FakeClock()
    const pace = new RequestPace(clock, { name: 'hub', perSecond: 4 })
    let gone = 0
    for (let i = 0; i < 6; i++) void pace.take(signal).then(() => gone++)
    await clock.advance(0)
    expect(gone).toBe(4)
    await clock.advance(250)
    expect(gone).toBe(5)
    await clock.advance(250)
    expect(gone).toBe(6)
  })

  it('says at once that the wait would be too long', async () => {
    const clock = new FakeClock()
    const pace = new RequestPace(clock, { name: 'hub', perSecond: 1 })
    const waiting = Array.from({ length: 11 }, () => pace.take(signal))
    const error = await failureOf(pace.take(signal))
    expect([error.kind, error.retryAfterMs]).toEqual(['rate-limited', 11_000])
    await clock.advance(10_000)
    await Promise.all(waiting)
  })

  it('ends a wait when its caller leaves', async () => {
    const pace = new RequestPace(new FakeClock(), { name: 'hub', perSecond: 1 })
    await pace.take(signal)
    const caller = new AbortController()
    const call = pace.take(caller.signal)
    caller.abort(new Error('left'))
    await expect(call).rejects.toThrow('left')
  })
})
