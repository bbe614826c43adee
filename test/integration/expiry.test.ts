// What nobody has used for proxy.ttl goes, with everything that belonged to it; what is used stays.

import { readdir, rm, writeFile } from 'node:fs/promises'
import { join } from 'node:path'
import { describe, expect, it } from 'vitest'
import { FakeClock } from '../support/fake-clock.ts'
import { startLayover, type Layover } from '../support/layover.ts'
import { blobOf, buildImage, type TestImage } from '../support/images.ts'
import { nextTurn, waitFor } from '../support/wait-for.ts'

const NAME = 'library/alpine'
const HOUR_MS = 3_600_000
const TTL_MS = 168 * HOUR_MS

async function pull(layover: Layover, name: string, image: TestImage): Promise<void> {
  await layover.get(`/v2/${name}/manifests/3`)
  for (const { digest } of [image.config, ...image.layers]) {
    await layover.get(`/v2/${name}/blobs/${digest}`)
    await layover.stored(digest)
  }
}

/** Lets time pass: a jump, and two hours in which the janitor has swept for sure. */
async function pass(clock: FakeClock, ms: number): Promise<void> {
  const steps = 20
  clock.jump(ms - 2 * HOUR_MS)
  for (let step = 0; step < steps; step++) {
    await clock.advance((2 * HOUR_MS) / steps)
    // Rounds of the janitor do real input and output, for which the fake clock does not wait.
    for (let turn = 0; turn < 20; turn++) await nextTurn()
  }
}

/** Folders that belong to some content. */
async function folders(layover: Layover): Promise<string[]> {
  const top = join(layover.rootDirectory, 'docker')
  const entries = await readdir(top, { recursive: true, withFileTypes: true }).catch(() => [])
  const names = entries.filter((entry) => entry.isDirectory()).map(({ name }) => name)
  return names.filter((name) => !['registry', 'v2', 'blobs', 'repositories'].includes(name))
}

describe('content that nobody has used for proxy.ttl', () => {
  it('is announced when it is stored, and gone with its links, tags and folders after', async () => {
    const clock = new FakeClock()
    const { layover, upstream } = await startLayover({ clock })
    const image = buildImage({ layers: [300_000, 100] })
    upstream.addImage(NAME, '3', image)
    await pull(layover, NAME, image)
    for (const { digest } of [image.manifest, image.config, ...image.layers]) {
      const line = `Adding new scheduler entry for ${NAME}@${digest} with ttl=168h0m0s`
      expect(layover.messages().filter((message) => message === line)).toHaveLength(1)
    }

    await pass(clock, TTL_MS - HOUR_MS)
    expect(await layover.files('docker')).not.toEqual([])
    await pass(clock, 3 * HOUR_MS)
    await waitFor('everything to be gone', async () => {
      await clock.advance(HOUR_MS)
      return (await layover.files('docker')).length === 0
    })
    // Folders go after the files in them.
    await waitFor('the folders to be gone', async () => (await folders(layover)).length === 0)
    await waitFor('the last word', () => {
      return layover.messages().filter((line) => line.startsWith('Deleting blob: ')).length === 4
    })
    expect(layover.messages()).toContain(`Deleting blob: ${image.layers[0]?.digest}`)
    expect(await layover.metric('layover_removed_blobs_total')).toBe(4)

    upstream.reset()
    await pull(layover, NAME, image)
    expect(upstream.count({ method: 'GET' })).toBe(4)
  })

  it('stays as long as somebody uses it', async () => {
    const clock = new FakeClock()
    const { layover, upstream } = await startLayover({ clock })
    const image = buildImage({ layers: [300_000] })
    upstream.addImage(NAME, '3', image)
    await pull(layover, NAME, image)
    for (let round = 0; round < 4; round++) {
      await pass(clock, TTL_MS / 2)
      await pull(layover, NAME, image)
    }
    expect(upstream.count({ method: 'GET' })).toBe(3)
  })

  it('stays when only its HEAD is asked for', async () => {
    const clock = new FakeClock()
    const { layover, upstream } = await startLayover({ clock })
    const blob = blobOf(300_000, 'headed')
    upstream.addBlob(NAME, blob)
    await layover.get(`/v2/${NAME}/blobs/${blob.digest}`)
    await layover.stored(blob.digest)
    for (let round = 0; round < 4; round++) {
      await pass(clock, TTL_MS / 2)
      await layover.head(`/v2/${NAME}/blobs/${blob.digest}`)
    }
    expect(await layover.files('docker')).toHaveLength(2)
  })

  it('keeps its bytes until no repository links them any more', async () => {
    const clock = new FakeClock()
    const { layover, upstream } = await startLayover({ clock })
    const blob = blobOf(300_000, 'shared')
    upstream.addBlob('a/one', blob)
    upstream.addBlob('b/two', blob)
    await layover.get(`/v2/a/one/blobs/${blob.digest}`)
    await layover.stored(blob.digest)
    await layover.get(`/v2/b/two/blobs/${blob.digest}`)
    await pass(clock, TTL_MS / 2)
    await layover.get(`/v2/b/two/blobs/${blob.digest}`)
    await waitFor('the first link to go', async () => {
      await clock.advance(HOUR_MS)
      return (await layover.files('docker')).length === 2
    })
    expect((await layover.files('docker')).join()).toContain('b/two')
    upstream.reset()
    expect((await layover.get(`/v2/b/two/blobs/${blob.digest}`)).status).toBe(200)
    expect(upstream.count()).toBe(0)
  })

  it('leaves nothing behind if it was asked for both as a manifest and as a blob', async () => {
    const clock = new FakeClock()
    const { layover, upstream } = await startLayover({ clock })
    const image = buildImage()
    const { digest } = image.manifest
    upstream.addImage(NAME, '3', image)
    upstream.addBlob(NAME, image.manifest)
    await layover.get(`/v2/${NAME}/manifests/3`)
    await layover.get(`/v2/${NAME}/blobs/${digest}`)
    expect(await layover.files('docker')).toHaveLength(5)
    await waitFor('everything to be gone', async () => {
      await clock.advance(HOUR_MS * 24)
      return !(await layover.files('docker')).some((file) => file.includes('blobs/sha256'))
    })
    expect(await layover.files('docker')).toEqual([])
  })

  it('is known after a restart', async () => {
    const clock = new FakeClock()
    const { layover, upstream } = await startLayover({ clock })
    const [old, used] = [blobOf(300_000, 'old'), blobOf(300_000, 'used')]
    for (const blob of [old, used]) {
      upstream.addBlob(NAME, blob)
      await layover.get(`/v2/${NAME}/blobs/${blob.digest}`)
      await layover.stored(blob.digest)
    }
    await pass(clock, TTL_MS / 2)
    await layover.get(`/v2/${NAME}/blobs/${used.digest}`)
    await layover.restart()
    await pass(clock, TTL_MS / 2 + HOUR_MS)
    await waitFor('the old one to go', async () => {
      await clock.advance(HOUR_MS)
      return (await layover.files('docker')).length === 2
    })
    expect((await layover.files('docker')).join()).toContain(used.digest.slice(7))
  })

  it('stays for ever with a ttl of 0', async () => {
    const clock = new FakeClock()
    const { layover, upstream } = await startLayover({
      clock,
      configuration: { proxy: { ttl: '0' } },
    })
    const blob = blobOf(300_000, 'for ever')
    upstream.addBlob(NAME, blob)
    await layover.get(`/v2/${NAME}/blobs/${blob.digest}`)
    await layover.stored(blob.digest)
    await pass(clock, 100 * TTL_MS)
    expect(await layover.files('docker')).toHaveLength(2)
    expect(layover.messages().join()).not.toContain('scheduler entry')
  })
})

