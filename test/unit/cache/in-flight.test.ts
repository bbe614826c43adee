import { describe, expect, it } from 'vitest'
import { InFlight } from '../../../src/cache/in-flight.ts'

describe('calls in flight', () => {
  it('of one key are one call, whose outcome all share', async () => {
    const calls = new InFlight<string, number>()
    let started = 0
    const start = async (): Promise<number> => ++started
    const shared = [calls.run('a', start), calls.run('a', start), calls.run('b', start)]
    expect(shared.map(({ isJoined }) => isJoined)).toEqual([false, true, false])
    expect(await Promise.all(shared.map(({ value }) => value))).toEqual([1, 1, 2])
  })

  it('fail for all who share them, and leave nothing behind', async () => {
    const calls = new InFlight<string, number>()
    const failing = [0, 1].map(
      () => calls.run('a', () => Promise.reject(new Error('it broke'))).value,
    )
    for (const outcome of await Promise.allSettled(failing)) expect(outcome.status).toBe('rejected')
    const next = calls.run('a', async () => 7)
    expect(next.isJoined).toBe(false)
    expect(await next.value).toBe(7)
  })

  it('are over before whoever waited for them goes on', async () => {
    const calls = new InFlight<string, number>()
    await calls.run('a', async () => 1).value
    expect(calls.run('a', async () => 2).isJoined).toBe(false)
  })
})
