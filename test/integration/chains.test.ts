// Caches behind caches: what comes through several of them is what the last one has, and caches that lead back to
// themselves say so at once.

import { EventEmitter, once } from 'node:events'
import { createServer, request } from 'node:http'
import { describe, expect, it, onTestFinished } from 'vitest'
import { startFakeUpstream, type FakeUpstream } from '../support/fake-upstream.ts'
import { blobOf, buildArtifact, buildImage, buildIndex } from '../support/images.ts'
import { startLayover, type Layover } from '../support/layover.ts'
import { waitFor } from '../support/wait-for.ts'

const REPOSITORY = 'team/app'

/** Passes everything on to where `target` says, as a proxy that adds nothing to `Via`, or even takes it away. */
async function startRelay({
  dropsVia = false,
  until = Promise.resolve<unknown>(undefined),
} = {}): Promise<{
  url: string
  target: string
  count: number
}> {
  const relay = { url: '', target: '', count: 0 }
  const server = createServer((message, response) => {
    relay.count++
    const { method, url = '' } = message
    const { via, ...others } = message.headers
    const headers = dropsVia || via === undefined ? others : { ...others, via }
    const pass = (): void => {
      const onward = request(relay.target + url, { method, headers }, (answer) => {
        response.writeHead(answer.statusCode ?? 0, answer.headers)
        answer.on('data', (chunk: Buffer) => response.write(chunk)).on('end', () => response.end())
      })
      onward.on('error', () => response.destroy())
      onward.end()
    }
    void until.then(pass)
  })
  await new Promise<void>((resolve) => server.listen(0, '127.0.0.1', resolve))
  onTestFinished(() => {
    server.close()
    server.closeAllConnections()
  })
  const address = server.address()
  relay.url = `http://127.0.0.1:${typeof address === 'object' ? address?.port : 0}`
  return relay
}

async function startBehind(url: string): Promise<Layover> {
  const configuration = { proxy: { remoteurl: url } }
  return (await startLayover({ upstream: await startFakeUpstream(), configuration })).layover
}

/** Pulls all of an image, as clients do. @returns whether everything was what it should be */
async function pulls(layover: Layover, upstream: FakeUpstream): Promise<boolean> {
  const image = buildImage({ layers: [1000, 300_000] })
  const index = buildIndex([image])
  upstream.addImage(REPOSITORY, '1', index)
  const base = `/v2/${REPOSITORY}`
  const expected: [string, Buffer][] = [
    ['manifests/1', index.manifest.bytes],
    [`manifests/${image.manifest.digest}`, image.manifest.bytes],
    ...[image.config, ...image.layers].map(({ bytes, digest }): [string, Buffer] => [
      `blobs/${digest}`,
      bytes,
    ]),
  ]
  const head = await layover.head(`${base}/manifests/1`)
  let isRight = head.header('docker-content-digest') === index.manifest.digest
  for (const [rest, bytes] of expected) {
    isRight &&= (await layover.get(`${base}/${rest}`)).body.equals(bytes)
  }
  return isRight
}

describe('a cache behind another one', () => {
  it('gives what the upstream of that has, and asks for each thing once', async () => {
    const { layover: back, upstream } = await startLayover()
    const front = await startBehind(back.url)
    expect(await pulls(front, upstream)).toBe(true)
    const wanted = upstream.requests.filter(({ method }) => method === 'GET')
    expect(new Set(wanted.map(({ reference }) => reference)).size).toBe(wanted.length)
    const vias = new Set(upstream.requests.map(({ headers }) => headers.via))
    expect([...vias]).toEqual([
      expect.stringMatching(/^1\.1 layover-[\da-f]+, 1\.1 layover-[\da-f]+$/),
    ])
  })

  it('is told by a cold one that something is not there, and by one in trouble that it is', async () => {
    const { layover: back, upstream } = await startLayover()
    const front = await startBehind(back.url)
    expect((await front.get(`/v2/${REPOSITORY}/manifests/none`)).status).toBe(404)
    await upstream.down()
    expect((await front.get(`/v2/${REPOSITORY}/manifests/2`)).status).toBe(503)
    await upstream.up()
  })
})

describe('a download that has brought nothing yet', () => {
  it('is shared also with another cache, once that is known not to be waited for', async () => {
    const { layover, upstream } = await startLayover()
    const blob = blobOf(300_000, 'shared')
    upstream.addBlob(REPOSITORY, blob)
    const gate = upstream.gate({ kind: 'blob', method: 'GET' })
    const path = `/v2/${REPOSITORY}/blobs/${blob.digest}`
    const clients = [layover.get(path), layover.get(path)]
    await gate.reached
    clients.push(layover.get(path, { headers: { Via: '1.1 other' } }))
    await waitFor('the upstream to be asked', () => upstream.count({ method: 'HEAD' }) === 1)
    gate.release()
    for (const { body } of await Promise.all(clients)) {
      expect(body.equals(blob.bytes)).toBe(true)
    }
    expect(upstream.count({ method: 'GET' })).toBe(1)
  })
})

describe('a cache behind one that denies by HEAD what it has not fetched', () => {
  it('gets it with GET', async () => {
    const { layover, upstream } = await startLayover()
    upstream.fault({ method: 'HEAD' }, 'not-found')
    expect(await pulls(layover, upstream)).toBe(true)
  })
})

