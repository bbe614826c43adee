import { once } from 'node:events'
import { createServer } from 'node:net'
import { describe, expect, it, onTestFinished } from 'vitest'
import { httpCheck, tcpCheck } from '../../../src/telemetry/health-checks.ts'
import { freePort } from '../../support/redis-server.ts'
import { hostOf, startServer } from '../upstream/small-server.ts'

const schedule = { intervalMs: 1, threshold: 1, timeoutMs: undefined }

const portCheck = (port: number) => tcpCheck({ ...schedule, host: '127.0.0.1', port })

describe('a check of a URL', () => {
  it('passes with the expected status, and sends the headers that it was given', async () => {
    const server = await startServer((_request, response) => response.writeHead(204).end())
    const headers = { Authorization: ['Bearer abc'], 'X-Part': ['one', 'two'] }
    const check = httpCheck({ ...schedule, url: server.url, headers, expectedStatus: 204 })
    await expect(check.run()).resolves.toBeUndefined()
    expect(server.hits).toMatchObject([
      { method: 'HEAD', headers: { authorization: 'Bearer abc', 'x-part': 'one, two' } },
    ])
  })

  it('asks for all of it, and shows none of its secrets', async () => {
    const server = await startServer((_request, response) => response.writeHead(204).end())
    const url = `http://bob:hunter2@${server.host}/x?token=hunter2`
    const check = httpCheck({ ...schedule, url, headers: {}, expectedStatus: 200 })
    expect(check.name).toBe(`http_http://${server.host}/x?***`)
    const message = `http://${server.host}/x?*** answered 204, expected 200`
    await expect(check.run()).rejects.toThrow(message)
    expect(server.hits[0]?.path).toBe('/x?token=hunter2')
  })
})

describe('a check of a port', () => {
  it('passes when a connection can be made', async () => {
    const server = createServer((socket) => socket.resume()).listen(0, '127.0.0.1')
    await once(server, 'listening')
    onTestFinished(() => void server.close())
    const check = portCheck(Number(new URL(`http://${hostOf(server)}`).port))
    await expect(check.run()).resolves.toBeUndefined()
  })

  it('fails when none can, and names host and port', async () => {
    const port = await freePort()
    const check = portCheck(port)
    expect(check.name).toBe(`tcp_127.0.0.1:${port}`)
    await expect(check.run()).rejects.toThrow(`127.0.0.1:${port}: connect ECONNREFUSED`)
  })
})
