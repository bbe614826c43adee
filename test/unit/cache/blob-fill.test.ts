import { pino } from 'pino'
import { describe, expect, it } from 'vitest'
import { BlobFill, type BlobFillDeps, type BlobFillOptions } from '../../../src/cache/blob-fill.ts'
import type { Repository } from '../../../src/cache/repositories.ts'
import { Metrics } from '../../../src/telemetry/metrics.ts'
import { UpstreamError } from '../../../src/upstream/upstream-error.ts'
import { FakeClock } from '../../support/fake-clock.ts'
import { blobOf } from '../../support/images.ts'
import { nextTurn, within } from '../../support/wait-for.ts'

const KEEPER = { filesBytes: 0, links: () => [], onStored: () => Promise.resolve() }

/** A download from an upstream that has nothing, beside a disk that has not caught up. */
function begin(keeper: BlobFillOptions['keeper']) {
  let asked = 0
  const getBlob = (): Promise<never> => {
    asked++
    return Promise.reject(new UpstreamError('not-found', 'not there'))
  }
  const clock = new FakeClock()
  const deps = {
    clock,
    logger: pino({ enabled: false }),
    metrics: new Metrics(),
    blobs: { caughtUp: () => new Promise<void>(() => undefined) },
    spools: { claim: () => 0, unclaim: () => undefined },
  } as unknown as BlobFillDeps
  const repository = {
    name: 'some/image',
    storedName: 'some/image',
    upstream: { name: 'hub', storedPrefix: undefined, remoteUrl: 'https://hub.test' },
    registry: { getBlob },
  } as unknown as Repository
  const { digest } = blobOf(10, 'pace')
  const options = { repository, digest, expectedSizeBytes: 10, deadlineMs: 25_000, keeper }
  const fill = new BlobFill(deps, options)
  return { asked: () => asked, clock, fill }
}

describe('a download while the disk has not caught up', () => {
  it('asks the upstream later, when it is to be kept', async () => {
    const { asked, clock, fill } = begin(KEEPER)
    await nextTurn()
    expect(asked()).toBe(0)
    await clock.advance(1_000)
    await within('the download', fill.ended)
    expect(asked()).toBe(1)
  })

  it('asks the upstream at once, when it is not', async () => {
    const { asked, fill } = begin(undefined)
    await within('the download', fill.ended)
    expect(asked()).toBe(1)
  })

  it('is stopped at once', async () => {
    const { fill } = begin(KEEPER)
    await nextTurn()
    await within('the stop', fill.stop())
  })
})
