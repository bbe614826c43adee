// What operators see: probes, metrics and the access log.

import { rm, writeFile } from 'node:fs/promises'
import { join } from 'node:path'
import { describe, expect, it } from 'vitest'
import { FakeClock } from '../support/fake-clock.ts'
import { startFakeUpstream } from '../support/fake-upstream.ts'
import { rawGet } from '../support/http-client.ts'
import { startLayover } from '../support/layover.ts'
import { blobOf, buildImage } from '../support/images.ts'
import { makeTempDirectory } from '../support/temp-directory.ts'
import { waitFor } from '../support/wait-for.ts'

const NAME = 'library/alpine'
const CHECK_INTERVAL_MS = 10_000

describe('probes', () => {
  it('answer on both listeners, also while the upstream is down', async () => {
    const { layover, upstream } = await startLayover()
    await upstream.down()
    for (const url of [layover.url, layover.debugUrl]) {
      for (const path of ['/livez', '/readyz']) {
        const answer = await rawGet(url + path)
        expect([answer.status, answer.body.toString()]).toEqual([200, 'ok\n'])
      }
    }
    const health = await rawGet(`${layover.debugUrl}/debug/health`)
    expect([health.status, health.body.toString()]).toEqual([200, '{}'])
    expect((await layover.get('/')).status).toBe(200)
  })

  it('tell of a disk that takes nothing, after three failures, and of its recovery', async () => {
    const clock = new FakeClock()
    const { layover } = await startLayover({ clock })
    const temporary = join(layover.rootDirectory, 'layover/temporary')
    await rm(temporary, { recursive: true })
    await writeFile(temporary, '')
    const status = async (): Promise<number | undefined> =>
      (await rawGet(`${layover.debugUrl}/debug/health`)).status
    await waitFor('the check to fail', async () => {
      await clock.advance(CHECK_INTERVAL_MS)
      return (await status()) === 503
    })
    // What can be served is served: a load balancer has no reason to go elsewhere.
    for (const path of ['/livez', '/readyz']) expect((await layover.get(path)).status).toBe(200)
    const health = await rawGet(`${layover.debugUrl}/debug/health`)
    expect(health.status).toBe(503)
    expect(Object.keys(JSON.parse(health.body.toString()) as object)).toEqual([
      'storagedriver_filesystem',
    ])
    await rm(temporary)
    await waitFor('the check to recover', async () => {
      await clock.advance(CHECK_INTERVAL_MS)
      return (await status()) === 200
    })
  })

  it('fail while a file of health.file exists', async () => {
    const clock = new FakeClock()
    const file = join(await makeTempDirectory(), 'out-of-rotation')
    const { layover } = await startLayover({
      clock,
      configuration: { health: { file: [{ file, interval: '10s', threshold: 1 }] } },
    })
    expect((await layover.get('/readyz')).status).toBe(200)
    await writeFile(file, '')
    await waitFor('readyz to fail', async () => {
      await clock.advance(CHECK_INTERVAL_MS)
      return (await layover.get('/readyz')).status === 503
    })
  })

  it('and metrics are not for clients', async () => {
    const { layover } = await startLayover()
    for (const path of ['/metrics', '/debug/health']) {
      expect((await layover.get(path)).status).toBe(404)
    }
    expect((await rawGet(`${layover.debugUrl}/v2/`)).status).toBe(404)
  })
})

describe('metrics', () => {
  it("count as registry:3's do", async () => {
    const { layover, upstream } = await startLayover()
    expect(await layover.metric('registry_proxy_requests_total{type="blob"}')).toBe(0)
    const image = buildImage({ layers: [300_000] })
    upstream.addImage(NAME, '3', image)
    const [layer] = image.layers
    await layover.get(`/v2/${NAME}/manifests/3`)
    await layover.get(`/v2/${NAME}/blobs/${layer?.digest}`)
    await layover.stored(layer?.digest ?? '')
    await layover.get(`/v2/${NAME}/blobs/${layer?.digest}`)
    await layover.lastAccessLine(3)
    const expected: Record<string, number> = {
      'registry_proxy_requests_total{type="blob"}': 2,
      'registry_proxy_hits_total{type="blob"}': 1,
      'registry_proxy_misses_total{type="blob"}': 1,
      'registry_proxy_pulled_bytes_total{type="blob"}': 300_000,
      'registry_proxy_pushed_bytes_total{type="blob"}': 600_000,
      'registry_proxy_misses_total{type="manifest"}': 1,
      [`layover_requests_total{upstream="${new URL(upstream.url).host}",type="blob",outcome="hit"}`]: 1,
      'registry_http_requests_total{handler="blob",code="200",method="get"}': 2,
      registry_http_in_flight_requests: 0,
      layover_fills_running: 0,
    }
    for (const [line, value] of Object.entries(expected)) {
      expect([line, await layover.metric(line)]).toEqual([line, value])
    }
    const host = new URL(upstream.url).host
    expect(
      await layover.metric(
        `layover_upstream_requests_total{upstream="${host}",kind="blob",method="GET",code="200"}`,
      ),
    ).toBe(1)
  })
})

