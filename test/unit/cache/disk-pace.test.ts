import { describe, expect, it } from 'vitest'
import { keepPace } from '../../../src/cache/disk-pace.ts'
import { FakeClock } from '../../support/fake-clock.ts'
import { nextTurn, within } from '../../support/wait-for.ts'

const HUNG = new Promise<void>(() => undefined)

function diskThatCatchesUp(after: Promise<void>) {
  return { caughtUp: () => after }
}

describe('a download of something that is to be kept', () => {
  const { signal } = new AbortController()

  it('begins at once when the disk keeps up', () => {
    const deps = { clock: new FakeClock(), blobs: { caughtUp: () => undefined } }
    expect(keepPace(deps, signal)).toBeUndefined()
  })

  it('begins when the disk has caught up', async () => {
    const clock = new FakeClock()
    const begun = keepPace({ clock, blobs: diskThatCatchesUp(nextTurn()) }, signal)
    expect(begun).toBeDefined()
    await within('the download', Promise.resolve(begun))
    expect(clock.pendingTimers).toBe(0)
  })

  it('does not wait for a disk that hangs', async () => {
    const clock = new FakeClock()
    const begun = keepPace({ clock, blobs: diskThatCatchesUp(HUNG) }, signal)
    await clock.advance(1_000)
    await within('the download', Promise.resolve(begun))
  })

  it('does not wait when it is stopped', async () => {
    const clock = new FakeClock()
    const stop = new AbortController()
    const begun = keepPace({ clock, blobs: diskThatCatchesUp(HUNG) }, stop.signal)
    stop.abort()
    await within('the download', Promise.resolve(begun))
    expect(clock.pendingTimers).toBe(0)
  })
})
