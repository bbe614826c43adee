// The edges of /v2: what is refused, which names are names, and what every answer carries.

import { describe, expect, it } from 'vitest'
import { startLayover } from '../support/layover.ts'
import { blobOf, buildImage } from '../support/images.ts'
import { RawConnection } from '../support/raw-connection.ts'

const DIGEST = blobOf(1, 'wire').digest
const NAME = 'library/alpine'

interface ErrorBody {
  readonly errors: readonly { readonly code: string; readonly message: string }[]
}

function codeIn(body: Buffer): string | undefined {
  const json: ErrorBody = JSON.parse(body.toString())
  return json.errors[0]?.code
}

describe('the base', () => {
  it('is 200 with an empty object', async () => {
    const { layover } = await startLayover()
    const answer = await layover.get('/v2/')
    expect([answer.status, answer.body.toString()]).toEqual([200, '{}'])
    expect(Object.fromEntries(answer.headers)).toMatchObject({
      'Content-Type': 'application/json',
      'Content-Length': '2',
      'Docker-Distribution-Api-Version': 'registry/2.0',
    })
    const head = await layover.head('/v2/')
    expect([head.status, head.header('content-length'), head.body.length]).toEqual([200, '2', 0])
  })

  it('is where a path without the slash is sent', async () => {
    const { layover } = await startLayover()
    const answer = await layover.get('/v2')
    expect([answer.status, answer.header('location')]).toEqual([301, '/v2/'])
  })

  it('is 200 also for who brings credentials that nobody asked for', async () => {
    const { layover, upstream } = await startLayover()
    upstream.addImage(NAME, '3', buildImage())
    const headers = { Authorization: 'Basic c29tZWJvZHk6c2VjcmV0' }
    expect((await layover.get('/v2/', { headers })).status).toBe(200)
    expect((await layover.get(`/v2/${NAME}/manifests/3`, { headers })).status).toBe(200)
    expect(upstream.requests.map((request) => request.headers.authorization)).not.toContain(
      headers.Authorization,
    )
  })
})

describe('a request with a host in its first line', () => {
  it('is answered and logged as any other', async () => {
    const { layover, upstream } = await startLayover()
    const image = buildImage()
    upstream.addImage(NAME, '3', image)
    const ask = async (target: string): Promise<string> => {
      const text = `GET ${target} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n`
      return (await RawConnection.open(layover.url, text)).ended()
    }
    expect(await ask('http://cache:5000/v2/')).toMatch(/^HTTP\/1\.1 200 [^]*\{\}$/)
    const manifest = await ask(`http://cache:5000/v2/${NAME}/manifests/3`)
    expect(manifest).toContain(`Docker-Content-Digest: ${image.manifest.digest}`)
    expect(await ask('http://cache:5000/livez')).toMatch(/ok\n$/)
    expect(await layover.lastAccessLine(2)).toMatchObject({ uri: `/v2/${NAME}/manifests/3` })
  })
})

describe('what would write', () => {
  const paths = [
    '/v2/',
    `/v2/${NAME}/blobs/uploads/`,
    `/v2/${NAME}/blobs/uploads/some-uuid`,
    `/v2/${NAME}/blobs/${DIGEST}`,
    `/v2/${NAME}/manifests/3`,
    '/v2/anything/else',
  ]
  it.each(['POST', 'PUT', 'PATCH', 'DELETE', 'OPTIONS'])(
    'is 405 UNSUPPORTED (%s)',
    async (method) => {
      const { layover, upstream } = await startLayover()
      for (const path of paths) {
        const answer = await layover.get(path, { method })
        expect(answer.status).toBe(405)
        expect(answer.header('allow')).toBe('GET, HEAD')
        expect(codeIn(answer.body)).toBe('UNSUPPORTED')
      }
      expect(upstream.count()).toBe(0)
    },
  )

  it('is refused before its body is sent', async () => {
    const { layover } = await startLayover()
    const head = `PUT /v2/${NAME}/manifests/3 HTTP/1.1\r\nHost: x\r\nContent-Length: 1000000\r\n`
    const waiting = await layover.send(`${head}Expect: 100-continue\r\n\r\n`)
    expect(waiting).toMatch(/^HTTP\/1\.1 405 /)
    const eager = await layover.send(`${head}\r\nthe first bytes`)
    expect(eager).toMatch(/^HTTP\/1\.1 405 /)
  })
})

