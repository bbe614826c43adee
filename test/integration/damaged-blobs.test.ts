// Blobs that the disk has damaged since they were stored: found out by the first client that reads one whole,
// which does not get its end, and fetched again for the next one.

import { open, readFile, truncate } from 'node:fs/promises'
import { join } from 'node:path'
import { describe, expect, it } from 'vitest'
import { blobFile, startLayover, type Layover } from '../support/layover.ts'
import { blobOf, type TestBlob } from '../support/images.ts'
import type { FakeUpstream } from '../support/fake-upstream.ts'
import { waitFor } from '../support/wait-for.ts'

const NAME = 'library/alpine'
const MIB = 1024 * 1024

interface Rig {
  readonly layover: Layover
  readonly upstream: FakeUpstream
  readonly blob: TestBlob
  readonly path: string
  readonly file: string
}

/** A blob that is stored, and not in memory any more. */
async function stored(sizeBytes: number): Promise<Rig> {
  const { layover, upstream } = await startLayover()
  const blob = blobOf(sizeBytes, 'damaged')
  upstream.addBlob(NAME, blob)
  const path = `/v2/${NAME}/blobs/${blob.digest}`
  await layover.get(path)
  await layover.stored(blob.digest)
  await layover.restart()
  upstream.reset()
  return { layover, upstream, blob, path, file: join(layover.rootDirectory, blobFile(blob.digest)) }
}

async function flip({ blob, file }: Rig, position: number): Promise<void> {
  const handle = await open(file, 'r+')
  await handle.write(Buffer.of((blob.bytes[position] ?? 0) ^ 1), 0, 1, position)
  await handle.close()
}

const DAMAGED =
  'a stored blob is damaged; it is set aside, and fetched again when it is asked for: check the disk'

describe('a stored blob with a flipped bit', () => {
  it.each([
    [70_000, 0],
    [70_000, 69_999],
    [3 * MIB, 0],
    [3 * MIB, 2 * MIB],
    [3 * MIB, 3 * MIB - 1],
  ])('(%i bytes, at %i) is served short by FIN, and right to who asks next', async (size, at) => {
    const rig = await stored(size)
    const { blob, layover, path, upstream } = rig
    await flip(rig, at)

    const damaged = await layover.get(path)
    expect([damaged.status, damaged.ending, damaged.body.length]).toEqual([200, 'fin', size - 1])
    expect(damaged.header('content-length')).toBe(String(size))
    expect(layover.messages()).toContain(DAMAGED)
    expect(await layover.metric('layover_digest_mismatches_total{type="blob"}')).toBe(1)
    const line = await layover.lastAccessLine()
    expect(line).toMatchObject({ aborted: true, error: expect.stringContaining('do not match') })
    const aside = join(layover.rootDirectory, 'layover/quarantine', blob.digest.replace(':', '-'))
    expect((await readFile(aside)).length).toBe(size)

    const again = await layover.get(path)
    expect([again.status, again.ending, again.header('x-cache')]).toEqual([200, 'complete', 'MISS'])
    expect(again.body.equals(blob.bytes)).toBe(true)
    await layover.stored(blob.digest)
    const warm = await layover.get(path)
    expect(warm.header('x-cache')).toBe('HIT')
    expect(warm.body.equals(blob.bytes)).toBe(true)
    expect(upstream.count({ kind: 'blob', method: 'GET' })).toBe(1)
  })

  it('is mended for the client that was cut off, which asks for the rest', async () => {
    const rig = await stored(MIB)
    await flip(rig, MIB - 1)
    const { body } = await rig.layover.get(rig.path)
    const rest = await rig.layover.get(rig.path, { headers: { Range: `bytes=${body.length}-` } })
    expect([rest.status, rest.ending]).toEqual([206, 'complete'])
    expect(Buffer.concat([body, rest.body]).equals(rig.blob.bytes)).toBe(true)
  })

  it('is found out by a range that is the whole', async () => {
    const rig = await stored(MIB)
    await flip(rig, 1000)
    const answer = await rig.layover.get(rig.path, { headers: { Range: 'bytes=0-' } })
    expect([answer.status, answer.ending]).toEqual([206, 'fin'])
    expect(rig.layover.messages()).toContain(DAMAGED)
  })

  it('is found out once, though many read it', async () => {
    const rig = await stored(3 * MIB)
    await flip(rig, MIB)
    const { layover, path } = rig
    const clients = await Promise.all(Array.from({ length: 6 }, () => layover.open(path)))
    for (const answer of await Promise.all(clients.map((client) => client.finish()))) {
      expect(answer.ending).toBe('fin')
    }
    expect(layover.messages().filter((message) => message === DAMAGED)).toHaveLength(1)
    expect((await layover.get(path)).body.equals(rig.blob.bytes)).toBe(true)
    await layover.stored(rig.blob.digest)
  })

  it('is not announced by HEAD as cached once it was found', async () => {
    const rig = await stored(MIB)
    await flip(rig, 1000)
    await rig.layover.get(rig.path)
    expect((await rig.layover.head(rig.path)).header('x-cache')).toBe('MISS')
  })
})

describe('a stored blob that was cut short', () => {
  it.each([3 * MIB - 1, 2 * MIB, 1000, 0])(
    'to %i bytes is not served as if it were whole',
    async (left) => {
      const rig = await stored(3 * MIB)
      await truncate(rig.file, left)
      // Nobody has seen a manifest since the restart: how long it should be is not known.
      const answer = await rig.layover.get(rig.path)
      // What is small is checked before the first byte.
      const isChecked = left <= 64 * 1024
      expect(answer.ending).toBe(isChecked ? 'complete' : 'fin')
      const next = isChecked ? answer : await rig.layover.get(rig.path)
      expect(next.body.equals(rig.blob.bytes)).toBe(true)
      await rig.layover.stored(rig.blob.digest)
    },
  )

  it('while it is read ends short, and is whole for the next client', async () => {
    const rig = await stored(24 * MIB)
    const client = await rig.layover.open(rig.path)
    await client.read(1000)
    await truncate(rig.file, 20 * MIB)
    expect((await client.finish()).ending).toBe('fin')
    await waitFor('the log', () =>
      rig.layover.messages().some((message) => message.includes('it is fetched again')),
    )
    // What is left is another file; nobody gets its end either.
    expect((await rig.layover.get(rig.path)).ending).toBe('fin')
    expect((await rig.layover.get(rig.path)).body.equals(rig.blob.bytes)).toBe(true)
    await rig.layover.stored(rig.blob.digest)
  })
})
