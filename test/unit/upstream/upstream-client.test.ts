import { once } from 'node:events'
import { createServer } from 'node:net'
import { gzipSync } from 'node:zlib'
import { describe, expect, it, onTestFinished } from 'vitest'
import { MANIFEST_ACCEPT } from '../../../src/oci/manifest.ts'
import { waitFor } from '../../support/wait-for.ts'
import {
  ENCODERS,
  alpine,
  content,
  digest,
  failureOf,
  hostOf,
  kindOf,
  makeClient,
  sendJson,
  startClient,
  startServer,
  type SmallServer,
  type TestClient,
} from './small-server.ts'

describe('every request', () => {
  it('asks for identity under our name, below the path of remoteUrl', async () => {
    const server = await startServer((_request, response) => response.end(content))
    const { client, observations } = makeClient(`${server.url}/mirror/`)
    await client.getManifest(alpine, '3.20')
    expect(server.hits).toMatchObject([
      {
        method: 'GET',
        path: '/mirror/v2/library/alpine/manifests/3.20',
        headers: {
          accept: MANIFEST_ACCEPT,
          'accept-encoding': 'identity',
          'user-agent': 'layover/1.2.3',
        },
      },
    ])
    expect(server.hits[0]?.headers.authorization).toBeUndefined()
    expect(observations).toMatchObject([{ method: 'GET', kind: 'manifest', status: 200 }])
  })

  it('uses its connections again, whatever the answers were', async () => {
    const statuses = [200, 404, 200, 403, 429, 200, 400]
    const { client, server } = await startClient((request, response, hits) => {
      response.statusCode = statuses[hits.length - 1] ?? 200
      response.end(request.method === 'HEAD' ? undefined : '{"errors":[{"message":"no"}]}')
    })
    for (const status of statuses) {
      const call =
        status === 200 ? client.headManifest(alpine, 'a') : client.getManifest(alpine, 'a')
      await call.catch(() => {})
    }
    expect(server.hits.length).toBe(statuses.length)
    // undici frees a connection one turn after its answer: calls in a row take turns on two.
    expect(server.sockets.length).toBeLessThanOrEqual(2)
  })

  it.each([
    ['https://registry-1.docker.io', true],
    ['https://index.docker.io/', true],
    ['https://docker.io', true],
    ['https://registry-1.docker.io.evil.test', false],
    ['https://ghcr.io', false],
  ])('knows whether %s is Docker Hub', (url, expected) => {
    expect(makeClient(url).client.isDockerHub).toBe(expected)
  })
})

describe('manifests', () => {
  it('come with what the headers claim', async () => {
    const { client } = await startClient((_request, response) => {
      response.setHeader('docker-content-digest', digest)
      response.setHeader('content-type', 'application/vnd.oci.image.index.v1+json; charset=utf-8')
      response.setHeader('content-length', content.length)
      response.end(content)
    })
    const mediaType = 'application/vnd.oci.image.index.v1+json'
    const head = await client.headManifest(alpine, '3.20')
    expect(head).toEqual({ digest, mediaType, sizeBytes: content.length })
    const manifest = await client.getManifest(alpine, digest)
    expect(manifest).toEqual({ digest, mediaType, bytes: content, sentBy: client.name })
  })

  it('come without what the headers do not say, or say wrongly', async () => {
    const { client } = await startClient((_request, response) => {
      response.setHeader('docker-content-digest', 'sha256:../../etc/passwd')
      response.end()
    })
    const nothing = { digest: undefined, mediaType: undefined, sizeBytes: undefined }
    expect(await client.headManifest(alpine, '3.20')).toEqual(nothing)
  })

  it.each(Object.entries(ENCODERS))('are decoded from %s', async (encoding, encode) => {
    const { client } = await startClient((_request, response) => {
      response.setHeader('content-encoding', encoding)
      response.end(encode(content))
    })
    expect((await client.getManifest(alpine, '3.20')).bytes).toEqual(content)
  })

  it.each(['zstd', 'gzip, gzip', 'constructor'])('in %s are a bad response', async (encoding) => {
    const { client, server } = await startClient((_request, response) => {
      response.setHeader('content-encoding', encoding)
      response.end(content)
    })
    expect(await kindOf(client.getManifest(alpine, '3.20'))).toBe('bad-response')
    expect(server.hits.length).toBe(1)
  })

  it('that are broken or endless are a bad response, counted after decoding', async () => {
    const bodies = [
      { encoding: 'gzip', body: Buffer.from('not gzip') },
      { encoding: 'gzip', body: gzipSync(content).subarray(0, -10) },
      { encoding: 'gzip', body: gzipSync(Buffer.alloc(64 * 1024 * 1024)) },
      { encoding: 'identity', body: Buffer.alloc(4 * 1024 * 1024 + 1) },
    ]
    const { client, server } = await startClient((_request, response, hits) => {
      const { encoding, body } = bodies[hits.length - 1] ?? { encoding: 'missing' }
      response.setHeader('content-encoding', encoding)
      response.end(body)
    })
    for (const _ of bodies) {
      expect(await kindOf(client.getManifest(alpine, '3.20'))).toBe('bad-response')
    }
    expect(server.hits.length).toBe(bodies.length)
  })

  it('of exactly 4 MiB are taken', async () => {
    const large = Buffer.alloc(4 * 1024 * 1024, 'x')
    const { client } = await startClient((_request, response) => response.end(large))
    expect((await client.getManifest(alpine, '3.20')).bytes.length).toBe(large.length)
  })

  it('whose body stalls fail when the time is up', async () => {
    const { client, clock, server } = await startClient((_request, response) => {
      response.write('{')
    })
    const failure = failureOf(client.getManifest(alpine, '3.20'))
    await waitFor('the request', () => server.hits.length === 1)
    await clock.advance(25_000)
    expect(await failure).toMatchObject({ kind: 'timeout' })
    await waitFor('the connection to end', () => server.sockets.every(({ destroyed }) => destroyed))
  })
})

