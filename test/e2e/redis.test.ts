// Redis as descriptor cache: a help while it is there, and not missed when it is gone.

import { beforeAll, expect, it } from 'vitest'
import { Cache } from './support/cache.ts'
import { CLIENTS, ClientSet, type PulledImage } from './support/clients.ts'
import { Redis } from './support/redis.ts'
import { asPushed, nameOf, Upstream, type PushedImage } from './support/upstream.ts'
import { openWorkspace } from './support/workspace.ts'

const workspace = openWorkspace()
let redis: Redis
let upstream: Upstream
let clients: ClientSet
let warm: PushedImage

beforeAll(async () => {
  redis = await Redis.start(workspace)
  upstream = await Upstream.start(workspace)
  warm = await upstream.push({ repository: 'library/warm', kind: 'oci', isMultiPlatform: true })
  const cache = await Cache.start(workspace, upstream, {
    storage: { cache: { blobdescriptor: 'redis' } },
    redis: redis.configuration,
  })
  clients = new ClientSet(workspace, { mirror: cache.address })
})

it('serves every client, and remembers in Redis what it has learnt', async () => {
  expect(await redis.size()).toBe(0)
  expect(await pullWithAll(warm)).toEqual(CLIENTS.map(() => asPushed(warm)))
  expect(await redis.size()).toBeGreaterThan(0)
})

it('serves what it has, and fetches what it lacks, after Redis was killed', async () => {
  const cold = await upstream.push({ repository: 'library/cold' })
  await redis.kill()
  expect(await pullWithAll(warm)).toEqual(CLIENTS.map(() => asPushed(warm)))
  expect(await pullWithAll(cold)).toEqual(CLIENTS.map(() => asPushed(cold)))
})

async function pullWithAll(image: PushedImage): Promise<PulledImage[]> {
  const pulled: PulledImage[] = []
  for (const name of CLIENTS) {
    const client = await clients.get(name)
    pulled.push(await client.pull(nameOf(image)))
    await client.remove(nameOf(image))
  }
  return pulled
}