describe('a path', () => {
  it.each([
    '/v2/nothing',
    '/v2/library/alpine',
    '/v2/library/alpine/manifests',
    `/v2/manifests/${DIGEST}`,
    '/v2/library/alpine/tags',
    '/v2/library/alpine/tags/lists',
    '/v2/library/alpine/blobs/uploads/',
    '/v2/alpine/blobs/sha256:../../../../etc/passwd',
    '/v1/',
    '/other',
  ])('that no registry has is 404: %s', async (path) => {
    const { layover, upstream } = await startLayover()
    const text = await layover.send(`GET ${path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n`)
    expect(text).toMatch(/^HTTP\/1\.1 404 /i)
    expect(text).toContain('"code":"NAME_UNKNOWN"')
    expect(upstream.count()).toBe(0)
  })

  it.each([
    ['/v2/Library/alpine/manifests/3', 'NAME_INVALID'],
    ['/v2/library//alpine/manifests/3', 'NAME_INVALID'],
    ['/v2/-alpine/manifests/3', 'NAME_INVALID'],
    ['/v2/../alpine/manifests/3', 'NAME_INVALID'],
    ['/v2/a/../b/manifests/3', 'NAME_INVALID'],
    ['/v2/a/./b/manifests/3', 'NAME_INVALID'],
    ['/v2/a%2fb/manifests/3', 'NAME_INVALID'],
    ['/v2/a/%2e%2e/b/manifests/3', 'NAME_INVALID'],
    ['/v2/a%00b/manifests/3', 'NAME_INVALID'],
    ['/v2/a\\b/manifests/3', 'NAME_INVALID'],
    ['/v2/%C3%A4pfel/manifests/3', 'NAME_INVALID'],
    [`/v2/${'a'.repeat(256)}/manifests/3`, 'NAME_INVALID'],
    [`/v2/${'a/'.repeat(3000)}b/manifests/3`, 'NAME_INVALID'],
    ['/v2/alpine/manifests/sha256:abc', 'DIGEST_INVALID'],
    [`/v2/alpine/manifests/md5:${'a'.repeat(32)}`, 'DIGEST_INVALID'],
    [`/v2/alpine/blobs/sha256:${'A'.repeat(64)}`, 'DIGEST_INVALID'],
    ['/v2/alpine/blobs/latest', 'DIGEST_INVALID'],
    ['/v2/alpine/referrers/latest', 'DIGEST_INVALID'],
  ])('%s is refused with %s', async (path, code) => {
    const { layover, upstream } = await startLayover()
    const text = await layover.send(`GET ${path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n`)
    expect(text).toMatch(/^HTTP\/1\.1 400 /)
    expect(text).toContain(`"code":"${code}"`)
    expect(upstream.count()).toBe(0)
    expect(await layover.files('docker')).toEqual([])
  })

  it.each([
    '/v2/registry.test:5000/org/app/manifests/3',
    '/v2/registry.test%3A5000/org/app/tags/list',
    `/v2/localhost:5000/app/blobs/${DIGEST}`,
  ])(
    '%s, which begins with a port, is unknown, and clients are told how it is written',
    async (path) => {
      const { layover, upstream } = await startLayover()
      const answer = await layover.get(path)
      expect(answer.status).toBe(404)
      expect(answer.body.toString()).toMatch(
        /NAME_UNKNOWN.*is written (registry\.test|localhost)_5000/,
      )
      expect(upstream.count()).toBe(0)
    },
  )

  it.each([
    '/v2/alpine/manifests/..',
    '/v2/alpine/manifests/.hidden',
    '/v2/alpine/manifests/-3',
    `/v2/alpine/manifests/${'a'.repeat(129)}`,
    '/v2/alpine/manifests/3%2f4',
  ])('%s, which cannot be a tag, is unknown, and nobody is asked', async (path) => {
    const { layover, upstream } = await startLayover()
    const text = await layover.send(`GET ${path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n`)
    expect(text).toMatch(/^HTTP\/1\.1 404 /)
    expect(text).toContain('"code":"MANIFEST_UNKNOWN"')
    expect(text).toContain('"invalidReference"')
    expect(upstream.count()).toBe(0)
    expect(await layover.files('docker')).toEqual([])
  })

  it.each(['\u0000', '\u00e4', '\u007f'])('with a raw %j is no request', async (character) => {
    const { layover, upstream } = await startLayover()
    const path = `/v2/a${character}b/manifests/3`
    const text = await layover.send(`GET ${path} HTTP/1.1\r\nHost: x\r\n\r\n`)
    expect(text).toMatch(/^HTTP\/1\.1 400 /)
    expect(upstream.count()).toBe(0)
  })

  it('may name a digest with an encoded colon', async () => {
    const { layover, upstream } = await startLayover()
    const { manifest } = buildImage()
    upstream.addImage(NAME, undefined, buildImage())
    const encoded = manifest.digest.replace(':', '%3A')
    expect((await layover.get(`/v2/${NAME}/manifests/${encoded}`)).status).toBe(200)
  })

  it.each([
    'manifests',
    'a/manifests',
    'manifests/manifests',
    'a/blobs/b',
    'tags/list',
    'a/_catalog',
  ])('may have a repository whose components are keywords: %s', async (name) => {
    const { layover, upstream } = await startLayover()
    const image = buildImage()
    upstream.addImage(name, '3', image)
    const answer = await layover.get(`/v2/${name}/manifests/3`)
    expect(answer.status).toBe(name.includes('_') ? 400 : 200)
    if (answer.status === 400) return
    const blob = await layover.get(`/v2/${name}/blobs/${image.config.digest}`)
    expect(blob.body.equals(image.config.bytes)).toBe(true)
    expect((await layover.get(`/v2/${name}/tags/list`)).status).toBe(200)
  })
})

