import { once } from 'node:events'
import { buffer } from 'node:stream/consumers'
import { describe, expect, it } from 'vitest'
import { connectionError } from '../../../src/upstream/upstream-error.ts'
import { fastNowMs, passFastTime } from '../../support/fast-timers.ts'
import { nextTurn, waitFor } from '../../support/wait-for.ts'
import { ENCODERS, alpine, content, digest, kindOf, startClient } from './small-server.ts'

describe('headBlob', () => {
  it('asks once where HEAD is answered', async () => {
    const { client, server } = await startClient((_request, response) => {
      response.setHeader('content-length', 1000)
      response.end()
    })
    expect(await client.headBlob(alpine, digest)).toEqual({ sizeBytes: 1000 })
    expect(server.hits).toMatchObject([
      { method: 'HEAD', path: `/v2/library/alpine/blobs/${digest}` },
    ])
  })

  it.each([401, 403, 405, 501])('asks for one byte where HEAD is refused (%i)', async (status) => {
    const { client, server } = await startClient((request, response) => {
      if (request.method === 'HEAD') response.writeHead(status).end()
      else response.writeHead(206, { 'content-range': 'bytes 0-0/1000' }).end('0')
    })
    expect(await client.headBlob(alpine, digest)).toEqual({ sizeBytes: 1000 })
    expect(server.hits.map(({ method }) => method)).toEqual(['HEAD', 'GET'])
    expect(server.hits[1]?.headers.range).toBe('bytes=0-0')
    // What was learnt saves the HEAD from then on.
    expect(await client.headBlob(alpine, digest)).toEqual({ sizeBytes: 1000 })
    expect(server.hits.map(({ method }) => method)).toEqual(['HEAD', 'GET', 'GET'])
  })

  it('understands an upstream without ranges, and an empty blob', async () => {
    const { client, server } = await startClient((request, response, hits) => {
      if (request.method === 'HEAD') response.writeHead(405).end()
      else if (hits.length === 2) response.writeHead(200, { 'content-length': 1000 }).write('0')
      else response.writeHead(416, { 'content-range': 'bytes */0' }).end()
    })
    expect(await client.headBlob(alpine, digest)).toEqual({ sizeBytes: 1000 })
    await waitFor('the body to be dropped', () => server.sockets.some(({ destroyed }) => destroyed))
    expect(await client.headBlob(alpine, digest)).toEqual({ sizeBytes: 0 })
  })

  it('reports a blob that is not there, by HEAD or by GET', async () => {
    const { client } = await startClient((request, response, hits) => {
      const isRefused = request.method === 'HEAD' && hits.length > 1
      response.writeHead(isRefused ? 405 : 404).end()
    })
    expect(await kindOf(client.headBlob(alpine, digest))).toBe('not-found')
    expect(await kindOf(client.headBlob(alpine, digest))).toBe('not-found')
  })
})

