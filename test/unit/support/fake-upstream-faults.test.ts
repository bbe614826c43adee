import { gunzipSync } from 'node:zlib'
import { get } from 'node:http'
import { describe, expect, it, onTestFinished } from 'vitest'
import { blobOf, buildImage } from '../../support/images.ts'
import { NAMED_FAULTS, type Fault, type FaultName } from '../../support/fake-upstream-faults.ts'
import { startFakeUpstream, type FakeUpstream } from '../../support/fake-upstream.ts'
import {
  openRaw,
  rawGet,
  type RawRequestOptions,
  type RawResponse,
} from '../../support/http-client.ts'
import { waitFor } from '../../support/wait-for.ts'

const NAME = 'library/alpine'
const BLOB = blobOf(100_000, 'faults')
const SIZE_BYTES = BLOB.bytes.length

async function start(options: Parameters<typeof startFakeUpstream>[0] = {}): Promise<FakeUpstream> {
  const upstream = await startFakeUpstream(options)
  onTestFinished(() => upstream.close())
  upstream.addBlob(NAME, BLOB)
  return upstream
}

function blobUrl(upstream: FakeUpstream): string {
  return `${upstream.url}/v2/${NAME}/blobs/${BLOB.digest}`
}

/** Asks for the blob, whose answer has the fault. */
async function faulty(
  fault: Fault | FaultName,
  options: RawRequestOptions = {},
): Promise<RawResponse> {
  const upstream = await start()
  upstream.fault({ kind: 'blob' }, fault)
  return rawGet(blobUrl(upstream), options)
}

async function followed(url: string, limit = 10): Promise<{ hops: number; response: RawResponse }> {
  for (let hops = 0; ; hops++) {
    const response = await rawGet(url)
    const location = response.header('Location')
    if (location === undefined || hops === limit) return { hops, response }
    url = new URL(location, url).href
  }
}

function jsonOf({ body }: RawResponse): Readonly<Record<string, unknown>> {
  const json: Readonly<Record<string, unknown>> = JSON.parse(body.toString())
  return json
}

describe('faults of the connection', () => {
  it.each([
    ['cut-at-start', 0],
    ['cut-in-first-chunk', 100],
    ['cut-at-64k', 65_536],
    ['cut-at-last-byte', SIZE_BYTES - 1],
  ] as const)('%s: right headers, then a FIN after %i bytes', async (name, sentBytes) => {
    const response = await faulty(name)
    expect(response.header('Content-Length')).toBe(String(SIZE_BYTES))
    expect(response.body.equals(BLOB.bytes.subarray(0, sentBytes))).toBe(true)
    expect(response.ending).toBe('fin')
  })

  it('resets at a byte', async () => {
    const early = await faulty({ cutAtByte: 100, cutBy: 'rst' })
    expect([early.body, early.ending]).toEqual([BLOB.bytes.subarray(0, 100), 'rst'])
    const late = await faulty('reset-at-64k')
    expect(late.ending).toBe('rst')
    expect(late.body.length).toBeLessThanOrEqual(65_536)
    expect(late.body.equals(BLOB.bytes.subarray(0, late.body.length))).toBe(true)
  })

  it.each([
    ['cut-before-headers', 'fin'],
    ['reset-before-headers', 'rst'],
  ] as const)('%s: no answer at all', async (name, ending) => {
    const response = await faulty(name)
    expect([response.status, response.ending]).toEqual([undefined, ending])
  })

  it('cuts the part that a range asked for', async () => {
    const response = await faulty({ cutAtByte: 10 }, { headers: { Range: 'bytes=500-' } })
    expect([response.status, response.ending]).toEqual([206, 'fin'])
    expect(response.body).toEqual(BLOB.bytes.subarray(500, 510))
  })

  it('answers with something that is not HTTP', async () => {
    const upstream = await start()
    upstream.fault({ kind: 'blob' }, 'not-http')
    const failure = new Promise((_, reject) => get(blobUrl(upstream)).on('error', reject))
    await expect(failure).rejects.toThrow('Parse Error')
  })

  it('hangs before the headers, and lets go when the client leaves', async () => {
    const upstream = await start()
    upstream.fault({ kind: 'blob' }, 'hang')
    const request = get(blobUrl(upstream)).on('error', () => {})
    await waitFor('the request', () => upstream.count() === 1)
    expect(upstream.requests[0]?.status).toBeUndefined()
    request.destroy()
    await waitFor('the connection to be gone', () => upstream.activeConnections === 0)
  })

  it('hangs after a byte', async () => {
    const upstream = await start()
    upstream.fault({ kind: 'blob' }, { hangAtByte: 1234 })
    const exchange = await openRaw(blobUrl(upstream))
    expect((await exchange.read(1234)).equals(BLOB.bytes.subarray(0, 1234))).toBe(true)
    await waitFor('the count', () => upstream.bytesSent(BLOB.digest) === 1234)
    expect(exchange.ending).toBeUndefined()
    exchange.leave()
    await waitFor('the connection to be gone', () => upstream.activeConnections === 0)
  })

  it.each([
    { latencyMs: 5 },
    { bytesPerSecond: 20_000_000 },
    { drip: { bytes: 30_000, intervalMs: 1 } },
  ])('delivers all in the end: %j', async (fault) => {
    const response = await faulty(fault)
    expect([response.body.equals(BLOB.bytes), response.ending]).toEqual([true, 'complete'])
  })
})

