import { Readable } from 'node:stream'
import { pino } from 'pino'
import { describe, expect, it } from 'vitest'
import { BlobFill, type BlobFillDeps, type BlobFillOptions } from '../../../src/cache/blob-fill.ts'
import type { Repository } from '../../../src/cache/repositories.ts'
import { Metrics } from '../../../src/telemetry/metrics.ts'
import { FakeClock } from '../../support/fake-clock.ts'
import { blobOf } from '../../support/images.ts'
import { nextTurn, within } from '../../support/wait-for.ts'

const KEEPER = { filesBytes: 0, links: () => [], onStored: () => Promise.resolve() }
const HUNG = new Promise<void>(() => undefined)

/** A download beside a disk that is behind. It ends with its first byte: there is no room for a spool. */
function begin(options: {
  readonly keeper: BlobFillOptions['keeper']
  readonly pace: { keep(): Promise<void> | undefined; takes(): boolean }
}) {
  const { keeper, pace } = options
  let asked = 0
  let reserved = 0
  const opened: boolean[] = []
  const { bytes, digest } = blobOf(10, 'pace')
  const getBlob = (): Promise<unknown> => {
    asked++
    const body = Readable.from([bytes])
    return Promise.resolve({ body, sizeBytes: 10, startOffset: 0, sentBy: 'hub' })
  }
  const deps = {
    clock: new FakeClock(),
    logger: pino({ enabled: false }),
    metrics: new Metrics(),
    pace,
    budget: {
      reserve: () => {
        reserved++
        return Promise.resolve(undefined)
      },
    },
    storage: { attempt: (action: () => unknown) => action() },
    spools: {
      claim: () => 0,
      unclaim: () => undefined,
      open: (_digest: unknown, { isKept }: { isKept: boolean }) => {
        opened.push(isKept)
        return Promise.reject(new Error('no room'))
      },
    },
  } as unknown as BlobFillDeps
  const repository = {
    name: 'some/image',
    storedName: 'some/image',
    upstream: { name: 'hub', storedPrefix: undefined, remoteUrl: 'https://hub.test' },
    registry: { getBlob },
  } as unknown as Repository
  const about = { repository, digest, expectedSizeBytes: 10, deadlineMs: 25_000 }
  const fill = new BlobFill(deps, { ...about, keeper })
  return { asked: () => asked, fill, opened, reserved: () => reserved }
}

describe('a download while the disk is behind', () => {
  it('asks the upstream when the disk has caught up', async () => {
    const go: (() => void)[] = []
    const caughtUp = new Promise<void>((resolve) => go.push(resolve))
    const pace = { keep: () => caughtUp, takes: () => true }
    const { asked, fill } = begin({ keeper: KEEPER, pace })
    await nextTurn()
    expect(asked()).toBe(0)
    for (const resolve of go) resolve()
    await within('the download', fill.ended)
    expect(asked()).toBe(1)
  })

  it('asks the upstream at once, when nothing is to be kept', async () => {
    const pace = { keep: () => HUNG, takes: () => true }
    const { asked, fill } = begin({ keeper: undefined, pace })
    await within('the download', fill.ended)
    expect(asked()).toBe(1)
  })

  it('is not kept when too much waits already, and takes no room', async () => {
    const pace = { keep: () => undefined, takes: () => false }
    const { fill, opened, reserved } = begin({ keeper: KEEPER, pace })
    await within('the download', fill.ended)
    expect(opened[0]).toBe(false)
    expect(reserved()).toBe(0)
  })
})
