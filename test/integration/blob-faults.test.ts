// Downloads that go wrong. Whatever an upstream does, a client gets the right bytes, or an end that it notices.

import { open, stat } from 'node:fs/promises'
import { join } from 'node:path'
import { describe, expect, it } from 'vitest'
import type { Fault, FaultName } from '../support/fake-upstream-faults.ts'
import { blobFile, partFile, startLayover } from '../support/layover.ts'
import { blobOf, buildImage } from '../support/images.ts'
import { LeapingClock } from '../support/leaping-clock.ts'
import { waitFor } from '../support/wait-for.ts'

const NAME = 'library/alpine'
const MIB = 1024 * 1024

describe('a download that breaks', () => {
  const breaks: [string, FaultName | Fault][] = [
    ['before the headers, by FIN', 'cut-before-headers'],
    ['before the headers, by RST', 'reset-before-headers'],
    ['at byte 0, by FIN', 'cut-at-start'],
    ['at byte 0, by RST', { cutAtByte: 0, cutBy: 'rst' }],
    ['in the first chunk, by FIN', 'cut-in-first-chunk'],
    ['in the first chunk, by RST', { cutAtByte: 100, cutBy: 'rst' }],
    ['in the middle, by FIN', { cutAtByte: MIB + 17 }],
    ['in the middle, by RST', { cutAtByte: MIB + 17, cutBy: 'rst' }],
    ['before the last byte, by FIN', 'cut-at-last-byte'],
    ['before the last byte, by RST', { cutAtByte: 'last', cutBy: 'rst' }],
  ]

  it.each(breaks)('%s is resumed, and the client gets everything', async (_, fault) => {
    const { layover, upstream } = await startLayover()
    const blob = blobOf(2 * MIB, 'broken')
    upstream.addBlob(NAME, blob)
    upstream.fault({ kind: 'blob' }, fault, { times: 1 })
    const answer = await layover.get(`/v2/${NAME}/blobs/${blob.digest}`)
    expect([answer.status, answer.ending]).toEqual([200, 'complete'])
    expect(answer.body.equals(blob.bytes)).toBe(true)
    await layover.stored(blob.digest)
    expect(upstream.count()).toBe(2)
  })

  it('asks only for what is missing, with a fresh token and a fresh redirect', async () => {
    const { layover, upstream } = await startLayover({
      upstream: { auth: 'bearer', redirectBlobs: true },
    })
    const blob = blobOf(2 * MIB, 'ranges')
    upstream.addBlob(NAME, blob)
    upstream.fault({ kind: 'cdn' }, { cutAtByte: MIB }, { times: 1 })
    const gate = upstream.gate({ kind: 'cdn' }, { afterBytes: MIB - 1 })
    const client = await layover.open(`/v2/${NAME}/blobs/${blob.digest}`)
    await gate.reached
    upstream.revokeTokens()
    upstream.expireSignedUrls()
    gate.release()
    expect((await client.finish()).body.equals(blob.bytes)).toBe(true)
    const ranges = upstream.requests
      .filter(({ kind, status }) => kind === 'cdn' && (status ?? 0) < 300)
      .map(({ headers }) => headers.range)
    expect(ranges).toEqual([undefined, `bytes=${MIB}-`])
    expect(upstream.bytesSent(blob.digest)).toBe(2 * MIB)
  })

  it('is completed by an upstream that ignores ranges: what was there is skipped', async () => {
    const { layover, upstream } = await startLayover()
    const blob = blobOf(2 * MIB, 'no ranges')
    upstream.addBlob(NAME, blob)
    upstream.fault({ kind: 'blob' }, 'range-ignored')
    upstream.fault({ kind: 'blob' }, { cutAtByte: MIB + 3 }, { times: 1 })
    const answer = await layover.get(`/v2/${NAME}/blobs/${blob.digest}`)
    expect(answer.body.equals(blob.bytes)).toBe(true)
    expect(upstream.count()).toBe(2)
  })

  it('after the last byte is complete, if a manifest has told how many there are', async () => {
    const { layover, upstream } = await startLayover()
    const image = buildImage({ layers: [2 * MIB] })
    upstream.addImage(NAME, '3', image)
    await layover.get(`/v2/${NAME}/manifests/3`)
    // No last chunk: the end is not told, and there is nothing left to ask for.
    upstream.fault({ kind: 'blob' }, { framing: 'chunked', cutAtByte: 2 * MIB })
    const [layer] = image.layers
    const answer = await layover.get(`/v2/${NAME}/blobs/${layer?.digest}`)
    expect([answer.status, answer.ending]).toEqual([200, 'complete'])
    expect(layer && answer.body.equals(layer.bytes)).toBe(true)
    expect(upstream.count({ kind: 'blob' })).toBe(1)
  })

  it('whose end is never told is complete soon after its last byte, if a manifest has told how many there are', async () => {
    const clock = new LeapingClock()
    const { layover, upstream } = await startLayover({ clock })
    const image = buildImage({ layers: [2 * MIB] })
    upstream.addImage(NAME, '3', image)
    await layover.get(`/v2/${NAME}/manifests/3`)
    upstream.fault({ kind: 'blob' }, { framing: 'chunked', hangAtByte: 2 * MIB })
    const [layer] = image.layers
    const answer = layover.get(`/v2/${NAME}/blobs/${layer?.digest}`)
    await waitFor('the upstream to stand still', () => upstream.hanging > 0)
    await waitFor('all that it has sent to be taken', async () => {
      const taken = await layover.metric('registry_proxy_pulled_bytes_total{type="blob"}')
      return taken === 2 * MIB
    })
    await clock.leap(6_000)
    const { body, ending } = await answer
    expect([ending, layer && body.equals(layer.bytes)]).toEqual(['complete', true])
    expect(upstream.count({ kind: 'blob' })).toBe(1)
  })

  it('again and again is completed as long as each attempt brings something', async () => {
    const { layover, upstream } = await startLayover()
    const blob = blobOf(2 * MIB, 'again and again')
    upstream.addBlob(NAME, blob)
    upstream.fault({ kind: 'blob' }, { cutAtByte: 200_000 })
    const answer = await layover.get(`/v2/${NAME}/blobs/${blob.digest}`)
    expect(answer.body.equals(blob.bytes)).toBe(true)
    // A connection that breaks may take bytes with it that nobody had read yet.
    expect(upstream.count()).toBeGreaterThanOrEqual(11)
    expect(await layover.metric('layover_fill_resumes_total')).toBe(upstream.count() - 1)
  })
})

