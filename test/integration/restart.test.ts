// Restarts, and disks that refuse: what is stored is served, what was begun goes on, and clients get their bytes
// whether they can be kept or not.

import { mkdir, readdir, rm, writeFile } from 'node:fs/promises'
import { join } from 'node:path'
import { describe, expect, it } from 'vitest'
import type { FakeUpstream } from '../support/fake-upstream.ts'
import { FakeClock } from '../support/fake-clock.ts'
import { partFile, startLayover, type Layover } from '../support/layover.ts'
import { blobOf, buildImage, type TestBlob } from '../support/images.ts'
import { waitFor } from '../support/wait-for.ts'

const NAME = 'library/alpine'
const MIB = 1024 * 1024

/** A file where a directory was: nothing can be made or opened below it. */
async function breakDirectory(layover: Layover, directory: string): Promise<() => Promise<void>> {
  const path = join(layover.rootDirectory, directory)
  await rm(path, { recursive: true, force: true })
  await mkdir(join(path, '..'), { recursive: true })
  await writeFile(path, '')
  return async () => {
    await rm(path)
    await mkdir(path)
  }
}

function storageErrors(layover: Layover): number {
  return layover.log.filter(({ level }) => level === 'error').length
}

describe('a download that a stop has cut', () => {
  it('goes on at the next start with what is missing', async () => {
    const { layover, upstream } = await startLayover()
    const blob = blobOf(8 * MIB, 'interrupted')
    upstream.addBlob(NAME, blob)
    const gate = upstream.gate({ kind: 'blob' }, { afterBytes: 4 * MIB })
    const path = `/v2/${NAME}/blobs/${blob.digest}`
    const client = await layover.open(path)
    expect((await client.read(4 * MIB)).length).toBe(4 * MIB)
    client.leave()
    await layover.stop()
    gate.release()
    upstream.reset()
    await layover.start()
    const answer = await layover.get(path)
    expect(answer.body.equals(blob.bytes)).toBe(true)
    await layover.stored(blob.digest)
    expect(upstream.requests.map(({ headers }) => headers.range)).toEqual([`bytes=${4 * MIB}-`])
    expect(upstream.bytesSent(blob.digest)).toBe(4 * MIB)
  })

  it('begins again if the upstream gives no ranges', async () => {
    const { layover, upstream } = await startLayover()
    const blob = blobOf(2 * MIB, 'no ranges')
    upstream.addBlob(NAME, blob)
    const gate = upstream.gate({ kind: 'blob' }, { afterBytes: MIB })
    const path = `/v2/${NAME}/blobs/${blob.digest}`
    const client = await layover.open(path)
    await client.read(MIB)
    client.leave()
    await layover.stop()
    gate.release()
    upstream.fault({ kind: 'blob' }, 'range-ignored')
    await layover.start()
    expect((await layover.get(path)).body.equals(blob.bytes)).toBe(true)
    await layover.stored(blob.digest)
  })

  it('is finished for clients that are being served when the stop begins', async () => {
    // By this clock the grace never ends: the stop waits for the answers, and for nothing else.
    const { layover, upstream } = await startLayover({ clock: new FakeClock() })
    const blob = blobOf(2 * MIB, 'drained')
    upstream.addBlob(NAME, blob)
    const gate = upstream.gate({ kind: 'blob' }, { afterBytes: MIB })
    const client = await layover.open(`/v2/${NAME}/blobs/${blob.digest}`)
    const { url } = layover
    const stopped = layover.stop()
    await expect(fetch(`${url}/v2/`)).rejects.toThrow('fetch failed')
    gate.release()
    // The connection stays open, as that of a client which keeps its connections.
    expect((await client.read(2 * MIB)).equals(blob.bytes)).toBe(true)
    await stopped
    expect(client.ending).toBe('complete')
  })

  it('that takes longer than http.draintimeout ends short of Content-Length', async () => {
    const { layover, upstream } = await startLayover({
      configuration: { http: { draintimeout: '1s' } },
    })
    const blob = blobOf(2 * MIB, 'too slow')
    upstream.addBlob(NAME, blob)
    const gate = upstream.gate({ kind: 'blob' }, { afterBytes: MIB })
    const path = `/v2/${NAME}/blobs/${blob.digest}`
    const client = await layover.open(path)
    await layover.stop()
    expect((await client.finish()).ending).not.toBe('complete')
    gate.release()
    await layover.start()
    expect((await layover.get(path)).body.equals(blob.bytes)).toBe(true)
    await layover.stored(blob.digest)
  })
})

