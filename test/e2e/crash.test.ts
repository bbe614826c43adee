// The cache is killed in the middle of a large pull.

import { beforeAll, expect, it } from 'vitest'
import { waitFor } from '../support/wait-for.ts'
import { Cache } from './support/cache.ts'
import { CLIENTS, ClientSet } from './support/clients.ts'
import { asPushed, nameOf, Upstream } from './support/upstream.ts'
import { openWorkspace } from './support/workspace.ts'

/** Docker fetches three layers at once: when half has arrived, every layer is incomplete. */
const LAYERS_BYTES = Array.from({ length: 3 }, () => 166_000_000)
const IMAGE_BYTES = LAYERS_BYTES.reduce((sum, bytes) => sum + bytes)

const workspace = openWorkspace()
let upstream: Upstream
let cache: Cache
let clients: ClientSet

beforeAll(async () => {
  upstream = await Upstream.start(workspace)
  cache = await Cache.start(workspace, upstream)
  clients = new ClientSet(workspace, { mirror: cache.address })
})

it.runIf(CLIENTS.includes('docker'))(
  'lets docker complete a pull that kill -9 broke, without downloading it all again',
  async () => {
    const image = await upstream.push({
      repository: 'library/big',
      layerSizesBytes: LAYERS_BYTES,
      isRunnable: false,
    })
    const docker = await clients.get('docker')
    const pull = docker.pull(nameOf(image))
    const isHalfway = (): boolean => upstream.counts.bodyBytes > IMAGE_BYTES / 2
    await Promise.race([
      waitFor('half of the image to be sent', isHalfway, { deadlineMs: 60_000 }),
      pull,
    ])
    await cache.crash()
    await cache.start()

    expect(await pull).toEqual(asPushed(image))
    // What had arrived is half of the image; to fetch that again would make it 1.5 images in all.
    expect(upstream.counts.bodyBytes).toBeLessThan(1.25 * IMAGE_BYTES)
    expect(upstream.counts.bodyBytes).toBeGreaterThanOrEqual(IMAGE_BYTES)
  },
)
