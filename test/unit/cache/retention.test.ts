import { describe, expect, it } from 'vitest'
import { Retention } from '../../../src/cache/retention.ts'
import { digestOf, type Digest } from '../../../src/oci/digest.ts'
import { parseRepositoryName, type RepositoryName } from '../../../src/oci/reference.ts'
import type { Link } from '../../../src/storage/repository-index.ts'
import { createLogger } from '../../../src/telemetry/logger.ts'
import { FakeClock } from '../../support/fake-clock.ts'

const TTL_MS = 168 * 3_600_000

function name(text: string): RepositoryName {
  const parsed = parseRepositoryName(text)
  if (!parsed) throw new Error(`no repository name: ${text}`)
  return parsed
}

function digest(text: string): Digest {
  return digestOf(Buffer.from(text))
}

const LINK: Link = { repository: name('library/alpine'), digest: digest('a'), kind: 'blob' }

function retentionOf(ttlMs = TTL_MS): { retention: Retention; clock: FakeClock; lines: string[] } {
  const clock = new FakeClock()
  const lines: string[] = []
  const logger = createLogger(
    { clock, destination: { write: (line) => lines.push(line) } },
    { level: 'info', formatter: 'text', fields: {} },
  )
  return {
    retention: new Retention({ clock, logger }, { ttlMs, ttlText: '168h0m0s' }),
    clock,
    lines,
  }
}

describe('retention', () => {
  it('notes the last use of each link once, until somebody takes the notes', async () => {
    const { clock, retention } = retentionOf()
    retention.touch(LINK)
    await clock.advance(1000)
    retention.touch(LINK)
    retention.touch({ ...LINK, repository: name('other') })
    const taken = retention.takePending()
    expect(taken.map(({ lastUsedMs, repository }) => [repository, lastUsedMs])).toEqual([
      ['library/alpine', clock.now()],
      ['other', clock.now()],
    ])
    expect(retention.takePending()).toEqual([])
  })

  it('knows whether a use is noted that was not taken yet', () => {
    const { clock, retention } = retentionOf()
    const entry = { ...LINK, lastUsedMs: clock.now() }
    expect(retention.hasPending(entry)).toBe(false)
    retention.touch(LINK)
    expect(retention.hasPending(entry)).toBe(true)
    retention.takePending()
    expect(retention.hasPending(entry)).toBe(false)
  })

  it('has content due once it was not used for the ttl', async () => {
    const { clock, retention } = retentionOf()
    const entry = { ...LINK, lastUsedMs: clock.now() }
    await clock.advance(TTL_MS - 1)
    expect(retention.isDue(entry)).toBe(false)
    await clock.advance(1)
    expect(retention.isDue(entry)).toBe(true)
  })

  it('has nothing due with a ttl of 0, and says nothing of one', async () => {
    const { clock, lines, retention } = retentionOf(0)
    retention.add(LINK)
    const entry = { ...LINK, lastUsedMs: clock.now() }
    await clock.advance(1e15)
    expect(retention.isDue(entry)).toBe(false)
    expect(lines).toEqual([])
  })

  it('says of what is new what operators of registry:2 look for', () => {
    const { lines, retention } = retentionOf()
    retention.add(LINK)
    expect(lines.join()).toContain(
      `Adding new scheduler entry for library/alpine@${LINK.digest} with ttl=168h0m0s`,
    )
  })

  it('spreads what it finds on disk over half a ttl, each digest always to the same time', () => {
    const { clock, retention } = retentionOf()
    const ages = Array.from({ length: 200 }, (_, index) => {
      const found = digest(String(index))
      expect(retention.assumedLastUseMs(found)).toBe(retention.assumedLastUseMs(found))
      return clock.now() - retention.assumedLastUseMs(found)
    })
    expect(Math.min(...ages)).toBeGreaterThanOrEqual(0)
    expect(Math.max(...ages)).toBeLessThanOrEqual(TTL_MS / 2)
    expect(Math.max(...ages) - Math.min(...ages)).toBeGreaterThan(TTL_MS / 3)
  })
})
