import { describe, expect, it, onTestFinished } from 'vitest'
import { blobOf, buildArtifact, buildImage, buildIndex } from '../../support/images.ts'
import { FakeClock } from '../../support/fake-clock.ts'
import {
  startFakeUpstream,
  type FakeUpstream,
  type FakeUpstreamOptions,
} from '../../support/fake-upstream.ts'
import { openRaw, rawGet, type RawResponse } from '../../support/http-client.ts'
import { waitFor } from '../../support/wait-for.ts'

const NAME = 'library/alpine'

async function start(options: FakeUpstreamOptions = {}): Promise<FakeUpstream> {
  const upstream = await startFakeUpstream(options)
  onTestFinished(() => upstream.close())
  return upstream
}

function basic(pair: string): string {
  return `Basic ${Buffer.from(pair).toString('base64')}`
}

/** Does what a client does with a Bearer challenge, by hand. */
async function tokenFor(challenged: RawResponse, authorization?: string): Promise<string> {
  const challenge = challenged.header('WWW-Authenticate') ?? ''
  const [, realm, service, scope] =
    /^Bearer realm="(.*?)",service="(.*?)",scope="(.*?)"/.exec(challenge) ?? []
  const query = new URLSearchParams({ service: service ?? '', scope: scope ?? '' })
  const headers = authorization === undefined ? {} : { Authorization: authorization }
  const response = await rawGet(`${realm}?${query.toString()}`, { headers })
  const json: { token?: string } = JSON.parse(response.body.toString())
  return json.token ?? `refused with ${response.status}`
}

