// All clients want the same new image at once.

import { createHash } from 'node:crypto'
import { beforeAll, beforeEach, expect, it } from 'vitest'
import { Cache, IS_COMPARISON } from './support/cache.ts'
import { CLIENTS, ClientSet } from './support/clients.ts'
import { asPushed, nameOf, Upstream } from './support/upstream.ts'
import { openWorkspace } from './support/workspace.ts'

/** Slow enough that the slowest client starts while the first layer is still on its way. */
const UPSTREAM_BYTES_PER_SECOND = 4_000_000
const LAYERS_BYTES = [12_000_000, 8_000_000, 12_000_000]

const HERD_SIZE = 50
const HERD_BLOB_BYTES = 100_000_000
const HERD_MEMORY_MAX_BYTES = 200e6

const workspace = openWorkspace()
let upstream: Upstream
let cache: Cache
let clients: ClientSet

beforeAll(async () => {
  upstream = await Upstream.start(workspace)
  cache = await Cache.start(workspace, upstream)
  clients = new ClientSet(workspace, { mirror: cache.address })
})

beforeEach(() => upstream.counts.reset())

/** Reads a body without keeping it. */
async function digestOfBody(url: string): Promise<string> {
  const response = await fetch(url)
  const hash = createHash('sha256')
  for await (const chunk of response.body ?? []) hash.update(chunk)
  return `sha256:${hash.digest('hex')}`
}

it('downloads a cold 100 MB blob once for fifty clients, in less than 200 MB of memory', async () => {
  const image = await upstream.push({
    repository: 'library/heavy',
    layerSizesBytes: [HERD_BLOB_BYTES],
  })
  const [digest] = [...image.objects].find(([, sizeBytes]) => sizeBytes >= HERD_BLOB_BYTES) ?? []
  const url = `${cache.url}/v2/${image.repository}/blobs/${digest}`

  const received = await Promise.all(Array.from({ length: HERD_SIZE }, () => digestOfBody(url)))

  expect(new Set(received)).toEqual(new Set([digest]))
  expect(upstream.counts.objectGets().get(digest ?? '')).toHaveLength(1)
  if (!IS_COMPARISON) expect(cache.peakMemoryBytes).toBeLessThan(HERD_MEMORY_MAX_BYTES)
})

it('downloads a cold image once while every client pulls it', async () => {
  const image = await upstream.push({
    repository: 'library/herd',
    kind: 'oci',
    layerSizesBytes: LAYERS_BYTES,
  })
  const ready = await Promise.all(CLIENTS.map((name) => clients.get(name)))
  upstream.counts.bodyBytesPerSecond = UPSTREAM_BYTES_PER_SECOND

  const pulled = await Promise.all(ready.map((client) => client.pull(nameOf(image))))

  expect(pulled).toEqual(CLIENTS.map(() => asPushed(image)))
  const sent = upstream.counts.objectGets()
  expect([...sent.keys()].sort()).toEqual([...image.objects.keys()].sort())
  expect([...sent.values()].filter(({ length }) => length > 1)).toEqual([])
})