describe('listTags', () => {
  it('returns a page and where the next one starts', async () => {
    const { client, server } = await startClient((_request, response) => {
      response.setHeader('link', '<https://elsewhere.test/../x?last=b&n=2>; rel="next"')
      sendJson(response, { name: 'x', tags: ['a', 'b', '../c', 7] })
    })
    const page = await client.listTags(alpine, { count: 2, last: 'A&B' })
    expect(page).toEqual({ tags: ['a', 'b'], next: { count: 2, last: 'b' } })
    expect(server.hits[0]?.path).toBe('/v2/library/alpine/tags/list?n=2&last=A%26B')
  })

  it('takes null for no tags, and asks without a query when there is nothing to ask', async () => {
    const { client, server } = await startClient((_request, response) =>
      sendJson(response, { tags: null }),
    )
    expect(await client.listTags(alpine)).toEqual({ tags: [], next: undefined })
    expect(server.hits[0]?.path).toBe('/v2/library/alpine/tags/list')
  })

  it.each(['<html>', '[]', '{"tags":"a"}', ''])('refuses %j', async (body) => {
    const { client } = await startClient((_request, response) => response.end(body))
    expect(await kindOf(client.listTags(alpine))).toBe('bad-response')
  })

  it('refuses headers without end', async () => {
    const server = createServer((socket) => {
      socket.on('error', () => {})
      socket.once('data', () => {
        socket.write(`HTTP/1.1 200 OK\r\nLink: <${'x'.repeat(1024 * 1024)}>; rel="next"\r\n\r\n`)
      })
    })
    server.listen(0, '127.0.0.1')
    await once(server, 'listening')
    onTestFinished(() => void server.close())
    const { client, observations } = makeClient(`http://${hostOf(server)}`)
    expect(await kindOf(client.listTags(alpine))).toBe('bad-response')
    expect(observations.length).toBe(1)
  })
})

describe('getReferrers', () => {
  const index = { schemaVersion: 2, manifests: [] }

  it('returns the bytes, the filter and the next page', async () => {
    const { client, server } = await startClient((_request, response) => {
      response.setHeader('oci-filters-applied', 'artifactType')
      response.setHeader('link', '</v2/x?artifactType=a&page=2>; rel="next"')
      sendJson(response, index)
    })
    const page = await client.getReferrers(alpine, digest, { artifactType: 'a/b' })
    expect(page).toEqual({
      bytes: Buffer.from(JSON.stringify(index)),
      filtersApplied: 'artifactType',
      nextPage: 'page=2',
    })
    const { nextPage } = page
    await client.getReferrers(alpine, digest, { artifactType: 'a/b', page: nextPage })
    expect(server.hits.map(({ path }) => path)).toEqual([
      `/v2/library/alpine/referrers/${digest}?artifactType=a%2Fb`,
      `/v2/library/alpine/referrers/${digest}?page=2&artifactType=a%2Fb`,
    ])
  })

  it.each([
    ['ns=corp.example', ''],
    ['n%73=corp.example&page=2', '?page=2'],
    ['page=2;ns=corp.example&repository=other&NS=x&artifactType=y&last=b%2B%20', '?last=b%2B%20'],
    ['page=#/../\r\nX: y', '?page=%23/../X:%20y'],
    [`page=${'x'.repeat(5000)}`, ''],
  ])('sends nothing on of a page marker but the page: query %#', async (page, query) => {
    const { client, server } = await startClient((_request, response) => {
      // The same from an upstream.
      response.setHeader('link', `</v2/x?ns=corp.example>; rel="next"`)
      sendJson(response, index)
    })
    const answer = await client.getReferrers(alpine, digest, { page })
    expect(server.hits[0]?.path).toBe(`/v2/library/alpine/referrers/${digest}${query}`)
    expect(answer.nextPage).toBeUndefined()
  })

  it('refuses what is no index', async () => {
    const { client } = await startClient((_request, response) => response.end('<html>hello</html>'))
    expect(await kindOf(client.getReferrers(alpine, digest))).toBe('bad-response')
  })

  it('reports an upstream without the API as not found', async () => {
    const { client } = await startClient((_request, response) =>
      response.writeHead(404).end('<html>'),
    )
    expect(await kindOf(client.getReferrers(alpine, digest))).toBe('not-found')
  })
})