describe('faults of the body', () => {
  it('is short, and says so', async () => {
    const response = await faulty('short-body')
    expect(response.header('Content-Length')).toBe('10')
    expect([response.body.length, response.ending]).toEqual([10, 'complete'])
  })

  it('is long, and says so', async () => {
    const response = await faulty({ appendBytes: 3 })
    expect(response.header('Content-Length')).toBe(String(SIZE_BYTES + 3))
    expect([response.body.length, response.ending]).toEqual([SIZE_BYTES + 3, 'complete'])
  })

  it('has a wrong byte where it was told, in a range too', async () => {
    const response = await faulty({ flipByteAt: 1000 }, { headers: { Range: 'bytes=999-1001' } })
    const right = BLOB.bytes.subarray(999, 1002)
    expect([...response.body].map((byte, index) => byte === right[index])).toEqual([
      true,
      false,
      true,
    ])
  })

  it('is compressed unasked', async () => {
    const response = await faulty('gzip', { headers: { Range: 'bytes=5-' } })
    expect([response.status, response.header('Content-Encoding')]).toEqual([200, 'gzip'])
    expect(response.header('Content-Length')).toBe(String(response.body.length))
    expect(gunzipSync(response.body).equals(BLOB.bytes)).toBe(true)
  })

  it.each([
    ['chunked', 'chunked', 'complete'],
    ['no-content-length', undefined, 'fin'],
  ] as const)('%s: a body without a length', async (name, transferEncoding, ending) => {
    const response = await faulty(name)
    expect(response.header('Content-Length')).toBeUndefined()
    expect(response.header('Transfer-Encoding')).toBe(transferEncoding)
    expect([response.body.equals(BLOB.bytes), response.ending]).toEqual([true, ending])
  })

  it('has a Content-Length that is too large or too small', async () => {
    const larger = await faulty({ contentLength: SIZE_BYTES + 5 })
    expect([larger.body.length, larger.ending]).toEqual([SIZE_BYTES, 'fin'])
    const smaller = await faulty({ contentLength: SIZE_BYTES - 5 })
    expect([smaller.body.length, smaller.ending]).toEqual([SIZE_BYTES - 5, 'complete'])
    expect(smaller.trailing).toEqual(BLOB.bytes.subarray(-5))
    const head = await faulty({ contentLength: 7 }, { method: 'HEAD' })
    expect(head.header('Content-Length')).toBe('7')
  })
})