/** Starts over a part file that is made of the blob's bytes. */
async function startWithPart(
  change: (bytes: Buffer) => Buffer,
): Promise<{ layover: Layover; upstream: FakeUpstream; blob: TestBlob; path: string }> {
  const { layover, upstream } = await startLayover()
  const blob = blobOf(2 * MIB, 'complete part')
  upstream.addBlob(NAME, blob)
  await layover.stop()
  const part = join(layover.rootDirectory, partFile(blob.digest, upstream))
  await writeFile(part, change(blob.bytes))
  await layover.start()
  return { layover, upstream, blob, path: `/v2/${NAME}/blobs/${blob.digest}` }
}

describe('a download that a crash has left complete, but not stored', () => {
  it('costs one byte', async () => {
    const { blob, layover, path, upstream } = await startWithPart((bytes) => bytes)
    expect((await layover.get(path)).body.equals(blob.bytes)).toBe(true)
    await layover.stored(blob.digest)
    expect(upstream.bytesSent(blob.digest)).toBe(1)
  })

  it.each([1, 100])('begins again if there are %i bytes too many', async (surplusBytes) => {
    const { blob, layover, path, upstream } = await startWithPart((bytes) =>
      Buffer.concat([bytes, Buffer.alloc(surplusBytes)]),
    )
    expect((await layover.get(path)).body.equals(blob.bytes)).toBe(true)
    await layover.stored(blob.digest)
    expect(upstream.bytesSent(blob.digest)).toBe(2 * MIB)
  })
})

