// Blobs that go well: cold and warm, whole and in part, from upstreams of every habit.

import { describe, expect, it } from 'vitest'
import { startLayover } from '../support/layover.ts'
import { blobOf, buildImage } from '../support/images.ts'
import { RawConnection } from '../support/raw-connection.ts'
import { waitFor } from '../support/wait-for.ts'

const NAME = 'library/alpine'
const MIB = 1024 * 1024

describe('a blob that is not stored', () => {
  it('is fetched once, served byte for byte, and kept', async () => {
    const { layover, upstream } = await startLayover()
    const blob = blobOf(3 * MIB + 7, 'cold')
    upstream.addBlob(NAME, blob)
    const path = `/v2/${NAME}/blobs/${blob.digest}`

    const cold = await layover.get(path)
    expect(cold.status).toBe(200)
    expect(cold.body.equals(blob.bytes)).toBe(true)
    expect(cold.ending).toBe('complete')
    expect(cold.header('x-cache')).toBe('MISS')
    await layover.stored(blob.digest)

    const warm = await layover.get(path)
    expect(warm.body.equals(blob.bytes)).toBe(true)
    expect(warm.header('x-cache')).toBe('HIT')
    expect(upstream.count()).toBe(1)
    expect(upstream.bytesSent(blob.digest)).toBe(blob.bytes.length)
  })

  it('is announced as registry:2 announces it', async () => {
    const { layover, upstream } = await startLayover()
    const blob = blobOf(1000, 'headers')
    upstream.addBlob(NAME, blob)
    const { headers } = await layover.get(`/v2/${NAME}/blobs/${blob.digest}`)
    expect(Object.fromEntries(headers)).toMatchObject({
      'Docker-Distribution-Api-Version': 'registry/2.0',
      'Accept-Ranges': 'bytes',
      'Cache-Control': 'max-age=31536000',
      'Content-Type': 'application/octet-stream',
      'Content-Length': '1000',
      'Docker-Content-Digest': blob.digest,
      Etag: `"${blob.digest}"`,
      'X-Cache': 'MISS',
      'Cache-Status': 'layover; fwd=uri-miss; fwd-status=200; stored',
    })
  })

  it('has its headers sent before the upstream has sent a byte of the body', async () => {
    const { layover, upstream } = await startLayover()
    const blob = blobOf(MIB, 'gated')
    upstream.addBlob(NAME, blob)
    const gate = upstream.gate({ kind: 'blob' }, { afterBytes: 0 })
    const client = await layover.open(`/v2/${NAME}/blobs/${blob.digest}`)
    expect(client.status).toBe(200)
    expect(client.header('content-length')).toBe(String(MIB))
    gate.release()
    expect((await client.finish()).body.equals(blob.bytes)).toBe(true)
  })

  it('is passed on while it arrives', async () => {
    const { layover, upstream } = await startLayover()
    const blob = blobOf(4 * MIB, 'streaming')
    upstream.addBlob(NAME, blob)
    const gate = upstream.gate({ kind: 'blob' }, { afterBytes: 2 * MIB })
    const client = await layover.open(`/v2/${NAME}/blobs/${blob.digest}`)
    expect((await client.read(2 * MIB)).equals(blob.bytes.subarray(0, 2 * MIB))).toBe(true)
    gate.release()
    expect((await client.finish()).body.equals(blob.bytes.subarray(2 * MIB))).toBe(true)
  })

  it('may be empty', async () => {
    const { layover, upstream } = await startLayover()
    const blob = blobOf(0, 'empty')
    upstream.addBlob(NAME, blob)
    for (let round = 0; round < 2; round++) {
      const answer = await layover.get(`/v2/${NAME}/blobs/${blob.digest}`)
      expect([answer.status, answer.header('content-length')]).toEqual([200, '0'])
      expect(answer.ending).toBe('complete')
      await layover.stored(blob.digest)
    }
    expect(upstream.count()).toBe(1)
  })

  it.each(['chunked', 'no-content-length'] as const)(
    'gets a Content-Length though the upstream names none (%s)',
    async (fault) => {
      const { layover, upstream } = await startLayover()
      const blob = blobOf(MIB, fault)
      upstream.addBlob(NAME, blob)
      upstream.fault({ kind: 'blob' }, fault)
      const answer = await layover.get(`/v2/${NAME}/blobs/${blob.digest}`)
      expect(answer.header('content-length')).toBe(String(MIB))
      expect(answer.body.equals(blob.bytes)).toBe(true)
    },
  )

  it('streams at once without a Content-Length from upstream when a manifest tells the size', async () => {
    const { layover, upstream } = await startLayover()
    const image = buildImage({ layers: [2 * MIB] })
    upstream.addImage(NAME, '3', image)
    const [layer] = image.layers
    if (!layer) throw new Error('an image without a layer')
    upstream.fault({ kind: 'blob' }, 'chunked')
    const gate = upstream.gate({ kind: 'blob' }, { afterBytes: MIB })
    await layover.get(`/v2/${NAME}/manifests/3`)
    const client = await layover.open(`/v2/${NAME}/blobs/${layer.digest}`)
    expect((await client.read(MIB)).equals(layer.bytes.subarray(0, MIB))).toBe(true)
    gate.release()
    expect((await client.finish()).ending).toBe('complete')
  })

  it.each(['sha384', 'sha512'] as const)('may be named by %s', async (algorithm) => {
    const { layover, upstream } = await startLayover()
    for (const sizeBytes of [1000, MIB]) {
      const blob = blobOf(sizeBytes, algorithm, algorithm)
      upstream.addBlob(NAME, blob)
      const answer = await layover.get(`/v2/${NAME}/blobs/${blob.digest}`)
      expect(answer.body.equals(blob.bytes)).toBe(true)
      await layover.stored(blob.digest)
    }
  })

  it('comes by way of a redirect and a token', async () => {
    const { layover, upstream } = await startLayover({
      upstream: { auth: 'bearer', redirectBlobs: true },
    })
    const blob = blobOf(MIB, 'redirected')
    upstream.addBlob(NAME, blob)
    const answer = await layover.get(`/v2/${NAME}/blobs/${blob.digest}`)
    expect(answer.body.equals(blob.bytes)).toBe(true)
    expect(upstream.count({ kind: 'cdn', method: 'GET' })).toBe(1)
  })
})