describe('an index of last uses', () => {
  const injuries: [string, (directory: string) => Promise<void>][] = [
    ['lost', (directory) => rm(directory, { recursive: true })],
    ['empty', (directory) => writeFile(join(directory, 'content.mdb'), '')],
  ]

  it.each(injuries)(
    'that is %s is rebuilt from the volume, and nothing is lost',
    async (_, injure) => {
      const clock = new FakeClock()
      const { layover, upstream } = await startLayover({ clock })
      const image = buildImage({ layers: [300_000] })
      upstream.addImage(NAME, '3', image)
      await pull(layover, NAME, image)
      const files = await layover.files('docker')
      await layover.stop()
      await injure(join(layover.rootDirectory, 'layover/index'))
      await layover.start()
      upstream.reset()
      await waitFor('the scan', async () => {
        await clock.advance(1)
        return layover.messages().some((line) => line.startsWith('found 3 blobs'))
      })
      await pass(clock, TTL_MS / 4)
      expect(await layover.files('docker')).toEqual(files)
      const [layer] = image.layers
      expect((await layover.get(`/v2/${NAME}/blobs/${layer?.digest}`)).status).toBe(200)
      expect(upstream.count()).toBe(0)
      await waitFor('everything to be gone', async () => {
        await clock.advance(12 * HOUR_MS)
        return (await layover.files('docker')).length === 0
      })
    },
  )
})

describe('a download that nobody resumed', () => {
  it('is removed after the age that the configuration names', async () => {
    const clock = new FakeClock(Date.now())
    const { layover, upstream } = await startLayover({ clock })
    const blob = blobOf(2_000_000, 'unfinished')
    upstream.addBlob(NAME, blob)
    const gate = upstream.gate({ kind: 'blob' }, { afterBytes: 1_000_000 })
    const client = await layover.open(`/v2/${NAME}/blobs/${blob.digest}`)
    await client.read(1000)
    client.leave()
    await layover.stop()
    gate.release()
    expect(await layover.files('layover/spool')).toHaveLength(1)
    await layover.start()
    await waitFor('the part to go', async () => {
      await clock.advance(HOUR_MS)
      return (await layover.files('layover/spool')).length === 0
    })
    expect(clock.monotonic()).toBeGreaterThan(TTL_MS - HOUR_MS)
  })
})
