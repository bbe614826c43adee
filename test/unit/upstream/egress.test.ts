import { subscribe, unsubscribe } from 'node:diagnostics_channel'
import { once } from 'node:events'
import { createServer, request as httpRequest } from 'node:http'
import { createServer as createTcpServer, type Socket } from 'node:net'
import { describe, expect, it, onTestFinished } from 'vitest'
import { isDirect } from '../../../src/upstream/egress.ts'
import { warmUpHttp } from '../../../src/upstream/warm-up.ts'
import { fastNowMs, passFastTime } from '../../support/fast-timers.ts'
import { waitFor } from '../../support/wait-for.ts'
import {
  alpine,
  content,
  digest,
  failureOf,
  hostOf,
  kindOf,
  makeClient,
  startServer,
} from './small-server.ts'

describe('isDirect', () => {
  it.each([
    ['http://localhost:5000', ''],
    ['http://127.0.0.9:5000', ''],
    ['http://[::1]', ''],
    ['https://a.test', '*'],
    ['https://a.test', 'b.test, A.test'],
    ['https://x.a.test', 'a.test'],
    ['https://x.a.test', '.a.test'],
    ['https://x.a.test', '*.a.test'],
    ['https://a.test:8443', 'a.test:8443'],
    ['https://a.test', 'a.test:443'],
    ['https://10.1.2.3', '10.0.0.0/8'],
    ['https://10.1.2.3', '10.1.2.3'],
    ['https://[fd00::1]', 'fd00::/8'],
    ['https://[fd00::1]:5000', '[fd00::1]:5000'],
    ['https://[fd00::1]', 'fd00::1'],
  ])('is true for %s with no_proxy=%s', (url, noProxy) => {
    expect(isDirect(new URL(url), noProxy)).toBe(true)
  })

  it.each([
    ['https://a.test', ''],
    ['https://a.test', '.a.test'],
    ['https://ba.test', 'a.test'],
    ['https://a.test', 'a.test:8443'],
    ['https://11.1.2.3', '10.0.0.0/8'],
    ['https://10.1.2.3', '10.0.0.0/99'],
    ['https://10.1.2.3', '10.0.0.0/'],
    ['https://a.test', '10.0.0.0/8'],
  ])('is false for %s with no_proxy=%s', (url, noProxy) => {
    expect(isDirect(new URL(url), noProxy)).toBe(false)
  })
})

describe('a proxy', () => {
  it('gets plain http requests as they are', async () => {
    const upstream = await startServer((_request, response) => response.end(content))
    const proxy = await startServer((request, response) => {
      const { pathname } = new URL(request.url ?? '')
      const forward = httpRequest(`${upstream.url}${pathname}`, (answer) => {
        answer.on('data', (chunk: Buffer) => response.write(chunk)).on('end', () => response.end())
      })
      forward.end()
    })
    const environmentProxy = { httpProxy: proxy.host, httpsProxy: '', noProxy: '' }
    const { client } = makeClient('http://registry.test', { environmentProxy })
    const manifest = await client.getManifest(alpine, 'latest')
    expect(manifest.bytes).toEqual(content)
    expect(proxy.hits.map(({ path }) => path)).toEqual([
      'http://registry.test/v2/library/alpine/manifests/latest',
    ])
  })

  it('is asked for a tunnel to https upstreams, and not used where no_proxy names the host', async () => {
    const tunnels: string[] = []
    const proxy = createServer().on('connect', (request, socket) => {
      tunnels.push(request.url ?? '')
      socket.end('HTTP/1.1 403 Forbidden\r\n\r\n')
    })
    await new Promise<void>((resolve) => proxy.listen(0, '127.0.0.1', resolve))
    onTestFinished(() => void proxy.close())
    const environmentProxy = { httpsProxy: `http://${hostOf(proxy)}`, noProxy: '127.0.0.2' }
    const { client, clock } = makeClient('https://registry.test', { environmentProxy })
    const failure = kindOf(client.headBlob(alpine, digest))
    while (tunnels.length < 3) await clock.advance(1000)
    expect(await failure).toBe('unreachable')
    expect(tunnels[0]).toBe('registry.test:443')
  })

  it('is not taken from the process environment', async () => {
    const upstream = await startServer((_request, response) => response.end(content))
    process.env['http_proxy'] = 'http://127.0.0.1:1'
    process.env['HTTPS_PROXY'] = 'http://127.0.0.1:1'
    onTestFinished(() => {
      delete process.env['http_proxy']
      delete process.env['HTTPS_PROXY']
    })
    const { client } = makeClient(upstream.url)
    expect((await client.getManifest(alpine, 'latest')).bytes).toEqual(content)
  })
})

describe('a host that takes connections and says nothing', () => {
  it('is given up after the time for connecting, which TLS is part of', async () => {
    const sockets: Socket[] = []
    const server = createTcpServer((socket) => sockets.push(socket)).listen(0, '127.0.0.1')
    onTestFinished(() => {
      for (const socket of sockets) socket.destroy()
      server.close()
    })
    await once(server, 'listening')
    const connection = { connectTimeoutMs: 2_000 }
    const made = makeClient(`https://${hostOf(server)}`, { connection, callLimitMs: 1 })
    const failure = failureOf(made.client.getManifest(alpine, 'latest'))
    await waitFor('the connection', () => sockets.length > 0)
    const beforeMs = fastNowMs()
    passFastTime(2_000)
    const error = await failure
    expect(error.kind).toBe('timeout')
    expect(error.message).toContain('Connect Timeout Error')
    // Of undici's own time, which is not the machine's.
    expect(fastNowMs() - beforeMs).toBeLessThan(10_000)
  })
})

describe('warmUpHttp', () => {
  it('opens no connection', async () => {
    const opened: unknown[] = []
    const note = (message: unknown): void => void opened.push(message)
    subscribe('net.client.socket', note)
    onTestFinished(() => void unsubscribe('net.client.socket', note))
    await warmUpHttp()
    expect(opened).toEqual([])
  })
})