describe('the fake upstream', () => {
  it('serves manifests by tag and digest, to GET and HEAD', async () => {
    const upstream = await start()
    const image = buildImage({ kind: 'docker' })
    upstream.addImage(NAME, '3.20', image)
    for (const reference of ['3.20', image.manifest.digest]) {
      for (const method of ['GET', 'HEAD']) {
        const url = `${upstream.url}/v2/${NAME}/manifests/${reference}`
        const response = await rawGet(url, { method })
        expect(response.status).toBe(200)
        expect(response.header('Docker-Content-Digest')).toBe(image.manifest.digest)
        expect(response.header('Content-Type')).toBe(image.manifest.mediaType)
        expect(response.header('Content-Length')).toBe(String(image.manifest.bytes.length))
        expect(response.body).toEqual(method === 'HEAD' ? Buffer.alloc(0) : image.manifest.bytes)
      }
    }
    expect(upstream.count({ kind: 'manifest-tag' })).toBe(2)
    expect(upstream.count({ kind: 'manifest-digest', method: 'GET', status: 200 })).toBe(1)
  })

  it('serves an index with all its images, and sha512 blobs', async () => {
    const upstream = await start()
    const index = buildIndex([
      buildImage({ seed: 1 }),
      buildImage({ seed: 2, algorithm: 'sha512' }),
    ])
    upstream.addImage(NAME, 'latest', index)
    for (const image of index.images) {
      for (const blob of [image.config, ...image.layers]) {
        const response = await rawGet(`${upstream.url}/v2/${NAME}/blobs/${blob.digest}`)
        expect(response.body.equals(blob.bytes)).toBe(true)
        expect(upstream.bytesSent(blob.digest)).toBe(blob.bytes.length)
      }
    }
  })

  it.each([
    ['bytes=10-19', 206, 'bytes 10-19/1000', 10, 20],
    ['bytes=990-', 206, 'bytes 990-999/1000', 990, 1000],
    ['bytes=-5', 206, 'bytes 995-999/1000', 995, 1000],
    ['bytes=900-5000', 206, 'bytes 900-999/1000', 900, 1000],
    ['bytes=0-1,5-6', 200, undefined, 0, 1000],
    ['lines=1-2', 200, undefined, 0, 1000],
  ])('answers Range %s with %i', async (range, status, contentRange, start_, end) => {
    const upstream = await start()
    const { bytes, digest } = blobOf(1000, 'ranges')
    upstream.addBlob(NAME, bytes)
    const url = `${upstream.url}/v2/${NAME}/blobs/${digest}`
    const response = await rawGet(url, { headers: { Range: range } })
    expect(response.status).toBe(status)
    expect(response.header('Content-Range')).toBe(contentRange)
    expect(response.body).toEqual(bytes.subarray(start_, end))
  })

  it('answers a range beyond the end with 416', async () => {
    const upstream = await start()
    const digest = upstream.addBlob(NAME, Buffer.alloc(10))
    const headers = { Range: 'bytes=10-' }
    const response = await rawGet(`${upstream.url}/v2/${NAME}/blobs/${digest}`, { headers })
    expect([response.status, response.header('Content-Range')]).toEqual([416, 'bytes */10'])
  })

  it('says what is not there, in the repository asked for', async () => {
    const upstream = await start()
    const digest = upstream.addBlob('other/image', Buffer.from('x'))
    upstream.addImage(NAME, 'latest', buildImage())
    const codeOf = async (path: string, method = 'GET'): Promise<unknown> => {
      const response = await rawGet(upstream.url + path, { method })
      const json: { errors: { code: string }[] } = JSON.parse(response.body.toString())
      return [response.status, json.errors[0]?.code]
    }
    expect(await codeOf(`/v2/${NAME}/blobs/${digest}`)).toEqual([404, 'BLOB_UNKNOWN'])
    expect(await codeOf(`/v2/${NAME}/manifests/gone`)).toEqual([404, 'MANIFEST_UNKNOWN'])
    expect(await codeOf('/v2/no/such/manifests/latest')).toEqual([404, 'NAME_UNKNOWN'])
    expect(await codeOf(`/v2/${NAME}/blobs/uploads/`, 'POST')).toEqual([405, 'UNSUPPORTED'])
  })

  it('pages through tags in lexical order', async () => {
    const upstream = await start({ pathPrefix: '/proxy/hub' })
    const image = buildImage()
    for (const tag of ['c', 'a', 'b']) upstream.addImage(NAME, tag, image)
    const first = await rawGet(`${upstream.url}/v2/${NAME}/tags/list?n=2`)
    expect(JSON.parse(first.body.toString())).toEqual({ name: NAME, tags: ['a', 'b'] })
    const next = /^<(.*)>; rel="next"$/.exec(first.header('Link') ?? '')?.[1] ?? ''
    const second = await rawGet(new URL(next, upstream.url))
    expect(JSON.parse(second.body.toString())).toEqual({ name: NAME, tags: ['c'] })
    expect(second.header('Link')).toBeUndefined()
  })

  it('lists referrers, filtered and in pages', async () => {
    const upstream = await start({ referrersPerPage: 1 })
    const image = buildImage()
    upstream.addImage(NAME, 'latest', image)
    const artifacts = ['a/sbom', 'a/signature'].map((artifactType) =>
      buildArtifact(image.manifest, { artifactType }),
    )
    for (const artifact of artifacts) upstream.addImage(NAME, undefined, artifact)
    const url = `${upstream.url}/v2/${NAME}/referrers/${image.manifest.digest}`
    const page = await rawGet(url)
    expect(page.header('Link')).toContain('page=1')
    const filtered = await rawGet(`${url}?artifactType=a/signature`)
    expect(filtered.header('OCI-Filters-Applied')).toBe('artifactType')
    const json: { manifests: { digest: string }[] } = JSON.parse(filtered.body.toString())
    expect(json.manifests.map((one) => one.digest)).toEqual([artifacts[1]?.manifest.digest])
  })

  it('has no referrers where they are switched off', async () => {
    const upstream = await start({ referrers: false })
    const response = await rawGet(`${upstream.url}/v2/${NAME}/referrers/${blobOf(1, 1).digest}`)
    expect([response.status, response.body.toString()]).toEqual([404, '404 page not found\n'])
  })

  it('moves and deletes tags', async () => {
    const upstream = await start()
    const [before, after] = [buildImage({ seed: 'before' }), buildImage({ seed: 'after' })]
    upstream.addImage(NAME, 'latest', before)
    upstream.addImage(NAME, undefined, after)
    const url = `${upstream.url}/v2/${NAME}/manifests/latest`
    upstream.moveTag(NAME, 'latest', after.manifest.digest)
    expect((await rawGet(url)).body).toEqual(after.manifest.bytes)
    upstream.deleteTag(NAME, 'latest')
    expect((await rawGet(url)).status).toBe(404)
  })

  it('forgets counts, not content, on reset', async () => {
    const upstream = await start()
    const digest = upstream.addBlob(NAME, Buffer.from('x'))
    const url = `${upstream.url}/v2/${NAME}/blobs/${digest}`
    await rawGet(url)
    upstream.reset()
    expect([upstream.count(), upstream.bytesSent(digest)]).toEqual([0, 0])
    expect((await rawGet(url)).status).toBe(200)
  })
})