describe('a disk that refuses', () => {
  it.each([1000, 3 * MIB])('the spool serves %i bytes all the same', async (sizeBytes) => {
    const { layover, upstream } = await startLayover()
    const blob = blobOf(sizeBytes, 'spool')
    upstream.addBlob(NAME, blob)
    const path = `/v2/${NAME}/blobs/${blob.digest}`
    const mend = [
      await breakDirectory(layover, 'layover/spool'),
      await breakDirectory(layover, 'layover/temporary'),
    ]
    const answers = await Promise.all([layover.get(path), layover.get(path)])
    for (const answer of answers) {
      expect(answer.body.equals(blob.bytes)).toBe(true)
      expect(answer.ending).toBe('complete')
    }
    await waitFor('the error to be logged', () => storageErrors(layover) > 0)
    for (const repair of mend) await repair()
    expect((await layover.get(path)).body.equals(blob.bytes)).toBe(true)
    await layover.stored(blob.digest)
  })

  it('has its directories made anew when somebody has removed them', async () => {
    const { layover, upstream } = await startLayover()
    const blob = blobOf(3 * MIB, 'emptied')
    upstream.addBlob(NAME, blob)
    for (const directory of ['docker', 'layover/spool']) {
      await rm(join(layover.rootDirectory, directory), { recursive: true, force: true })
    }
    const path = `/v2/${NAME}/blobs/${blob.digest}`
    expect((await layover.get(path)).body.equals(blob.bytes)).toBe(true)
    await layover.stored(blob.digest)
    expect(storageErrors(layover)).toBe(0)
  })

  it('is complained of once for each blob, and counted', async () => {
    const { layover, upstream } = await startLayover()
    const blob = blobOf(3 * MIB, 'once')
    upstream.addBlob(NAME, blob)
    const mend = await breakDirectory(layover, 'layover/spool')
    await layover.get(`/v2/${NAME}/blobs/${blob.digest}`)
    await waitFor('the error to be logged', () => storageErrors(layover) > 0)
    expect(storageErrors(layover)).toBe(1)
    expect(await layover.metric('layover_storage_errors_total')).toBe(1)
    await mend()
  })

  it.each([1000, 3 * MIB])('the store serves %i bytes all the same', async (sizeBytes) => {
    const { layover, upstream } = await startLayover({ mayLeaveParts: true })
    const blob = blobOf(sizeBytes, 'store')
    upstream.addBlob(NAME, blob)
    const mend = await breakDirectory(layover, 'docker/registry/v2/blobs')
    const path = `/v2/${NAME}/blobs/${blob.digest}`
    const answer = await layover.get(path)
    expect(answer.body.equals(blob.bytes)).toBe(true)
    await waitFor('the error to be logged', () => storageErrors(layover) > 0)
    await mend()
    expect((await layover.get(path)).body.equals(blob.bytes)).toBe(true)
    await layover.stored(blob.digest)
  })

  it.each([1000, MIB])(
    'is told again of the link to %i bytes that it did not take',
    async (sizeBytes) => {
      const { layover, upstream } = await startLayover()
      const blob = blobOf(sizeBytes, 'link')
      upstream.addBlob(NAME, blob)
      const path = `/v2/${NAME}/blobs/${blob.digest}`
      const mend = await breakDirectory(layover, 'docker/registry/v2/repositories')
      expect((await layover.get(path)).body.equals(blob.bytes)).toBe(true)
      await layover.stored(blob.digest)
      await waitFor('the error to be logged', () => storageErrors(layover) > 0)
      await mend()
      await layover.get(path)
      await layover.restart()
      await upstream.down()
      expect((await layover.get(path)).body.equals(blob.bytes)).toBe(true)
    },
  )

  it('serves manifests all the same, fresh ones from memory', async () => {
    const { layover, upstream } = await startLayover()
    const image = buildImage()
    upstream.addImage(NAME, '3', image)
    const mend = [
      await breakDirectory(layover, 'layover/temporary'),
      await breakDirectory(layover, 'docker'),
    ]
    for (let round = 0; round < 3; round++) {
      const answer = await layover.get(`/v2/${NAME}/manifests/3`)
      expect(answer.body.equals(image.manifest.bytes)).toBe(true)
    }
    expect(upstream.count({ method: 'GET' })).toBe(1)
    for (const repair of mend) await repair()
  })

  it('gives clients at any pace the right bytes though nothing can be spooled', async () => {
    const { layover, upstream } = await startLayover()
    const blob = blobOf(24 * MIB, 'paces')
    upstream.addBlob(NAME, blob)
    const mend = await breakDirectory(layover, 'layover/spool')
    const path = `/v2/${NAME}/blobs/${blob.digest}`
    const paces = [undefined, 20_000, 50_000]
    const answers = paces.map((readBytesPerTick) =>
      layover.get(path, readBytesPerTick === undefined ? {} : { readBytesPerTick }),
    )
    for (const answer of await Promise.all(answers)) {
      expect(answer.body.equals(blob.bytes)).toBe(true)
    }
    await mend()
  })

  it('is no reason not to start: rubbish in the spool is swept', async () => {
    const { layover, upstream } = await startLayover()
    const blob = blobOf(MIB, 'sweep')
    upstream.addBlob(NAME, blob)
    await layover.stop()
    const own = join(layover.rootDirectory, 'layover')
    await writeFile(join(own, 'spool', 'rubbish'), 'x')
    await writeFile(join(own, 'spool', `sha256-${'0'.repeat(64)}.part`), '')
    await writeFile(join(own, 'temporary', 'half-written'), 'x')
    await layover.start()
    expect(await readdir(join(own, 'spool'))).toEqual([])
    expect(await readdir(join(own, 'temporary'))).toEqual([])
    expect((await layover.get(`/v2/${NAME}/blobs/${blob.digest}`)).ending).toBe('complete')
  })

  it.each(['spool', 'temporary', 'index'])(
    'is no reason not to start: a file in the place of our %s',
    async (directory) => {
      const { layover, upstream } = await startLayover()
      const blob = blobOf(MIB, 'in the way')
      upstream.addBlob(NAME, blob)
      await layover.stop()
      await breakDirectory(layover, `layover/${directory}`)
      await layover.start()
      expect((await layover.get(`/v2/${NAME}/blobs/${blob.digest}`)).ending).toBe('complete')
      await layover.stored(blob.digest)
    },
  )

  it('of which everything of ours was deleted loses no content', async () => {
    const { layover, upstream } = await startLayover()
    const blob = blobOf(MIB, 'ours deleted')
    upstream.addBlob(NAME, blob)
    const path = `/v2/${NAME}/blobs/${blob.digest}`
    await layover.get(path)
    await layover.stored(blob.digest)
    await layover.stop()
    await rm(join(layover.rootDirectory, 'layover'), { recursive: true })
    await layover.start()
    expect((await layover.get(path)).header('x-cache')).toBe('HIT')
    expect(upstream.count()).toBe(1)
  })
})
