import { pino } from 'pino'
import { describe, expect, it, onTestFinished } from 'vitest'
import { FakeClock } from '../support/fake-clock.ts'
import { blobOf } from '../support/images.ts'
import { hasRedisServer, RedisServer } from '../support/redis-server.ts'
import { waitFor } from '../support/wait-for.ts'
import type { Digest } from '../../src/oci/digest.ts'
import {
  InMemoryDescriptorCache,
  noDescriptorCache,
  type DescriptorCache,
} from '../../src/storage/descriptor-cache.ts'
import { RedisDescriptorCache } from '../../src/storage/redis-descriptor-cache.ts'

const digestAt = (seed: number | string): Digest => blobOf(8, seed).digest

interface Implementation {
  readonly name: string
  readonly make: () => Promise<DescriptorCache>
}

const inMemory: Implementation = {
  name: 'in memory',
  make: async () => new InMemoryDescriptorCache({ entriesMax: 100 }),
}

function inRedis(name: string, password?: string): Implementation {
  return {
    name,
    make: async () => {
      const server = await RedisServer.start({ password })
      const logger = pino({ enabled: false })
      // The clock stands still: an answer is waited for, however busy the machine is.
      const deps = { clock: new FakeClock(), logger }
      return new RedisDescriptorCache(deps, { addresses: [server.address], password, database: 0 })
    },
  }
}

/** A note need not have been taken when `set` returns, nor need there be a connection yet. */
async function store(cache: DescriptorCache, digest: Digest, sizeBytes: number): Promise<void> {
  await waitFor(`${digest} to be cached`, async () => {
    cache.set(digest, { sizeBytes })
    return (await cache.get(digest))?.sizeBytes === sizeBytes
  })
}

const redis = [
  inRedis('in Redis'),
  inRedis('in Redis with a password', 'correct horse: "battery" ✓'),
]

describe.each([inMemory, ...(hasRedisServer ? redis : [])])(
  'a descriptor cache $name',
  ({ make }) => {
    async function makeCache(): Promise<DescriptorCache> {
      const cache = await make()
      onTestFinished(() => cache.close())
      return cache
    }

    it('knows nothing at first', async () => {
      const cache = await makeCache()
      await store(cache, digestAt('connected'), 1)
      expect(await cache.get(digestAt(1))).toBeUndefined()
    })

    it.each([0, 1, 5 * 2 ** 30, Number.MAX_SAFE_INTEGER])(
      'gives back a size of %i bytes',
      async (sizeBytes) => {
        const cache = await makeCache()
        await store(cache, digestAt(1), sizeBytes)
        expect(await cache.get(digestAt(1))).toEqual({ sizeBytes })
      },
    )

    it('keeps digests apart, also of different algorithms', async () => {
      const cache = await makeCache()
      await store(cache, digestAt(1), 1)
      await store(cache, blobOf(8, 1, 'sha512').digest, 2)
      expect(await cache.get(digestAt(1))).toEqual({ sizeBytes: 1 })
      expect(await cache.get(digestAt(2))).toBeUndefined()
    })

    it('replaces what it had', async () => {
      const cache = await makeCache()
      await store(cache, digestAt(1), 1)
      cache.set(digestAt(1), { sizeBytes: 2 })
      expect(await cache.get(digestAt(1))).toEqual({ sizeBytes: 2 })
    })

    it('forgets what is deleted, and nothing else', async () => {
      const cache = await makeCache()
      await store(cache, digestAt(1), 1)
      await store(cache, digestAt(2), 2)
      cache.delete(digestAt(1))
      cache.delete(digestAt('never there'))
      expect(await cache.get(digestAt(1))).toBeUndefined()
      expect(await cache.get(digestAt(2))).toEqual({ sizeBytes: 2 })
    })

    it('answers many questions at once', async () => {
      const cache = await makeCache()
      await store(cache, digestAt(1), 1)
      const answers = Array.from({ length: 100 }, () => cache.get(digestAt(1)))
      expect(new Set((await Promise.all(answers)).map((known) => known?.sizeBytes))).toEqual(
        new Set([1]),
      )
    })

    it('knows nothing once it is closed, and does not mind being asked', async () => {
      const cache = await makeCache()
      await store(cache, digestAt(1), 1)
      await cache.close()
      expect(await cache.get(digestAt(1))).toBeUndefined()
      cache.set(digestAt(2), { sizeBytes: 2 })
      cache.delete(digestAt(2))
      await cache.close()
    })
  },
)

describe('no descriptor cache', () => {
  it('never knows anything', async () => {
    noDescriptorCache.set(digestAt(1), { sizeBytes: 1 })
    noDescriptorCache.delete(digestAt(2))
    expect(await noDescriptorCache.get(digestAt(1))).toBeUndefined()
    await noDescriptorCache.close()
  })
})

describe('a descriptor cache in memory', () => {
  it('forgets what was not asked for the longest time when it is full', async () => {
    const cache = new InMemoryDescriptorCache({ entriesMax: 3 })
    for (const seed of [1, 2, 3]) cache.set(digestAt(seed), { sizeBytes: seed })
    await cache.get(digestAt(1))
    cache.set(digestAt(4), { sizeBytes: 4 })
    expect(await cache.get(digestAt(2))).toBeUndefined()
    for (const seed of [1, 3, 4]) {
      expect(await cache.get(digestAt(seed))).toEqual({ sizeBytes: seed })
    }
  })
})

// On a machine that is meant to run everything, what is missing must not look like success.
if (!hasRedisServer) {
  const isRequired = process.env['CI'] === 'true'
  it.skipIf(!isRequired)('descriptor caches in Redis: not tested, there is no redis-server', () => {
    expect(hasRedisServer).toBe(true)
  })
}