describe('the fake upstream with Bearer tokens', () => {
  it('challenges, hands out tokens for one repository, and lets them expire', async () => {
    const clock = new FakeClock()
    const upstream = await start({ auth: 'bearer', tokenExpiresInS: 60, clock })
    const digest = upstream.addBlob(NAME, Buffer.from('x'))
    upstream.addBlob('other/image', Buffer.from('x'))
    const url = `${upstream.url}/v2/${NAME}/blobs/${digest}`
    const challenged = await rawGet(url)
    expect(challenged.status).toBe(401)
    const headers = { Authorization: `Bearer ${await tokenFor(challenged)}` }
    expect((await rawGet(url, { headers })).status).toBe(200)
    const other = `${upstream.url}/v2/other/image/blobs/${digest}`
    const refused = await rawGet(other, { headers })
    expect(refused.header('WWW-Authenticate')).toContain('error="insufficient_scope"')
    await clock.advance(60_000)
    expect((await rawGet(url, { headers })).status).toBe(401)
    expect(upstream.count({ kind: 'token', repository: NAME })).toBe(1)
    expect(upstream.requests.map((request) => request.status)).toEqual([401, 200, 200, 401, 401])
  })

  it('revokes tokens', async () => {
    const upstream = await start({ auth: 'bearer' })
    const url = `${upstream.url}/v2/${NAME}/tags/list`
    const headers = { Authorization: `Bearer ${await tokenFor(await rawGet(url))}` }
    upstream.revokeTokens()
    expect((await rawGet(url, { headers })).status).toBe(401)
  })

  it('wants the right credentials where it has some', async () => {
    const credentials = { username: 'user', password: 'secret' }
    const upstream = await start({ auth: 'bearer', credentials, tokenHost: 'cdn' })
    const challenged = await rawGet(`${upstream.url}/v2/${NAME}/tags/list`)
    expect(challenged.header('WWW-Authenticate')).toContain(`realm="${upstream.cdnUrl}/token"`)
    expect(await tokenFor(challenged)).toBe('refused with 401')
    expect(await tokenFor(challenged, basic('user:wrong'))).toBe('refused with 401')
    expect(await tokenFor(challenged, basic('user:secret'))).toMatch(/^[0-9a-f]{32}$/)
  })

  it('challenges in the words it is given', async () => {
    const challenge = 'Bearer realm="{tokenUrl}",service="aws",scope="aws"'
    const upstream = await start({ auth: 'bearer', challenge })
    upstream.addImage(NAME, 'latest', buildImage())
    const url = `${upstream.url}/v2/${NAME}/manifests/latest`
    const headers = { Authorization: `Bearer ${await tokenFor(await rawGet(url))}` }
    expect((await rawGet(url, { headers })).status).toBe(200)
  })

  it('takes Basic instead when told to', async () => {
    const credentials = { username: 'AWS', password: 'p:w' }
    const upstream = await start({ auth: 'basic', credentials })
    const challenged = await rawGet(`${upstream.url}/v2/`)
    expect(challenged.header('WWW-Authenticate')).toBe('Basic realm="fake-upstream"')
    const headers = { Authorization: basic('AWS:p:w') }
    expect((await rawGet(`${upstream.url}/v2/`, { headers })).status).toBe(200)
  })
})

