// All clients want the same new image at once.

import { beforeAll, expect, it } from 'vitest'
import { Cache } from './support/cache.ts'
import { CLIENTS, ClientSet } from './support/clients.ts'
import { asPushed, nameOf, Upstream } from './support/upstream.ts'
import { openWorkspace } from './support/workspace.ts'

/** Slow enough that the slowest client starts while the first layer is still on its way. */
const UPSTREAM_BYTES_PER_SECOND = 4_000_000
const LAYERS_BYTES = [12_000_000, 8_000_000, 12_000_000]

const workspace = openWorkspace()
let upstream: Upstream
let clients: ClientSet

beforeAll(async () => {
  upstream = await Upstream.start(workspace)
  const cache = await Cache.start(workspace, upstream)
  clients = new ClientSet(workspace, cache.address)
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
