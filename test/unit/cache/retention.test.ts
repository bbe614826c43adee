import { describe, expect, it } from 'vitest'
import { Retention, type RetentionOptions } from '../../../src/cache/retention.ts'
import { digestOf, type Digest } from '../../../src/oci/digest.ts'
import { parseRepositoryName, type RepositoryName, type Tag } from '../../../src/oci/reference.ts'
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

const ALPINE = name('library/alpine')

const formatTtl = (ttlMs: number): string => `${ttlMs} ms`

function retentionOf(options: Partial<RetentionOptions> = {}): {
  retention: Retention
  clock: FakeClock
} {
  const clock = new FakeClock()
  return {
    retention: new Retention({ clock }, { ttlMs: TTL_MS, rules: [], formatTtl, ...options }),
    clock,
  }
}

describe('retention', () => {
  it('has content due once it was not used for the ttl', async () => {
    const { clock, retention } = retentionOf()
    const usedMs = clock.now()
    await clock.advance(TTL_MS - 1)
    expect(retention.isDue(ALPINE, usedMs)).toBe(false)
    expect(retention.isDueUnlinked(usedMs)).toBe(false)
    await clock.advance(1)
    expect(retention.isDue(ALPINE, usedMs)).toBe(true)
    expect(retention.isDueUnlinked(usedMs)).toBe(true)
  })

  it('has nothing due with a ttl of 0, and says nothing of one', async () => {
    const { clock, retention } = retentionOf({ ttlMs: 0 })
    const usedMs = clock.now()
    await clock.advance(1e15)
    expect(retention.isDue(ALPINE, usedMs)).toBe(false)
    expect(retention.isDueUnlinked(usedMs)).toBe(false)
    expect(retention.ttlTextOf(ALPINE)).toBeUndefined()
  })

  it('goes by the first rule for ttl that matches, then by upstream, then by proxy.ttl', () => {
    const { retention } = retentionOf({
      ttlMsOf: (repository) => (repository.startsWith('ghcr.io/') ? 5 : undefined),
      rules: [
        { match: 'ci/keep', isPinned: true, ttlMs: undefined },
        { match: 'ci/*:v*', isPinned: true, ttlMs: undefined },
        { match: 'ci/*', isPinned: false, ttlMs: 1 },
        { match: 'ci/**', isPinned: false, ttlMs: 2 },
        { match: 'for/ever', isPinned: false, ttlMs: 0 },
        { match: 'ghcr.io/org/*', isPinned: false, ttlMs: 4 },
      ],
    })
    const ttls = {
      'ci/a': 1,
      'ci/keep': 1,
      'ci/a/b': 2,
      'for/ever': 0,
      'ghcr.io/org/a': 4,
      'ghcr.io/other': 5,
      'library/alpine': TTL_MS,
    }
    for (const [repository, ttlMs] of Object.entries(ttls)) {
      expect(retention.ttlMsOf(name(repository)), repository).toBe(ttlMs)
      // The second time from memory.
      expect(retention.ttlMsOf(name(repository)), repository).toBe(ttlMs)
    }
    expect(retention.ttlTextOf(name('ci/a'))).toBe('1 ms')
    expect(retention.ttlTextOf(name('for/ever'))).toBeUndefined()
    expect(retention.ttlMinMs).toBe(1)
  })

  it('knows the shortest ttl that anything has', () => {
    const rules = [{ match: 'a', isPinned: false, ttlMs: 0 }]
    expect(retentionOf({ ttlMs: 0, rules }).retention.ttlMinMs).toBe(0)
    expect(retentionOf({ ttlMs: 7, rules }).retention.ttlMinMs).toBe(7)
  })

  it('pins repositories, or only some of their tags', () => {
    const { retention } = retentionOf({
      rules: [
        { match: 'library/node', isPinned: true, ttlMs: undefined },
        { match: 'library/*:*', isPinned: false, ttlMs: 1 },
        { match: 'team/*:v?', isPinned: true, ttlMs: undefined },
      ],
    })
    expect(retention.hasPins).toBe(true)
    expect(retention.isPinned(name('library/node'))).toBe(true)
    expect(retention.isPinned(name('library/alpine'))).toBe(false)
    expect(retention.isPinned(name('team/a'))).toBe(false)
    expect(retention.mayPinTags(name('team/a'))).toBe(true)
    expect(retention.mayPinTags(name('library/node'))).toBe(false)
    expect(retention.isTagPinned(name('team/a'), 'v1' as Tag)).toBe(true)
    expect(retention.isTagPinned(name('team/a'), 'latest' as Tag)).toBe(false)
    expect(retention.isTagPinned(name('library/node'), 'v1' as Tag)).toBe(false)
    expect(retentionOf().retention.hasPins).toBe(false)
  })

  it('takes no rule that could never match', () => {
    const rules = [{ match: 'a b', isPinned: true, ttlMs: undefined }]
    expect(() => retentionOf({ rules })).toThrow('a b is no pattern')
  })

  it('spreads what it finds on disk over half a ttl, each digest always to the same time', () => {
    const { clock, retention } = retentionOf()
    const ages = Array.from({ length: 200 }, (_, index) => {
      const found = digest(String(index))
      const usedMs = retention.assumedLastUseMs(found, ALPINE)
      expect(retention.assumedLastUseMs(found, ALPINE)).toBe(usedMs)
      return clock.now() - usedMs
    })
    expect(Math.min(...ages)).toBeGreaterThanOrEqual(0)
    expect(Math.max(...ages)).toBeLessThanOrEqual(TTL_MS / 2)
    expect(Math.max(...ages) - Math.min(...ages)).toBeGreaterThan(TTL_MS / 3)
  })

  it('believes what registry says of what it finds, as far as it lies later, and not in the future', () => {
    const { clock, retention } = retentionOf()
    const found = digest('found')
    const assumedMs = retention.assumedLastUseMs(found, ALPINE)
    const lastUse = (expiresInMs: number): number =>
      retention.assumedLastUseMs(found, ALPINE, clock.now() + expiresInMs)
    expect(lastUse(0)).toBe(assumedMs)
    expect(lastUse(TTL_MS - 10)).toBe(clock.now() - 10)
    expect(lastUse(10 * TTL_MS)).toBe(clock.now())
    // Whatever is told of a use is later.
    expect(clock.now() - retention.oldestAssumedUseMs).toBe(TTL_MS / 2)
  })
})