describe('the parameter ns', () => {
  it('of this upstream, or of Docker Hub, is answered', async () => {
    const { layover, upstream } = await startLayover()
    upstream.addImage(NAME, '3', buildImage())
    for (const namespace of [new URL(upstream.url).host, 'docker.io', 'DOCKER.IO']) {
      const path = `/v2/${NAME}/manifests/3?ns=${encodeURIComponent(namespace)}`
      expect((await layover.get(path)).status).toBe(200)
    }
  })

  it.each([
    [`manifests/3`, 'MANIFEST_UNKNOWN'],
    [`blobs/${DIGEST}`, 'BLOB_UNKNOWN'],
  ])('of another registry is 404, for %s too', async (rest, code) => {
    const { layover, upstream } = await startLayover()
    upstream.addImage(NAME, '3', buildImage())
    const answer = await layover.get(`/v2/${NAME}/${rest}?ns=ghcr.io`)
    expect([answer.status, codeIn(answer.body)]).toEqual([404, code])
    expect(upstream.count()).toBe(0)
  })
})

describe('configuration', () => {
  it('http.prefix comes before everything, links too', async () => {
    const { layover, upstream } = await startLayover({
      configuration: { http: { addr: '127.0.0.1:0', prefix: '/cache/' } },
    })
    upstream.addImage(NAME, 'a', buildImage())
    upstream.addImage(NAME, 'b', buildImage())
    expect(layover.url).toMatch(/\/cache$/)
    expect((await layover.get('/v2/')).status).toBe(200)
    expect((await layover.get('/v2')).header('location')).toBe('/cache/v2/')
    const tags = await layover.get(`/v2/${NAME}/tags/list?n=1`)
    expect(tags.header('link')).toBe(`</cache/v2/${NAME}/tags/list?last=a&n=1>; rel="next"`)
    const outside = new URL('/v2/', layover.url)
    expect((await fetch(outside)).status).toBe(404)
  })

  it('http.headers are added to every answer under /v2, errors too', async () => {
    const { layover } = await startLayover({
      configuration: {
        http: { addr: '127.0.0.1:0', headers: { 'X-Content-Type-Options': ['nosniff'] } },
      },
    })
    for (const path of ['/v2/', '/v2/alpine/manifests/-', '/v2/alpine/manifests/3']) {
      expect((await layover.get(path)).header('x-content-type-options')).toBe('nosniff')
    }
  })

  it('http.headers give way to those that an answer has of its own, each of which is there once', async () => {
    const headers = {
      'content-type': ['text/plain'],
      'Cache-Control': ['no-store'],
      ETAG: ['"other"'],
      'Docker-Distribution-Api-Version': ['registry/9'],
      'Content-Length': ['3'],
      'Transfer-Encoding': ['chunked'],
      'X-Twice': ['one', 'two'],
    }
    const { layover, upstream } = await startLayover({
      configuration: { http: { addr: '127.0.0.1:0', headers } },
    })
    const image = buildImage()
    upstream.addImage(NAME, '3', image)
    const [layer] = image.layers
    const paths = ['/v2/', `/v2/${NAME}/manifests/3`, `/v2/${NAME}/blobs/${layer?.digest}`]
    for (const path of paths) {
      for (const again of [1, 2]) {
        const answer = await layover.get(path)
        expect(answer.status, `${path} ${again}`).toBe(200)
        const names = answer.headers.map(([name]) => name.toLowerCase())
        const twice = names.filter((name, at) => names.indexOf(name) !== at)
        expect(twice).toEqual(['x-twice'])
        expect(answer.header('docker-distribution-api-version')).toBe('registry/2.0')
        expect(answer.header('content-type')).not.toBe('text/plain')
        expect(answer.header('transfer-encoding')).toBeUndefined()
      }
    }
    const manifest = await layover.get(`/v2/${NAME}/manifests/3`)
    expect(manifest.header('etag')).toBe(`"${image.manifest.digest}"`)
    expect(manifest.header('cache-control')).toBe('no-store')
    const blob = await layover.get(`/v2/${NAME}/blobs/${layer?.digest}`)
    expect(blob.header('cache-control')).toBe('max-age=31536000')
  })
})
