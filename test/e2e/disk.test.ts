// A disk that is full, before the start and in the middle, has no room for one more file, or is read-only for a
// while. It is a tmpfs of a few megabytes.

import { spawnSync } from 'node:child_process'
import { createHash } from 'node:crypto'
import { existsSync, statfsSync } from 'node:fs'
import { join } from 'node:path'
import { afterEach, beforeAll, describe, expect, it } from 'vitest'
import { waitFor } from '../support/wait-for.ts'
import { Cache } from './support/cache.ts'
import { SmallDisk } from './support/small-disk.ts'
import { Upstream, type PushedImage } from './support/upstream.ts'
import { openWorkspace } from './support/workspace.ts'

const DISK_MIB = 24
const LAYER_BYTES = 2_000_000

const workspace = openWorkspace()
let upstream: Upstream
let cache: Cache
let disk: SmallDisk
let image: PushedImage

beforeAll(async () => {
  disk = new SmallDisk(workspace, DISK_MIB)
  disk.fill()
  upstream = await Upstream.start(workspace)
  image = await upstream.push({ repository: 'library/full', layerSizesBytes: [LAYER_BYTES] })
  cache = await Cache.start(workspace, upstream, {
    storage: { filesystem: { rootdirectory: join(disk.directory, 'data') } },
    // What the disk refused is written down the next time that it is heard of.
    proxy: { tagttl: 0 },
  })
})

afterEach(() => {
  const lines = cache.logLines()
  expect(lines.filter(({ isBug }) => isBug)).toEqual([])
  // Why the disk refuses is told where it refuses the download.
  expect(lines.filter(({ msg }) => msg.startsWith('could not tidy up'))).toEqual([])
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
  return join(disk.directory, 'data/docker/registry/v2/blobs/sha256', hex.slice(0, 2), hex, 'data')
}

it('starts on a full disk and serves, keeping nothing', async () => {
  const pulled = await pull()

  expect(pulled.sort()).toEqual([...image.objects.keys()].sort())
  expect([...image.objects.keys()].filter((digest) => existsSync(pathOf(digest)))).toEqual([])
})

it('keeps what comes once there is room', async () => {
  disk.makeRoom()

  await pull()

  await waitFor('everything to be stored', () =>
    [...image.objects.keys()].every((digest) => existsSync(pathOf(digest))),
  )
})

it('serves what it has after a restart on a disk that is full again', async () => {
  disk.fill()
  await cache.restart()
  await upstream.goAway()

  const pulled = await pull()

  expect(pulled.sort()).toEqual([...image.objects.keys()].sort())
})

const remount = (options: string): void => {
  const result = spawnSync('mount', ['-o', `remount,${options}`, disk.directory])
  expect(result.status, result.stderr.toString()).toBe(0)
}

describe('a disk', () => {
  it.each([
    [
      'is read-only',
      (): string => 'ro',
      'rw',
      /EROFS, the file system is read-only: mount it for writing/,
    ],
    [
      'takes no more files',
      (): string => {
        const { ffree, files } = statfsSync(disk.directory)
        return `nr_inodes=${files - ffree}`
      },
      'nr_inodes=10000',
      /ENOSPC, the disk is full: make room/,
    ],
  ])(
    'that %s serves all, says so, and keeps again when it is mended',
    async (what, ill, well, reason) => {
      disk.makeRoom()
      await upstream.comeBack()
      image = await upstream.push({
        repository: `library/${well.slice(0, 2)}`,
        layerSizesBytes: [LAYER_BYTES, 1000],
        // Nothing in common with what is stored.
        isRunnable: false,
      })
      const before = cache.logLines().length
      remount(ill())
      const all = [...image.objects.keys()].sort()

      expect((await pull()).sort()).toEqual(all)
      expect((await pull()).sort()).toEqual(all)
      const errors = cache
        .logLines()
        .slice(before)
        .filter(({ level }) => level === 'error')
      expect(errors.map(({ msg }) => msg)).toContainEqual(expect.stringMatching(reason))
      expect(all.filter((digest) => existsSync(pathOf(digest)))).toEqual([])

      remount(well)
      await waitFor(`what was pulled to be stored once the disk no more ${what}`, async () => {
        expect((await pull()).sort()).toEqual(all)
        return all.every((digest) => existsSync(pathOf(digest)))
      })
      await cache.crashAndRestart()
      await upstream.goAway()
      expect((await pull()).sort()).toEqual(all)
    },
  )
})