describe('HEAD for a blob', () => {
  it('asks the upstream with one HEAD, and downloads nothing', async () => {
    const { layover, upstream } = await startLayover()
    const blob = blobOf(MIB, 'head')
    upstream.addBlob(NAME, blob)
    const answer = await layover.head(`/v2/${NAME}/blobs/${blob.digest}`)
    expect([answer.status, answer.header('content-length')]).toEqual([200, String(MIB)])
    expect(answer.body.length).toBe(0)
    expect(upstream.requests.map(({ method }) => method)).toEqual(['HEAD'])
    expect(upstream.bytesSent(blob.digest)).toBe(0)
  })

  it('asks nobody once the blob is stored', async () => {
    const { layover, upstream } = await startLayover()
    const blob = blobOf(MIB, 'head warm')
    upstream.addBlob(NAME, blob)
    await layover.get(`/v2/${NAME}/blobs/${blob.digest}`)
    await layover.stored(blob.digest)
    const answer = await layover.head(`/v2/${NAME}/blobs/${blob.digest}`)
    expect([answer.status, answer.header('content-length')]).toEqual([200, String(MIB)])
    expect(answer.header('x-cache')).toBe('HIT')
    expect(upstream.count()).toBe(1)
  })

  it('works with an upstream that refuses HEAD', async () => {
    const { layover, upstream } = await startLayover()
    const blob = blobOf(MIB, 'no head')
    upstream.addBlob(NAME, blob)
    upstream.fault({ method: 'HEAD' }, 'no-head')
    const answer = await layover.head(`/v2/${NAME}/blobs/${blob.digest}`)
    expect([answer.status, answer.header('content-length')]).toEqual([200, String(MIB)])
    expect(upstream.bytesSent(blob.digest)).toBeLessThan(MIB)
  })

  it('believes no length of 0, but of what has no bytes', async () => {
    const { layover, upstream } = await startLayover()
    upstream.fault({ method: 'HEAD' }, { contentLength: 0 })
    for (const sizeBytes of [300_000, 100, 0]) {
      const blob = blobOf(sizeBytes, 'head says 0')
      upstream.addBlob(NAME, blob)
      const answer = await layover.head(`/v2/${NAME}/blobs/${blob.digest}`)
      expect([answer.status, answer.header('content-length')]).toEqual([200, String(sizeBytes)])
      // The bytes have told; of no bytes there was nothing to tell.
      if (sizeBytes > 0) await layover.stored(blob.digest)
      expect(upstream.count({ method: 'GET' })).toBe(sizeBytes > 0 ? 1 : 0)
      upstream.reset()
    }
  })

  it('tells the length that a manifest names, whatever the upstream says', async () => {
    const { layover, upstream } = await startLayover()
    const image = buildImage({ layers: [200_000] })
    upstream.addImage(NAME, '3', image)
    await layover.get(`/v2/${NAME}/manifests/3`)
    for (const contentLength of [0, 10]) {
      upstream.fault({ kind: 'blob', method: 'HEAD' }, { contentLength })
      const answer = await layover.head(`/v2/${NAME}/blobs/${image.layers[0]?.digest}`)
      expect([answer.status, answer.header('content-length')]).toEqual([200, '200000'])
    }
    expect(upstream.count({ kind: 'blob', method: 'GET' })).toBe(0)
  })

  it('is 404 for what the upstream does not have', async () => {
    const { layover } = await startLayover()
    const answer = await layover.head(`/v2/${NAME}/blobs/${blobOf(1, 'none').digest}`)
    expect(answer.status).toBe(404)
    expect(answer.ending).toBe('complete')
  })
})

