import { describe, expect, it } from 'vitest'
import { UpstreamHealth } from '../../../src/cache/upstream-health.ts'
import { UpstreamError } from '../../../src/upstream/upstream-error.ts'
import { FakeClock } from '../../support/fake-clock.ts'

const outage = new UpstreamError('timeout', 'hub did not answer')

async function failing(): Promise<{ clock: FakeClock; health: UpstreamHealth }> {
  const clock = new FakeClock()
  const health = new UpstreamHealth({ clock })
  await expect(health.observe(Promise.reject(outage))).rejects.toBe(outage)
  return { clock, health }
}

describe('an upstream that failed', () => {
  it('is not asked for ten seconds', async () => {
    const { clock, health } = await failing()
    expect(health.admit()).toBe(outage)
    await clock.advance(9_999)
    expect(health.admit()).toBe(outage)
  })

  it('is then asked by one caller, while the others need not wait for what that one finds', async () => {
    const { clock, health } = await failing()
    await clock.advance(10_000)
    expect([health.admit(), health.admit(), health.admit()]).toEqual([undefined, outage, outage])
  })

  it('is asked by everybody once it has answered', async () => {
    const { clock, health } = await failing()
    await clock.advance(10_000)
    health.admit()
    await health.observe(Promise.resolve('an answer'))
    expect([health.admit(), health.admit()]).toEqual([undefined, undefined])
  })

  it.each(['not-found', 'denied'] as const)(
    'is asked by everybody once it has answered, if only %s',
    async (kind) => {
      const { clock, health } = await failing()
      await clock.advance(10_000)
      health.admit()
      const answer = new UpstreamError(kind, 'no')
      await expect(health.observe(Promise.reject(answer))).rejects.toBe(answer)
      expect([health.admit(), health.admit()]).toEqual([undefined, undefined])
    },
  )

  it('is tried again if the one who was to find out never told', async () => {
    const { clock, health } = await failing()
    await clock.advance(10_000)
    health.admit()
    await clock.advance(30_000)
    expect(health.admit()).toBeUndefined()
  })

  it('is left alone as long as it asks for, but a minute at most', async () => {
    const clock = new FakeClock()
    const health = new UpstreamHealth({ clock })
    const busy = new UpstreamError('rate-limited', 'too many', { retryAfterMs: 3_600_000 })
    await expect(health.observe(Promise.reject(busy))).rejects.toBe(busy)
    await clock.advance(59_999)
    expect(health.admit()).toBe(busy)
    await clock.advance(1)
    expect(health.admit()).toBeUndefined()
  })
})

it.each(['not-found', 'denied', 'bad-response'] as const)(
  '%s is an answer, and no outage',
  async (kind) => {
    const health = new UpstreamHealth({ clock: new FakeClock() })
    const answer = new UpstreamError(kind, 'no')
    await expect(health.observe(Promise.reject(answer))).rejects.toBe(answer)
    expect(health.admit()).toBeUndefined()
  },
)
