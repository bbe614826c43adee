// A disk that keeps nothing: clients are served by way of memory, as many as memory has room for.

import { rm, writeFile } from 'node:fs/promises'
import { join } from 'node:path'
import { describe, expect, it } from 'vitest'
import { startLayover, type Layover } from '../support/layover.ts'
import { blobOf } from '../support/images.ts'
import { isStillWaiting } from '../support/spool-rig.ts'
import { waitFor } from '../support/wait-for.ts'

const NAME = 'library/alpine'
const MIB = 1024 * 1024
/** More than a reader may be behind, so that later clients can't join. */
const PASSED_BYTES = 12 * MIB
const UNSHARED_MAX = 16

/** Nothing can be put where there is no directory. */
async function breakSpool({ rootDirectory }: Layover): Promise<void> {
  const directory = join(rootDirectory, 'layover/spool')
  await rm(directory, { recursive: true })
  await writeFile(directory, '')
}

describe('clients that come too late to join a download that is not kept', () => {
  it('get downloads of their own, up to a limit, and beyond it wait for one to be over', async () => {
    const { layover, upstream } = await startLayover()
    const blob = blobOf(16 * MIB, 'unkept')
    upstream.addBlob(NAME, blob)
    await breakSpool(layover)
    const gate = upstream.gate({ kind: 'blob' }, { afterBytes: PASSED_BYTES })
    const path = `/v2/${NAME}/blobs/${blob.digest}`
    const first = await layover.open(path)
    const start = await first.read(PASSED_BYTES)

    const late = []
    for (let index = 0; index < UNSHARED_MAX; index++) late.push(await layover.open(path))
    const last = layover.get(path)
    await waitFor('the last client to ask', async () => {
      return (await layover.metric('registry_http_in_flight_requests')) === 2 + UNSHARED_MAX
    })
    expect(await isStillWaiting(last)).toBe(true)

    expect(late.map(({ status }) => status)).toEqual(late.map(() => 200))
    expect(upstream.count({ kind: 'blob' })).toBe(1 + UNSHARED_MAX)

    gate.release()
    const bodies: Buffer[] = [Buffer.concat([start, (await first.finish()).body])]
    for (const answer of await Promise.all(late.map((client) => client.finish()))) {
      bodies.push(answer.body)
    }
    bodies.push((await last).body)
    expect(upstream.count({ kind: 'blob' })).toBe(2 + UNSHARED_MAX)
    expect(bodies.every((body) => body.equals(blob.bytes))).toBe(true)
    await waitFor('the downloads to be over', async () => {
      return (await layover.metric('layover_fills_running')) === 0
    })
    expect((await layover.get(path)).body.equals(blob.bytes)).toBe(true)
  })

  it('are told what is wrong when the size would come last', async () => {
    const { layover, upstream } = await startLayover()
    const blob = blobOf(16 * MIB, 'unkept and unannounced')
    upstream.addBlob(NAME, blob)
    upstream.fault({ kind: 'blob' }, 'chunked')
    await breakSpool(layover)

    const answer = await layover.get(`/v2/${NAME}/blobs/${blob.digest}`)

    expect(answer.status).toBe(503)
    expect(answer.header('retry-after')).toBeDefined()
    expect(answer.body.toString()).toContain('does not tell how large the blob is')
    expect(layover.messages()).not.toContain('a request failed')
  })
})