describe('a deadline', () => {
  it('ends a call before its own limit does', async () => {
    const { client, clock, server } = await startClient(() => {})
    await clock.advance(10_000)
    const call = failureOf(client.getManifest(alpine, '3.20', { deadlineMs: 13_250 }))
    await waitFor('the request', () => server.hits.length === 1)
    expect(clock.nextTimerMs).toBe(3_250)
    await clock.advance(3_250)

    expect(await call).toMatchObject({ kind: 'timeout' })
    expect((await call).message).toMatch(/did not answer within 3\.3 s$/)
    expect(clock.pendingTimers).toBe(0)
  })

  it('that is over leaves the upstream alone', async () => {
    const { client, clock, server } = await startClient(() => {})
    await clock.advance(10_000)
    for (const deadlineMs of [10_000, 9_000]) {
      const calls = [
        client.headManifest(alpine, '3.20', { deadlineMs }),
        client.getBlob(alpine, digest, { deadlineMs }),
      ]
      for (const call of calls) {
        expect(await failureOf(call)).toMatchObject({ kind: 'timeout' })
        expect((await failureOf(call)).message).toContain('was not asked again')
      }
    }
    expect(server.hits).toEqual([])
    expect(clock.pendingTimers).toBe(0)
  })
})

describe('close', () => {
  it('ends what is running and what waits for another try', async () => {
    const { client, clock, server } = await startClient((_request, response, hits) => {
      if (hits.length === 1) response.writeHead(503).end()
    })
    const waiting = failureOf(client.headBlob(alpine, digest))
    await waitFor('the first answer', () => clock.nextTimerMs === 200)
    const running = failureOf(client.getManifest(alpine, '3.20'))
    await waitFor('the second request', () => server.hits.length === 2)
    await client.close()
    expect(await waiting).toMatchObject({ kind: 'unavailable' })
    expect(await running).toMatchObject({ kind: 'unavailable' })
    expect(clock.pendingTimers).toBe(0)
  })
})

/** Fetches for a GET only. */
function startHarbor(): Promise<TestClient & { server: SmallServer }> {
  const fetched = new Set<string>()
  return startClient((request, response) => {
    const path = request.url ?? ''
    if (request.method === 'HEAD' && !fetched.has(path)) response.statusCode = 404
    else if (path.includes('absent')) response.statusCode = 404
    else fetched.add(path)
    response.end(request.method === 'HEAD' || response.statusCode === 404 ? undefined : content)
  })
}

describe('a cache that has by HEAD only what it has fetched (Harbor)', () => {
  it('is asked with GET before its 404 is believed', async () => {
    const { client, server } = await startHarbor()
    expect((await client.headManifest(alpine, 'a')).sizeBytes).toBe(content.length)
    expect(await kindOf(client.headManifest(alpine, 'absent'))).toBe('not-found')
    expect(server.hits.map(({ method }) => method)).toEqual(['HEAD', 'GET', 'HEAD', 'GET'])
  })

  it('is asked so for blobs too, once it is known', async () => {
    const { client, server } = await startHarbor()
    expect(await kindOf(client.headBlob(alpine, digest))).toBe('not-found')
    await client.headManifest(alpine, 'a')
    server.hits.splice(0)
    expect((await client.headBlob(alpine, digest)).sizeBytes).toBe(content.length)
    expect(server.hits.map(({ method }) => method)).toEqual(['HEAD', 'GET'])
  })
})

describe('a client with limits of its own', () => {
  it('says through which caches a request has come', async () => {
    const { client, server } = await startClient((_request, response) => response.end(content))
    const own = makeClient(server.url, { viaName: '1.1 layover-1' }).client
    await client.getManifest(alpine, 'a')
    await own.getManifest(alpine, 'a')
    await own.getManifest(alpine, 'a', { via: '1.1 layover-2' })
    expect(server.hits.map(({ headers }) => headers.via)).toEqual([
      undefined,
      '1.1 layover-1',
      '1.1 layover-2, 1.1 layover-1',
    ])
    expect(server.hits.map(({ headers }) => headers['user-agent'])).toEqual([
      'layover/1.2.3',
      'layover/1.2.3 (layover-1)',
      'layover/1.2.3 (layover-2 layover-1)',
    ])
  })

  it('gives up after its own limit', async () => {
    const { server } = await startClient(() => undefined)
    const { client, clock } = makeClient(server.url, { callLimitMs: 3_000 })
    const call = kindOf(client.getManifest(alpine, 'a'))
    await waitFor('the request', () => server.hits.length === 1)
    await clock.advance(3_000)
    expect(await call).toBe('timeout')
  })

  it('sends no more requests in a second than it may', async () => {
    const { server } = await startClient((_request, response) => response.end(content))
    const { client, clock } = makeClient(server.url, { requestsPerSecond: 1 })
    await client.getManifest(alpine, 'a')
    const second = client.getManifest(alpine, 'a')
    await clock.advance(999)
    expect(server.hits.length).toBe(1)
    await clock.advance(1)
    await second
    expect(server.hits.length).toBe(2)
  })
})
