import { getEventListeners } from 'node:events'
import { buffer } from 'node:stream/consumers'
import { describe, expect, it } from 'vitest'
import type { UpstreamClient } from '../../../src/upstream/upstream-client.ts'
import { FAKE_EPOCH_MS } from '../../support/fake-clock.ts'
import { waitFor } from '../../support/wait-for.ts'
import {
  alpine,
  content,
  digest,
  failureOf,
  kindOf,
  makeClient,
  pour,
  sendJson,
  startClient,
  startServer,
  type Handler,
  type TestClient,
} from './small-server.ts'

const login = { username: 'robot', password: 'secret' }
const basic = { credentials: { kind: 'static', ...login } } as const

/** Lets time pass while the client works, until it is done. */
async function whileTimePasses<T>({ clock }: TestClient, call: Promise<T>): Promise<T> {
  let isDone = false
  const done = call.finally(() => (isDone = true))
  done.catch(() => {})
  await waitFor('the call', async () => {
    if (clock.nextTimerMs !== undefined && clock.nextTimerMs < 5_000) {
      await clock.advance(clock.nextTimerMs)
    }
    return isDone
  })
  return done
}

describe('redirects', () => {
  it.each([301, 302, 303, 307, 308])('of status %i are followed', async (status) => {
    const { client, server, observations } = await startClient((request, response) => {
      if (request.url?.startsWith('/v2/')) {
        response.writeHead(status, { location: '/files/x?sig=1' }).end('moved')
      } else response.end(content)
    })
    expect((await client.getManifest(alpine, '3.20')).bytes).toEqual(content)
    expect(server.hits[1]).toMatchObject({ method: 'GET', path: '/files/x?sig=1' })
    expect(observations.map(({ kind }) => kind)).toEqual(['manifest', 'redirect'])
  })

  it('keep HEAD and the range', async () => {
    const cdn = await startServer((_request, response) => {
      response.writeHead(206, { 'content-range': 'bytes 10-999/1000' }).end()
    })
    const { client } = await startClient((_request, response) => {
      response.writeHead(303, { location: cdn.url }).end()
    })
    const { body } = await client.getBlob(alpine, digest, { offset: 10 })
    body.resume()
    expect(cdn.hits[0]).toMatchObject({ method: 'GET', headers: { range: 'bytes=10-' } })
    await client.headBlob(alpine, digest).catch(() => {})
    expect(cdn.hits[1]?.method).toBe('HEAD')
  })

  it('take credentials to the same origin only, and not even there once they left it', async () => {
    const cdn = await startServer((request, response) => {
      if (request.url === '/back') response.writeHead(307, { location: `${home.url}/end` }).end()
      else response.end(content)
    })
    const home = await startServer((request, response) => {
      if (!request.headers.authorization && request.url !== '/end') {
        response.writeHead(401, { 'www-authenticate': 'Basic realm="x"' }).end()
      } else if (request.url?.endsWith('/a')) response.writeHead(307, { location: '/b' }).end()
      else if (request.url === '/b') response.writeHead(307, { location: `${cdn.url}/c` }).end()
      else if (request.url === '/end') response.end(content)
      else response.writeHead(307, { location: `${cdn.url}/back` }).end()
    })
    const { client } = makeClient(home.url, basic)
    await client.getManifest(alpine, 'a')
    await client.getManifest(alpine, 'c')
    const sent = [...home.hits, ...cdn.hits].map(({ path, headers }) => [
      path.split('/').at(-1),
      headers.authorization !== undefined,
    ])
    expect(sent).toEqual([
      ['a', false],
      ['a', true],
      ['b', true],
      ['c', true],
      ['end', false],
      ['c', false],
      ['back', false],
    ])
  })

  it('start at the registry each time', async () => {
    const { client, server } = await startClient((request, response, hits) => {
      if (request.url?.startsWith('/v2/')) {
        response.writeHead(307, { location: `/once/${hits.length}` }).end()
      } else response.end(content)
    })
    await client.getManifest(alpine, 'a')
    await client.getManifest(alpine, 'a')
    expect(server.count('/v2/')).toBe(2)
    expect(server.hits.map(({ path }) => path).slice(1)).toContain('/once/3')
  })

  it.each([
    ['no Location', {}],
    ['a malformed Location', { location: 'http://[' }],
    ['another protocol', { location: 'file:///etc/passwd' }],
    ['credentials in the Location', { location: 'http://user:pass@127.0.0.1/' }],
    ['a circle', { location: '?' }],
  ])('with %s are a bad response', async (_what, headers) => {
    const { client, server } = await startClient((_request, response) => {
      response.writeHead(307, headers).end()
    })
    expect(await kindOf(client.getBlob(alpine, digest))).toBe('bad-response')
    expect(server.hits.length).toBeLessThanOrEqual(2)
  })

  it('end after five hops', async () => {
    const { client, server } = await startClient((_request, response, hits) => {
      if (hits.length > 20) response.end(content)
      else response.writeHead(307, { location: `/hop/${hits.length}` }).end()
    })
    expect(await kindOf(client.getBlob(alpine, digest))).toBe('bad-response')
    expect(server.hits.length).toBe(6)
  })

  it('that are refused elsewhere do not read as "denied"', async () => {
    const cdn = await startServer((_request, response) => {
      response.writeHead(403, { 'www-authenticate': 'Basic realm="x"' }).end('expired')
    })
    const { client } = await startClient((_request, response) => {
      response.writeHead(307, { location: `${cdn.url}/x?X-Amz-Signature=secret` }).end()
    })
    const error = await failureOf(client.getBlob(alpine, digest))
    expect(error).toMatchObject({ kind: 'bad-response', status: 403 })
    expect(error.message).toContain(cdn.host)
    expect(error.message).not.toContain('secret')
  })

  it('are not followed where only an answer makes sense', async () => {
    const { client } = await startClient((_request, response) => response.writeHead(304).end())
    expect(await kindOf(client.getManifest(alpine, 'a'))).toBe('bad-response')
  })
})