describe('faults of the answer', () => {
  it.each([
    ['denied', 403],
    ['not-found', 404],
    ['no-head', 405],
    ['rate-limited', 429],
    ['internal-error', 500],
    ['bad-gateway', 502],
    ['unavailable', 503],
    ['gateway-timeout', 504],
    ['redirect-without-location', 307],
  ] as const)('%s: status %i', async (name, status) => {
    expect((await faulty(name)).status).toBe(status)
  })

  it.each([
    ['rate-limited', undefined],
    ['rate-limited-60s', '60'],
    ['rate-limited-until-date', 'Fri, 01 Jan 2027 00:00:00 GMT'],
    ['rate-limited-absurdly', '99999999999999999999'],
  ] as const)('%s: Retry-After %s', async (name, retryAfter) => {
    expect((await faulty(name)).header('Retry-After')).toBe(retryAfter)
  })

  it('is a page instead of content', async () => {
    const response = await faulty('html-200')
    expect([response.status, response.header('Content-Type')]).toEqual([
      200,
      'text/html; charset=utf-8',
    ])
    expect(response.body.toString()).toContain('<html>')
    expect(response.header('Docker-Content-Digest')).toBeUndefined()
  })

  it('states a wrong digest, or none', async () => {
    expect((await faulty('digest-header-wrong')).header('Docker-Content-Digest')).not.toBe(
      BLOB.digest,
    )
    expect((await faulty('digest-header-missing')).header('Docker-Content-Digest')).toBeUndefined()
  })

  it('is 401 with a challenge even for a request with a good token', async () => {
    const upstream = await start({ auth: 'bearer' })
    upstream.fault({ kind: 'blob' }, 'unauthorized')
    const scope = `repository:${NAME}:pull`
    const json = jsonOf(await rawGet(`${upstream.url}/token?scope=${scope}`))
    expect(json).toMatchObject({ expires_in: 300 })
    const response = await rawGet(blobUrl(upstream), {
      headers: { Authorization: `Bearer ${String(json['token'])}` },
    })
    expect(response.status).toBe(401)
    expect(response.header('WWW-Authenticate')).toContain(scope)
  })

  it('ignores, refuses or shifts a range', async () => {
    const headers = { Range: 'bytes=10-19' }
    const ignored = await faulty('range-ignored', { headers })
    expect([ignored.status, ignored.body.length]).toEqual([200, SIZE_BYTES])
    const refused = await faulty('range-refused', { headers })
    expect([refused.status, refused.header('Content-Range')]).toEqual([
      416,
      `bytes */${SIZE_BYTES}`,
    ])
    const shifted = await faulty('range-shifted', { headers })
    expect(shifted.header('Content-Range')).toBe(`bytes 11-20/${SIZE_BYTES}`)
    expect(shifted.body).toEqual(BLOB.bytes.subarray(11, 21))
  })

  it('moves a tag between two requests', async () => {
    const upstream = await start()
    const [before, after] = [buildImage({ seed: 'before' }), buildImage({ seed: 'after' })]
    upstream.addImage(NAME, 'latest', before)
    upstream.addImage(NAME, undefined, after)
    upstream.fault({ method: 'HEAD' }, { moveTagTo: after.manifest.digest }, { times: 1 })
    const url = `${upstream.url}/v2/${NAME}/manifests/latest`
    const head = await rawGet(url, { method: 'HEAD' })
    expect(head.header('Docker-Content-Digest')).toBe(before.manifest.digest)
    expect((await rawGet(url)).body).toEqual(after.manifest.bytes)
  })

  it('changes, removes and inflates JSON', async () => {
    const upstream = await start()
    upstream.fault({ kind: 'token' }, 'no-expiry')
    upstream.fault({ kind: 'token' }, { mergeJson: { access_token: 7, expires_in: null } })
    upstream.fault({ kind: 'token' }, { appendBytes: 1000 })
    const response = await rawGet(`${upstream.url}/token`)
    expect(response.body.length).toBeGreaterThan(1000)
    expect(jsonOf(response)).toMatchObject({ access_token: 7 })
    expect(jsonOf(response)).not.toHaveProperty('expires_in')
    upstream.clearFaults()
    upstream.fault({ kind: 'token' }, 'garbage')
    expect(() => jsonOf(response)).not.toThrow()
    expect((await rawGet(`${upstream.url}/token`)).body.toString()).toContain('not json')
  })

  it('has a hostile Link', async () => {
    const upstream = await start()
    upstream.fault({ kind: 'tags' }, 'link-to-other-host')
    const response = await rawGet(`${upstream.url}/v2/${NAME}/tags/list`)
    expect(response.header('Link')).toContain('example.invalid')
  })
})

