// A disk that is full: before the start, and in the middle. A tmpfs of a few megabytes is filled to the brim.

import { spawnSync } from 'node:child_process'
import { createHash } from 'node:crypto'
import { existsSync, rmSync, writeFileSync } from 'node:fs'
import { join } from 'node:path'
import { beforeAll, expect, it } from 'vitest'
import { waitFor } from '../support/wait-for.ts'
import { Cache } from './support/cache.ts'
import { Upstream, type PushedImage } from './support/upstream.ts'
import { openWorkspace } from './support/workspace.ts'

const DISK_MIB = 24
const LAYER_BYTES = 2_000_000

const workspace = openWorkspace()
let upstream: Upstream
let cache: Cache
let disk: string
let image: PushedImage

const filler = (): string => join(disk, 'filler')

function fillDisk(): void {
  const result = spawnSync('dd', ['if=/dev/zero', `of=${filler()}`, 'bs=64k', 'count=10000'])
  expect(result.stderr.toString()).toContain('No space left')
}

beforeAll(async () => {
  disk = workspace.makeDirectory('small-disk')
  const mounted = spawnSync('mount', ['-t', 'tmpfs', '-o', `size=${DISK_MIB}m`, 'tmpfs', disk])
  expect(mounted.status, mounted.stderr.toString()).toBe(0)
  workspace.onClose(() => void spawnSync('umount', [disk]))
  fillDisk()
  upstream = await Upstream.start(workspace)
  image = await upstream.push({ repository: 'library/full', layerSizesBytes: [LAYER_BYTES] })
  cache = await Cache.start(workspace, upstream, {
    storage: { filesystem: { rootdirectory: join(disk, 'data') } },
    // What the disk refused is written down the next time that it is heard of.
    proxy: { tagttl: 0 },
  })
})

/** Gets everything that the image is made of. @returns what each body hashes to */
async function pull(): Promise<string[]> {
  const { repository, tag, objects } = image
  const manifest = await fetch(`${cache.url}/v2/${repository}/manifests/${tag}`)
  const bodies = [Buffer.from(await manifest.arrayBuffer())]
  for (const digest of objects.keys()) {
    if (digest === image.top.digest) continue
    const blob = await fetch(`${cache.url}/v2/${repository}/blobs/${digest}`)
    bodies.push(Buffer.from(await blob.arrayBuffer()))
  }
  return bodies.map((body) => `sha256:${createHash('sha256').update(body).digest('hex')}`)
}

const pathOf = (digest: string): string => {
  const hex = digest.slice('sha256:'.length)
  return join(disk, 'data/docker/registry/v2/blobs/sha256', hex.slice(0, 2), hex, 'data')
}

it('starts on a full disk and serves, keeping nothing', async () => {
  const pulled = await pull()

  expect(pulled.sort()).toEqual([...image.objects.keys()].sort())
  expect([...image.objects.keys()].filter((digest) => existsSync(pathOf(digest)))).toEqual([])
})

it('keeps what comes once there is room', async () => {
  rmSync(filler())

  await pull()

  await waitFor('everything to be stored', () =>
    [...image.objects.keys()].every((digest) => existsSync(pathOf(digest))),
  )
})

it('serves what it has after a restart on a disk that is full again', async () => {
  writeFileSync(filler(), '')
  fillDisk()
  await cache.restart()
  await upstream.goAway()

  const pulled = await pull()

  expect(pulled.sort()).toEqual([...image.objects.keys()].sort())
})