describe('a download that is given up', () => {
  it('ends short of Content-Length by FIN, keeps the part, and goes on from it later', async () => {
    const { layover, upstream } = await startLayover()
    const blob = blobOf(4 * MIB, 'given up')
    upstream.addBlob(NAME, blob)
    upstream.fault({ kind: 'blob' }, { cutAtByte: 2 * MIB }, { times: 1 })
    const gate = upstream.gate({ kind: 'blob' }, { afterBytes: MIB })
    const client = await layover.open(`/v2/${NAME}/blobs/${blob.digest}`)
    await gate.reached
    const mend = upstream.fault({ kind: 'blob' }, 'unavailable')
    gate.release()
    const answer = await client.finish()
    expect(answer.header('content-length')).toBe(String(4 * MIB))
    expect(answer.ending).toBe('fin')
    expect(answer.body.equals(blob.bytes.subarray(0, answer.body.length))).toBe(true)
    expect(answer.body.length).toBeGreaterThan(0)
    expect(await layover.files('docker')).toEqual([])
    const { size } = await stat(join(layover.rootDirectory, partFile(blob.digest, upstream)))
    expect(size).toBeGreaterThanOrEqual(MIB)
    expect(size).toBeLessThanOrEqual(2 * MIB)

    mend()
    upstream.reset()
    const second = await layover.get(`/v2/${NAME}/blobs/${blob.digest}`)
    expect(second.body.equals(blob.bytes)).toBe(true)
    expect(upstream.requests.map(({ headers }) => headers.range)).toEqual([`bytes=${size}-`])
    expect(upstream.bytesSent(blob.digest)).toBe(4 * MIB - size)
    await layover.stored(blob.digest)
  })

  it('says why in the access log and the log', async () => {
    const { layover, upstream } = await startLayover({ mayLeaveParts: true })
    const blob = blobOf(MIB, 'reason')
    upstream.addBlob(NAME, blob)
    upstream.fault({ kind: 'blob' }, { cutAtByte: 1000 }, { times: 1 })
    const gate = upstream.gate({ kind: 'blob' }, { afterBytes: 500 })
    const client = await layover.open(`/v2/${NAME}/blobs/${blob.digest}`)
    upstream.fault({ kind: 'blob' }, 'unavailable')
    gate.release()
    expect((await client.finish()).ending).toBe('fin')
    const line = await layover.lastAccessLine()
    expect(line).toMatchObject({ aborted: true, status: 200, cache: 'miss', sentBytes: 1000 })
    expect(line['error']).toContain('503')
    expect(layover.messages()).toContain('a download from the upstream was given up')
  })
})