describe('the access log', () => {
  it('says what the cache did, for whom, and how much', async () => {
    const clock = new FakeClock()
    const { layover, upstream } = await startLayover({ clock })
    const { manifest } = buildImage()
    upstream.addImage(NAME, '3', buildImage())
    const path = `/v2/${NAME}/manifests/3`
    const headers = { 'User-Agent': 'docker/28', 'X-Forwarded-For': '192.0.2.7, 10.0.0.1' }
    await layover.get(path, { headers })
    await layover.get(path)
    await clock.advance(60_000)
    await layover.get(path)
    await layover.lastAccessLine(3)
    expect(layover.accessLines.map(({ cache }) => cache)).toEqual(['miss', 'hit', 'revalidated'])
    expect(layover.accessLines[0]).toMatchObject({
      method: 'GET',
      uri: path,
      status: 200,
      sentBytes: manifest.bytes.length,
      remoteAddress: '192.0.2.7',
      userAgent: 'docker/28',
      upstream: new URL(upstream.url).host,
      repository: NAME,
      reference: '3',
      digest: manifest.digest,
    })
    const ids = layover.accessLines.map((line) => line['requestId'])
    expect(new Set(ids).size).toBe(3)
  })

  it('says why there was no answer', async () => {
    const { layover, upstream } = await startLayover()
    upstream.fault({}, 'unavailable')
    await layover.get(`/v2/${NAME}/blobs/${blobOf(1, 1).digest}`)
    const line = await layover.lastAccessLine()
    expect(line.status).toBe(503)
    expect(line['error']).toContain('503')
  })

  it('is not written when log.accesslog.disabled says so', async () => {
    const { layover } = await startLayover({
      configuration: { log: { formatter: 'json', accesslog: { disabled: true } } },
    })
    await layover.get('/v2/')
    await layover.stop()
    expect(layover.accessLines).toEqual([])
  })
})

describe('refused credentials', () => {
  it('show in /readyz?verbose and in metrics, and old content is served meanwhile', async () => {
    const image = buildImage()
    const credentials = { username: 'robot', password: 'right' }
    const upstream = await startFakeUpstream({ auth: 'bearer', credentials })
    upstream.addImage('library/alpine', '3.20', image)
    const proxy = { remoteurl: upstream.url, tagttl: '0s', ...credentials }
    const { layover } = await startLayover({ upstream, configuration: { proxy } })
    const gauge = `layover_upstream_login_failing{upstream="${new URL(upstream.url).host}"}`
    expect((await layover.get('/v2/library/alpine/manifests/3.20')).status).toBe(200)
    expect(await layover.metric(gauge)).toBe(0)

    upstream.reset()
    await layover.restart({ proxy: { ...proxy, password: 'wrong-pass' } })
    const old = await layover.get('/v2/library/alpine/manifests/3.20')
    expect([old.status, old.header('x-cache')]).toEqual([200, 'STALE'])
    for (const tag of ['new', 'newer']) {
      const missing = await layover.get(`/v2/library/alpine/manifests/${tag}`)
      expect(missing.status).toBe(503)
      expect(Number(missing.header('retry-after'))).toBeGreaterThan(50)
    }
    expect(upstream.count({ kind: 'token' })).toBe(1)
    expect(await layover.metric(gauge)).toBe(1)
    for (const url of [layover.url, layover.debugUrl]) {
      const ready = await rawGet(`${url}/readyz?verbose`)
      expect(ready.status).toBe(200)
      expect(ready.body.toString()).toMatch(
        /^storagedriver_filesystem: ok\nstoragedriver_volume: ok\nupstream 127\.0\.0\.1:\d+: credentials refused since 2.*; tried again in \d+ s, or when they change\nok\n$/,
      )
      expect((await rawGet(`${url}/readyz`)).body.toString()).toBe('ok\n')
    }
    expect(JSON.stringify([layover.log, layover.accessLines])).not.toContain('wrong-pass')
  })
})