describe('redirects', () => {
  it.each([
    [{ hops: 1 }, 1],
    [{ hops: 4 }, 4],
    [{ hops: 2, relative: true }, 2],
    [{ hops: 3, crossHost: true }, 3],
  ] as const)('of %j lead to the content', async (redirect, hops) => {
    const upstream = await start({ pathPrefix: '/proxy' })
    upstream.fault({ kind: 'blob' }, { redirect })
    const result = await followed(blobUrl(upstream))
    expect(result.hops).toBe(hops)
    expect(result.response.body.equals(BLOB.bytes)).toBe(true)
    expect([upstream.count({ kind: 'blob' }), upstream.count({ kind: 'hop' })]).toEqual([1, hops])
  })

  it('are relative, to another host, endless, or to anywhere', async () => {
    const relative = await faulty('redirect-relative')
    expect(relative.header('Location')).toMatch(/^\/hop\/0\/v2\//)
    const upstream = await start()
    upstream.fault({ kind: 'blob' }, 'redirect-cross-host', { times: 1 })
    const crossHost = await rawGet(blobUrl(upstream))
    expect(new URL(crossHost.header('Location') ?? '').origin).toBe(upstream.cdnUrl)
    upstream.fault({ kind: 'blob' }, 'redirect-loop')
    expect((await followed(blobUrl(upstream), 7)).hops).toBe(7)
    const anywhere = await faulty({ redirect: { location: 'ftp://x/', status: 302 } })
    expect([anywhere.status, anywhere.header('Location')]).toEqual([302, 'ftp://x/'])
  })
})

describe('redirects by signed URLs', () => {
  it('work once', async () => {
    const upstream = await start()
    upstream.fault({ kind: 'blob' }, 'redirect-signed')
    const { hops, response } = await followed(blobUrl(upstream))
    expect([hops, response.status]).toEqual([1, 200])
    expect(response.body.equals(BLOB.bytes)).toBe(true)
  })

  it('do not when they have expired', async () => {
    const upstream = await start()
    upstream.fault({ kind: 'blob' }, 'redirect-expired')
    const { response } = await followed(blobUrl(upstream))
    expect(response.status).toBe(403)
  })
})

describe('a standstill', () => {
  it.each(['hang', 'hang-after-headers', 'hang-in-body'] as const)(
    'is told while it lasts (%s)',
    async (name) => {
      const upstream = await start()
      upstream.fault({ kind: 'blob' }, name)
      const request = get(blobUrl(upstream)).on('error', () => {})
      await waitFor('the standstill', () => upstream.hanging === 1)
      expect(upstream.answering).toBe(1)
      request.destroy()
      await waitFor('its end', () => upstream.hanging + upstream.answering === 0)
    },
  )
})

describe('planning of faults', () => {
  it('applies a fault as often as it was told, to what matches', async () => {
    const upstream = await start()
    upstream.fault({ kind: ['blob', 'cdn'], method: 'GET' }, 'unavailable', { times: 2 })
    const statuses: unknown[] = []
    for (const method of ['GET', 'HEAD', 'GET', 'GET']) {
      statuses.push((await rawGet(blobUrl(upstream), { method })).status)
    }
    expect(statuses).toEqual([503, 200, 503, 200])
  })

  it('combines faults, and lifts one', async () => {
    const upstream = await start()
    upstream.fault({ kind: 'blob' }, { headers: { 'X-One': '1' } })
    const lift = upstream.fault(
      { reference: BLOB.digest },
      { headers: { 'X-Two': '2' }, truncateTo: 5 },
    )
    const both = await rawGet(blobUrl(upstream))
    expect([both.header('X-One'), both.header('X-Two'), both.body.length]).toEqual(['1', '2', 5])
    lift()
    const one = await rawGet(blobUrl(upstream))
    expect([one.header('X-One'), one.header('X-Two'), one.body.length]).toEqual([
      '1',
      undefined,
      SIZE_BYTES,
    ])
  })

  it('spares the challenge that starts a token flow', async () => {
    const upstream = await start({ auth: 'bearer' })
    upstream.fault({ kind: 'blob' }, 'unavailable', { times: 1 })
    expect((await rawGet(blobUrl(upstream))).status).toBe(401)
    expect(upstream.count({ kind: 'blob', status: 503 })).toBe(0)
  })

  it('keeps every named fault as plain data', () => {
    expect(JSON.parse(JSON.stringify(NAMED_FAULTS))).toEqual(NAMED_FAULTS)
  })
})