describe('getBlob', () => {
  it('streams the whole blob', async () => {
    const { client, server } = await startClient((_request, response) => {
      response.setHeader('content-length', content.length)
      response.end(content)
    })
    const blob = await client.getBlob(alpine, digest)
    expect(blob).toMatchObject({ startOffset: 0, sizeBytes: 1000 })
    expect(await buffer(blob.body)).toEqual(content)
    expect(server.hits[0]?.headers.range).toBeUndefined()
  })

  it('starts where it was asked to', async () => {
    const { client, server } = await startClient((_request, response) => {
      response.writeHead(206, { 'content-range': 'bytes 990-999/1000' }).end(content.subarray(990))
    })
    const blob = await client.getBlob(alpine, digest, { offset: 990 })
    expect(blob).toMatchObject({ startOffset: 990, sizeBytes: 1000 })
    expect(await buffer(blob.body)).toEqual(content.subarray(990))
    expect(server.hits[0]?.headers.range).toBe('bytes=990-')
  })

  it('says so when the upstream ignores the range', async () => {
    const { client } = await startClient((_request, response) => {
      response.setHeader('content-length', content.length)
      response.end(content)
    })
    const blob = await client.getBlob(alpine, digest, { offset: 990 })
    expect(blob).toMatchObject({ startOffset: 0, sizeBytes: 1000 })
    blob.body.destroy().on('error', () => {})
  })

  it.each([
    ['another part', 206, { 'content-range': 'bytes 0-999/1000' }],
    ['no Content-Range', 206, {}],
    ['an encoded part', 206, { 'content-range': 'bytes 990-999/1000', 'content-encoding': 'gzip' }],
    ['no such part', 416, { 'content-range': 'bytes */1000' }],
    ['no content', 204, {}],
  ])('refuses %s', async (_what, status, headers) => {
    const { client } = await startClient((_request, response) => {
      response.writeHead(status, headers).end()
    })
    expect(await kindOf(client.getBlob(alpine, digest, { offset: 990 }))).toBe('bad-response')
  })

  it('refuses a part that was not asked for', async () => {
    const { client } = await startClient((_request, response) => {
      response.writeHead(206, { 'content-range': 'bytes 0-9/1000' }).end('0123456789')
    })
    expect(await kindOf(client.getBlob(alpine, digest))).toBe('bad-response')
  })

  it.each(Object.entries(ENCODERS))('decodes %s, of unknown size', async (encoding, encode) => {
    const { client } = await startClient((_request, response) => {
      response.setHeader('content-encoding', encoding)
      response.end(encode(content))
    })
    const blob = await client.getBlob(alpine, digest, { offset: 10 })
    expect(blob).toMatchObject({ startOffset: 0, sizeBytes: undefined })
    expect(await buffer(blob.body)).toEqual(content)
  })

  it('emits an error when the connection breaks off', async () => {
    const { client, clock } = await startClient((_request, response) => {
      response.setHeader('content-length', content.length)
      response.write(content.subarray(0, 10), () => response.destroy())
    })
    const { body } = await client.getBlob(alpine, digest)
    const error = await buffer(body).catch((reason: unknown) => reason)
    expect(connectionError(error, 'h')).toMatchObject({ kind: 'unreachable' })
    expect(clock.pendingTimers).toBe(0)
  })

  it('is given up when it stands still, before clients give us up', async () => {
    const { client } = await startClient((_request, response) => {
      response.setHeader('content-length', content.length)
      response.write(content.subarray(0, 10))
    })
    const { body } = await client.getBlob(alpine, digest)
    const failure = new Promise((resolve) => body.once('error', resolve))
    await once(body, 'data')
    // By then undici waits for the next byte.
    await nextTurn()
    const beforeMs = fastNowMs()
    passFastTime(25_000)
    expect(connectionError(await failure, 'h')).toMatchObject({ kind: 'timeout' })
    expect(fastNowMs() - beforeMs).toBeLessThan(30_000)
  })

  it('is not bound by the time limit once the headers are in', async () => {
    const { client, clock } = await startClient((_request, response) => {
      response.setHeader('content-length', content.length)
      response.write(content.subarray(0, 10))
      setImmediate(() => response.end(content.subarray(10)))
    })
    const { body } = await client.getBlob(alpine, digest)
    await clock.advance(3_600_000)
    expect(await buffer(body)).toEqual(content)
  })

  it('ends with the caller, before the headers and after', async () => {
    const { client, server } = await startClient((_request, response, hits) => {
      if (hits.length === 2) response.writeHead(200, { 'content-length': 1000 }).write('0')
    })
    const early = new AbortController()
    const call = client.getBlob(alpine, digest, { signal: early.signal })
    await waitFor('the request', () => server.hits.length === 1)
    early.abort(new Error('left early'))
    await expect(call).rejects.toThrow('left early')

    const late = new AbortController()
    const { body } = await client.getBlob(alpine, digest, { signal: late.signal })
    late.abort(new Error('left late'))
    await expect(buffer(body)).rejects.toThrow('left late')
    await waitFor('the connections to end', () => server.sockets.every((it) => it.destroyed))
    expect(server.hits.length).toBe(2)
  })

  it('asks nothing for a caller that has left already', async () => {
    const { client, server } = await startClient((_request, response) => response.end())
    const signal = AbortSignal.abort(new Error('gone'))
    await expect(client.getBlob(alpine, digest, { signal })).rejects.toThrow('gone')
    expect(server.hits.length).toBe(0)
  })
})
