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
    expect(manifest).toEqual({ digest, mediaType, bytes: content })
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
      nextPage: 'artifactType=a&page=2',
    })
    await client.getReferrers(alpine, digest, { page: page.nextPage ?? '' })
    expect(server.hits.map(({ path }) => path)).toEqual([
      `/v2/library/alpine/referrers/${digest}?artifactType=a%2Fb`,
      `/v2/library/alpine/referrers/${digest}?artifactType=a&page=2`,
    ])
  })

  it('keeps a hostile page marker within the query', async () => {
    const { client, server } = await startClient((_request, response) => sendJson(response, index))
    await client.getReferrers(alpine, digest, { page: '#/../\r\nX: y' })
    expect(server.hits[0]?.path).toBe(`/v2/library/alpine/referrers/${digest}?%23/../X:%20y`)
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