describe('retries', () => {
  it.each([408, 500, 502, 503, 504])('give status %i two more tries', async (status) => {
    const made = await startClient((_request, response, hits) => {
      if (hits.length < 3) response.writeHead(status).end('busy')
      else response.end(content)
    })
    const manifest = await whileTimePasses(made, made.client.getManifest(alpine, 'a'))
    expect(manifest.bytes).toEqual(content)
    expect(made.server.hits.length).toBe(3)
    expect(made.clock.monotonic()).toBe(1000)
  })

  it('end with what the upstream said last', async () => {
    const made = await startClient((_request, response) => {
      sendJson(response, { errors: [{ message: 'down for maintenance' }] }, 503)
    })
    const error = await failureOf(whileTimePasses(made, made.client.getManifest(alpine, 'a')))
    expect(error).toMatchObject({ kind: 'unavailable', status: 503, retryAfterMs: undefined })
    expect(error.message).toContain('down for maintenance')
    expect(made.server.hits.length).toBe(3)
  })

  it('cover connections that break before the headers', async () => {
    const made = await startClient((request, response, hits) => {
      if (hits.length < 3) request.socket.destroy()
      else response.end(content)
    })
    await whileTimePasses(made, made.client.getManifest(alpine, 'a'))
    expect(made.observations.map(({ status }) => status)).toEqual([undefined, undefined, 200])
  })

  it('cover hosts that cannot be reached', async () => {
    const made = makeClient('http://127.0.0.1:1')
    expect(await kindOf(whileTimePasses(made, made.client.getManifest(alpine, 'a')))).toBe(
      'unreachable',
    )
    expect(made.observations.length).toBe(3)
  })

  it.each([400, 403, 404, 405, 410, 429, 501])('are not made for %i', async (status) => {
    const { client, server, clock } = await startClient((_request, response) => {
      response.writeHead(status).end()
    })
    const kinds: Record<number, string> = {
      403: 'denied',
      404: 'not-found',
      429: 'rate-limited',
      501: 'unavailable',
    }
    const error = await failureOf(client.getManifest(alpine, 'a'))
    expect(error).toMatchObject({ kind: kinds[status] ?? 'bad-response', status })
    expect(server.hits.length).toBe(1)
    expect(clock.pendingTimers).toBe(0)
  })

  it('start at the registry, not where a redirect led', async () => {
    const made = await startClient((request, response, hits) => {
      if (request.url?.startsWith('/v2/')) {
        response.writeHead(307, { location: `/cdn/${hits.length}` }).end()
      } else if (hits.length === 2) response.writeHead(503).end()
      else response.end(content)
    })
    await whileTimePasses(made, made.client.getManifest(alpine, 'a'))
    expect(made.server.hits.map(({ path }) => path.split('/').slice(1, 3).join('/'))).toEqual([
      'v2/library',
      'cdn/1',
      'v2/library',
      'cdn/3',
    ])
  })

  it('wait as long as the upstream asks', async () => {
    const date = new Date(FAKE_EPOCH_MS + 4_000).toUTCString()
    const made = await startClient((_request, response, hits) => {
      const retryAfter = hits.length === 1 ? '3' : date
      if (hits.length < 3) response.writeHead(503, { 'retry-after': retryAfter }).end()
      else response.end(content)
    })
    await whileTimePasses(made, made.client.getManifest(alpine, 'a'))
    // 3 s as asked, then until the date, which is less than the backoff's 800 ms away at the end.
    expect(made.clock.monotonic()).toBe(4_000)
  })

  it.each([
    ['5', 5_000],
    ['60', 60_000],
    ['99999999999999999999', 3_600_000],
    [new Date(FAKE_EPOCH_MS + 30_000).toUTCString(), 30_000],
  ])('are given up at once when it asks for too much (%s)', async (retryAfter, retryAfterMs) => {
    const { client, server } = await startClient((_request, response) => {
      response.writeHead(503, { 'retry-after': retryAfter }).end()
    })
    const error = await failureOf(client.getManifest(alpine, 'a'))
    expect(error).toMatchObject({ kind: 'unavailable', retryAfterMs })
    expect(server.hits.length).toBe(1)
  })

  it('are counted over the whole call, challenge included', async () => {
    const made = await startClient((request, response, hits) => {
      if (request.headers.authorization) response.writeHead(503).end()
      else if (hits.length < 2) response.writeHead(503).end()
      else response.writeHead(401, { 'www-authenticate': 'Basic realm="x"' }).end()
    })
    const client = makeClient(made.server.url, basic)
    const failure = failureOf(whileTimePasses(client, client.client.getManifest(alpine, 'a')))
    expect(await failure).toMatchObject({ kind: 'unavailable' })
    expect(made.server.hits.length).toBe(4)
  })

  it('end when the time is up', async () => {
    const made = await startClient((_request, response, hits) => {
      if (hits.length === 1) response.writeHead(503).end()
    })
    const failure = failureOf(made.client.getManifest(alpine, 'a'))
    await waitFor('the wait for the second try', () => made.clock.nextTimerMs === 200)
    await made.clock.advance(200)
    await waitFor('the second try', () => made.server.hits.length === 2)
    await made.clock.advance(24_799)
    expect(made.observations.length).toBe(1)
    await made.clock.advance(1)
    expect(await failure).toMatchObject({ kind: 'timeout' })
    expect(made.server.hits.length).toBe(2)
  })

  it('end with the caller', async () => {
    const made = await startClient((_request, response) => response.writeHead(503).end())
    const caller = new AbortController()
    const call = made.client.getManifest(alpine, 'a', { signal: caller.signal })
    call.catch(() => {})
    await waitFor('the wait for the second try', () => made.clock.nextTimerMs === 200)
    caller.abort(new Error('left'))
    await expect(call).rejects.toThrow('left')
    expect(made.clock.pendingTimers).toBe(0)
  })
})