describe('many clients of one cold blob', () => {
  it('share one download, each from its own offset', async () => {
    const { layover, upstream } = await startLayover()
    const blob = blobOf(4 * MIB, 'herd')
    upstream.addBlob(NAME, blob)
    const path = `/v2/${NAME}/blobs/${blob.digest}`
    const offsets = Array.from({ length: 50 }, (_, index) => index * 80_000)
    const answers = await Promise.all(
      offsets.map((offset) => layover.get(path, { headers: { Range: `bytes=${offset}-` } })),
    )
    for (const [index, answer] of answers.entries()) {
      expect(answer.status).toBe(206)
      expect(answer.ending).toBe('complete')
      expect(answer.body.equals(blob.bytes.subarray(offsets[index]))).toBe(true)
    }
    expect(upstream.count({ kind: 'blob' })).toBe(1)
    expect(upstream.bytesSent(blob.digest)).toBe(blob.bytes.length)
  })

  it('are not slowed down by one that does not read', async () => {
    const { layover, upstream } = await startLayover()
    const blob = blobOf(24 * MIB, 'slow')
    upstream.addBlob(NAME, blob)
    const path = `/v2/${NAME}/blobs/${blob.digest}`
    const slow = await layover.open(path)
    const quick = await layover.get(path)
    expect(quick.body.equals(blob.bytes)).toBe(true)
    const rest = await slow.finish()
    expect(rest.body.equals(blob.bytes)).toBe(true)
    expect(upstream.count()).toBe(1)
  })

  it.each(['fin', 'rst'] as const)('are not disturbed by one that leaves by %s', async (by) => {
    const { layover, upstream } = await startLayover()
    const blob = blobOf(8 * MIB, 'leaver')
    upstream.addBlob(NAME, blob)
    const gate = upstream.gate({ kind: 'blob' }, { afterBytes: MIB })
    const path = `/v2/${NAME}/blobs/${blob.digest}`
    const first = await layover.open(path)
    const second = await layover.open(path)
    await first.read(1000)
    first.leave({ by })
    gate.release()
    expect((await second.finish()).body.equals(blob.bytes)).toBe(true)
    expect(upstream.count()).toBe(1)
  })

  it('may all leave: the download goes on, and the blob is kept', async () => {
    const { layover, upstream } = await startLayover()
    const blob = blobOf(8 * MIB, 'all leave')
    upstream.addBlob(NAME, blob)
    const gate = upstream.gate({ kind: 'blob' }, { afterBytes: MIB })
    const path = `/v2/${NAME}/blobs/${blob.digest}`
    const client = await layover.open(path)
    await client.read(10)
    client.leave()
    await waitFor('the client to be gone', () => layover.accessLines.length === 1)
    expect(layover.accessLines[0]).toMatchObject({ aborted: true, status: 200 })
    gate.release()
    await layover.stored(blob.digest)
    expect((await layover.get(path)).body.equals(blob.bytes)).toBe(true)
    expect(upstream.count()).toBe(1)
  })

  it('before there is an answer: the log does not say that there was one', async () => {
    const { layover, upstream } = await startLayover()
    const blob = blobOf(MIB, 'unanswered')
    upstream.addBlob(NAME, blob)
    const gate = upstream.gate({ kind: 'blob' })
    const request = `GET /v2/${NAME}/blobs/${blob.digest} HTTP/1.1\r\nHost: layover\r\n\r\n`
    const client = await RawConnection.open(layover.url, request)
    await gate.reached
    client.close()
    await waitFor('the client to be gone', () => layover.accessLines.length === 1)
    expect(layover.accessLines[0]).toMatchObject({ aborted: true, status: 499, sentBytes: 0 })
    gate.release()
    await layover.stored(blob.digest)
  })
})