describe('wrong bytes', () => {
  it.each([0, MIB, 2 * MIB - 1])(
    'never reach a client to the end, and are not kept (byte %i flipped)',
    async (flipByteAt) => {
      const { layover, upstream } = await startLayover()
      const blob = blobOf(2 * MIB, 'flipped')
      upstream.addBlob(NAME, blob)
      upstream.fault({ kind: 'blob' }, { flipByteAt }, { times: 1 })
      const path = `/v2/${NAME}/blobs/${blob.digest}`
      const bad = await layover.get(path)
      expect(bad.ending).toBe('fin')
      expect(bad.body.length).toBeLessThan(2 * MIB)
      const good = await layover.get(path)
      expect(good.body.equals(blob.bytes)).toBe(true)
      await layover.stored(blob.digest)
      expect(upstream.requests.map(({ headers }) => headers.range)).toEqual([undefined, undefined])
      expect(await layover.metric('layover_digest_mismatches_total{type="blob"}')).toBe(1)
    },
  )

  it.each([
    ['shorter', { truncateTo: 100_000 }],
    ['shorter and small', 'short-body'],
    ['longer by a byte', 'long-body'],
    ['empty', { truncateTo: 0 }],
    ['a web page', 'html-200'],
  ] as [string, Fault | FaultName][])('that are %s never end well', async (_, fault) => {
    const { layover, upstream } = await startLayover()
    const blob = blobOf(300_000, 'lengths')
    upstream.addBlob(NAME, blob)
    upstream.fault({ kind: 'blob' }, fault, { times: 1 })
    const path = `/v2/${NAME}/blobs/${blob.digest}`
    const bad = await layover.get(path)
    expect(bad.status === 503 || bad.ending === 'fin').toBe(true)
    expect(layover.messages()).not.toContain('a request failed')
    const good = await layover.get(path)
    expect(good.body.equals(blob.bytes)).toBe(true)
    await layover.stored(blob.digest)
  })

  it('are no reason to refuse who asks again at once', async () => {
    const { layover, upstream } = await startLayover()
    for (let nth = 0; nth < 30; nth++) {
      const blob = blobOf(100_000, `again ${nth}`)
      upstream.addBlob(NAME, blob)
      upstream.fault({ kind: 'blob' }, 'empty-body', { times: 1 })
      const path = `/v2/${NAME}/blobs/${blob.digest}`
      const statuses = [(await layover.get(path)).status, (await layover.get(path)).status]
      expect(statuses).toEqual([503, 200])
    }
  })

  it.each([
    ['too long', { contentLength: 2 * MIB + 5 }],
    ['too short', { contentLength: MIB }],
  ] as [string, Fault][])('a Content-Length that is %s never ends well', async (_, fault) => {
    const { layover, upstream } = await startLayover({ mayLeaveParts: true })
    const blob = blobOf(2 * MIB, 'content-length')
    upstream.addBlob(NAME, blob)
    const mend = upstream.fault({ kind: 'blob' }, fault)
    const path = `/v2/${NAME}/blobs/${blob.digest}`
    const bad = await layover.get(path)
    expect(bad.ending).toBe('fin')
    expect(await layover.files('docker')).toEqual([])
    mend()
    const good = await layover.get(path)
    expect(good.body.equals(blob.bytes)).toBe(true)
    await layover.stored(blob.digest)
  })

  it.each(['range-shifted', 'range-refused'] as const)(
    'do not come of a resume that is answered with another range (%s)',
    async (fault) => {
      const { layover, upstream } = await startLayover({ mayLeaveParts: true })
      const blob = blobOf(2 * MIB, 'shifted')
      upstream.addBlob(NAME, blob)
      upstream.fault({ kind: 'blob' }, { cutAtByte: MIB }, { times: 1 })
      const mend = upstream.fault({ kind: 'blob' }, fault)
      const path = `/v2/${NAME}/blobs/${blob.digest}`
      const bad = await layover.get(path)
      expect(bad.ending).toBe('fin')
      expect(bad.body.equals(blob.bytes.subarray(0, bad.body.length))).toBe(true)
      mend()
      expect((await layover.get(path)).body.equals(blob.bytes)).toBe(true)
    },
  )

  it('left in a part on disk are found out, and fetched anew', async () => {
    const { layover, upstream } = await startLayover({ mayLeaveParts: true })
    const blob = blobOf(2 * MIB, 'rotten part')
    upstream.addBlob(NAME, blob)
    const gate = upstream.gate({ kind: 'blob' }, { afterBytes: MIB })
    const client = await layover.open(`/v2/${NAME}/blobs/${blob.digest}`)
    expect((await client.read(MIB)).length).toBe(MIB)
    client.leave()
    await layover.stop()
    gate.release()
    const file = await open(join(layover.rootDirectory, partFile(blob.digest, upstream)), 'r+')
    await file.write(Buffer.alloc(16), 0, 16, 1000)
    await file.close()
    await layover.start()
    const path = `/v2/${NAME}/blobs/${blob.digest}`
    expect((await layover.get(path)).ending).toBe('fin')
    expect((await layover.get(path)).body.equals(blob.bytes)).toBe(true)
    await layover.stored(blob.digest)
  })

  it.each([100, 300_000])('are not served from an empty file (%i bytes)', async (sizeBytes) => {
    const { layover, upstream } = await startLayover()
    const blob = blobOf(sizeBytes, 'truncated on disk')
    upstream.addBlob(NAME, blob)
    const path = `/v2/${NAME}/blobs/${blob.digest}`
    await layover.get(path)
    await layover.stored(blob.digest)
    await layover.stop()
    // What a crash without fsync leaves behind: the name, and nothing in it.
    const file = await open(join(layover.rootDirectory, blobFile(blob.digest)), 'w')
    await file.close()
    await layover.start()
    const answer = await layover.get(path)
    expect(answer.body.equals(blob.bytes)).toBe(true)
    await layover.stored(blob.digest)
    const { size } = await stat(join(layover.rootDirectory, blobFile(blob.digest)))
    expect(size).toBe(sizeBytes)
  })
})