describe('a cache that leads back to itself', () => {
  it.each(['manifests/1', `blobs/${buildImage().config.digest}`, 'tags/list'])(
    'says so at once: %s',
    async (rest) => {
      const relay = await startRelay()
      const layover = await startBehind(relay.url)
      relay.target = layover.url
      const answer = await layover.get(`/v2/${REPOSITORY}/${rest}`)
      expect([answer.status, relay.count]).toEqual([508, 1])
      expect(answer.body.toString()).toContain('check what its upstreams point at')
    },
  )

  it('through a proxy that drops Via says so, too', async () => {
    const relay = await startRelay({ dropsVia: true })
    const layover = await startBehind(relay.url)
    relay.target = layover.url
    const answer = await layover.get(`/v2/${REPOSITORY}/manifests/1`)
    expect([answer.status, relay.count]).toEqual([508, 1])
  })

  it.each([
    ['', {}],
    [' through proxies that drop Via', { dropsVia: true }],
  ])('by way of another one%s says so too, as does the other one', async (_how, options) => {
    const [one, two] = [await startRelay(options), await startRelay(options)]
    const first = await startBehind(two.url)
    const second = await startBehind(one.url)
    one.target = first.url
    two.target = second.url
    for (const layover of [first, second]) {
      expect((await layover.get(`/v2/${REPOSITORY}/manifests/1`)).status).toBe(508)
    }
    expect([one.count, two.count]).toEqual([2, 2])
  })

  const { config, manifest } = buildImage()
  it.each([
    ['GET', 'manifests/1'],
    ['GET', `manifests/${manifest.digest}`],
    ['GET', `blobs/${config.digest}`],
    ['HEAD', `blobs/${config.digest}`],
    ['GET', 'tags/list'],
    ['GET', `referrers/${manifest.digest}`],
  ])(
    'by way of another one says so also while both are asked for the same: %s %s',
    async (method, rest) => {
      const held = new EventEmitter()
      const until = once(held, 'released')
      const [one, two] = [await startRelay({ until }), await startRelay({ until })]
      const [first, second] = [await startBehind(two.url), await startBehind(one.url)]
      one.target = first.url
      two.target = second.url
      const path = `/v2/${REPOSITORY}/${rest}`
      const asked = [first, second].map((layover) => layover.get(path, { method }))
      await waitFor('both to ask each other', () => one.count > 0 && two.count > 0)
      held.emit('released')
      expect((await Promise.all(asked)).map(({ status }) => status)).toEqual([508, 508])
    },
  )

  it('also when the caches in between name themselves without end', async () => {
    const { layover, upstream } = await startLayover()
    const headers = { Via: Array.from({ length: 200 }, (_, i) => `1.1 cache-${i}`).join(', ') }
    const answer = await layover.get(`/v2/${REPOSITORY}/manifests/1`, { headers })
    expect([answer.status, upstream.count()]).toEqual([508, 0])
  })
})

describe('the page of a list of referrers', () => {
  it('leads nowhere else, whatever a client says that it is', async () => {
    const image = buildImage()
    const [hub, corp] = [await startFakeUpstream(), await startFakeUpstream()]
    onTestFinished(() => corp.close())
    hub.addImage(REPOSITORY, '1', image)
    corp.addImage(REPOSITORY, '1', image)
    const upstreams = { 'corp.test': { remoteurl: corp.url } }
    const configuration = { proxy: { remoteurl: hub.url, upstreams } }
    const { layover: inner } = await startLayover({ upstream: hub, configuration })
    const outer = await startBehind(inner.url)
    const marker = new URLSearchParams({ page: 'ns=corp.test' }).toString()
    const path = `/v2/${REPOSITORY}/referrers/${image.manifest.digest}?${marker}`
    expect((await outer.get(path)).status).toBe(200)
    expect((await inner.get(path)).status).toBe(200)
    expect([hub.count({ kind: 'referrers' }), corp.requests]).toEqual([2, []])
  })

  it('goes on through a chain, with its filter', async () => {
    const image = buildImage()
    const upstream = await startFakeUpstream({ referrersPerPage: 1 })
    const { layover: inner } = await startLayover({ upstream })
    const outer = await startBehind(inner.url)
    upstream.addImage(REPOSITORY, '1', image)
    const artifactType = 'application/vnd.example.signature'
    for (const seed of ['a', 'b', 'c']) {
      const artifact = buildArtifact(image.manifest, { artifactType, seed })
      upstream.addImage(REPOSITORY, undefined, artifact)
    }
    const filter = new URLSearchParams({ artifactType }).toString()
    let path = `/v2/${REPOSITORY}/referrers/${image.manifest.digest}?${filter}`
    const seen = new Set<string>()
    for (let page = 0; page < 3; page++) {
      const answer = await outer.get(path)
      seen.add(answer.body.toString())
      path = /^<(.*)>/.exec(answer.header('link') ?? '')?.[1] ?? ''
    }
    expect([seen.size, path]).toEqual([3, ''])
    const asked = upstream.requests.filter(({ kind }) => kind === 'referrers')
    expect(asked.map((each) => new URL(each.path, 'http://x').searchParams.get('page'))).toEqual([
      null,
      '1',
      '2',
    ])
  })
})