describe('the fake upstream with a CDN', () => {
  it('redirects blobs to URLs of another port that work once and without credentials', async () => {
    const upstream = await start({ redirectBlobs: true })
    const { bytes, digest } = blobOf(1000, 'cdn')
    upstream.addBlob(NAME, bytes)
    const signedUrl = async (): Promise<string> => {
      const response = await rawGet(`${upstream.url}/v2/${NAME}/blobs/${digest}`)
      expect(response.status).toBe(307)
      return response.header('Location') ?? ''
    }
    const first = await signedUrl()
    expect(new URL(first).origin).toBe(upstream.cdnUrl)
    const headers = { Authorization: 'Bearer leaked' }
    expect((await rawGet(first, { headers })).status).toBe(400)
    const part = await rawGet(first, { headers: { Range: 'bytes=900-' } })
    expect([part.status, part.body]).toEqual([206, bytes.subarray(900)])
    expect((await rawGet(first)).status).toBe(403)
    const second = await signedUrl()
    upstream.expireSignedUrls()
    expect((await rawGet(second)).status).toBe(403)
    expect(upstream.count({ kind: 'cdn', repository: NAME, reference: digest })).toBe(4)
    expect(upstream.bytesSent(digest)).toBe(100)
  })
})

describe('control of the fake upstream', () => {
  it('goes down, dropping what is open, and comes back under the same URL', async () => {
    const upstream = await start()
    const digest = upstream.addBlob(NAME, blobOf(1000, 1).bytes)
    const url = `${upstream.url}/v2/${NAME}/blobs/${digest}`
    const gate = upstream.gate({ kind: 'blob' }, { afterBytes: 10 })
    const exchange = await openRaw(url)
    await gate.reached
    expect(upstream.activeConnections).toBe(1)
    await upstream.down()
    const broken = await exchange.finish()
    expect([broken.body.length, broken.ending]).toEqual([10, 'fin'])
    expect(upstream.activeConnections).toBe(0)
    await expect(rawGet(url)).rejects.toThrow('ECONNREFUSED')
    gate.release()
    await upstream.up()
    expect((await rawGet(url)).ending).toBe('complete')
  })

  it('holds an answer before its headers until released', async () => {
    const upstream = await start()
    const gate = upstream.gate({ kind: 'ping' })
    let answered = false
    const response = rawGet(`${upstream.url}/v2/`).then((answer) => {
      answered = true
      return answer
    })
    await gate.reached
    expect([answered, gate.arrivals, upstream.requests[0]?.status]).toEqual([false, 1, undefined])
    gate.release()
    expect((await response).status).toBe(200)
    expect(upstream.requests[0]?.status).toBe(200)
  })

  it('holds a body at exactly the byte asked for, gate after gate', async () => {
    const upstream = await start()
    const { bytes, digest } = blobOf(300_000, 'gates')
    upstream.addBlob(NAME, bytes)
    const gates = [200_000, 100_000].map((afterBytes) =>
      upstream.gate({ kind: 'blob', reference: digest }, { afterBytes }),
    )
    const exchange = await openRaw(`${upstream.url}/v2/${NAME}/blobs/${digest}`)
    await gates[1]?.reached
    expect(upstream.bytesSent(digest)).toBe(100_000)
    expect((await exchange.read(100_000)).length).toBe(100_000)
    gates[1]?.release()
    await gates[0]?.reached
    expect(upstream.bytesSent(digest)).toBe(200_000)
    gates[0]?.release()
    const rest = await exchange.finish()
    expect([rest.body.equals(bytes.subarray(100_000)), rest.ending]).toEqual([true, 'complete'])
  })

  it('notices that a client has left', async () => {
    const upstream = await start()
    upstream.gate({ kind: 'ping' })
    const exchange = openRaw(`${upstream.url}/v2/`)
    await waitFor('the request', () => upstream.count() === 1)
    expect(upstream.activeConnections).toBe(1)
    await upstream.close()
    expect((await exchange).ending).toBe('fin')
    expect(upstream.activeConnections).toBe(0)
  })
})