describe('nothing is left behind', () => {
  it('by a call that is over: no timer, and no listener at the signal', async () => {
    const server = await startServer((request, response) => {
      if (request.url?.startsWith('/token')) sendJson(response, { token: 't' })
      else if (request.url?.endsWith('/none')) response.writeHead(404).end()
      else if (request.headers.authorization) response.end(content)
      else {
        const realm = `http://${request.headers.host}/token`
        response.writeHead(401, { 'www-authenticate': `Bearer realm="${realm}"` }).end()
      }
    })
    const { client, clock } = makeClient(server.url)
    const { signal } = new AbortController()
    await client.getManifest(alpine, 'a', { signal })
    await client.getManifest(alpine, 'none', { signal }).catch(() => {})
    const { body } = await client.getBlob(alpine, digest, { signal })
    expect(getEventListeners(signal, 'abort').length).toBe(1)
    await buffer(body)
    await waitFor('the body to close', () => body.closed)
    expect(getEventListeners(signal, 'abort').length).toBe(0)
    expect(clock.pendingTimers).toBe(0)
  })

  it.each<[string, Handler, (client: UpstreamClient) => Promise<unknown>]>([
    [
      'a redirect',
      (_request, response) => response.writeHead(307, { location: '/end' }),
      (client) => client.getManifest(alpine, 'a'),
    ],
    [
      'an answer that is asked for again',
      (_request, response, hits) => response.writeHead(hits.length === 1 ? 503 : 404),
      (client) => client.getManifest(alpine, 'a'),
    ],
    [
      'another part than was asked for',
      (_request, response) => response.writeHead(206, { 'content-range': 'bytes 0-/9' }),
      (client) => client.getBlob(alpine, digest, { offset: 1 }),
    ],
    [
      'an unknown encoding',
      (_request, response) => response.writeHead(200, { 'content-encoding': 'zstd' }),
      (client) => client.getBlob(alpine, digest),
    ],
    [
      'a body where a byte was asked for',
      (request, response) => response.writeHead(request.method === 'HEAD' ? 405 : 200),
      (client) => client.headBlob(alpine, digest),
    ],
  ])('by %s without end: its connection ends', async (_what, answer, call) => {
    const made = await startClient((request, response, hits) => {
      if (request.url === '/end') response.end()
      else {
        answer(request, response, hits)
        if (request.method === 'HEAD') response.end()
        else pour(response)
      }
    })
    await whileTimePasses(
      made,
      call(made.client).catch(() => {}),
    )
    const isOver = (): boolean =>
      made.server.responses.every(
        ({ writableFinished, destroyed }) => writableFinished || destroyed,
      )
    await waitFor('every answer to be over', isOver)
  })
})
