// Requests that name the server in their first line, as proxies are sent them.

import { createServer, type IncomingMessage } from 'node:http'
import { once } from 'node:events'
import type { AddressInfo } from 'node:net'
import { describe, expect, it, onTestFinished } from 'vitest'
import { takeAbsoluteTarget } from '../../../src/http/absolute-target.ts'
import { RawConnection } from '../../support/raw-connection.ts'
import { waitFor } from '../../support/wait-for.ts'

/** What the rest of the program sees of a request. */
async function seenOf(firstLine: string, headers = 'Host: header.test\r\n') {
  const seen: IncomingMessage[] = []
  const server = createServer((request, response) => {
    takeAbsoluteTarget(request)
    seen.push(request)
    response.end()
  })
  server.listen(0, '127.0.0.1')
  onTestFinished(() => void server.close())
  await once(server, 'listening')
  const { port } = server.address() as AddressInfo
  const connection = await RawConnection.open(
    `http://127.0.0.1:${port}`,
    `${firstLine}\r\n${headers}Accept: a\r\n\r\n`,
  )
  const request = await waitFor('the request', () => seen[0])
  connection.close()
  return { url: request.url, host: request.headers.host, raw: request.rawHeaders.join(' ') }
}

describe('a target with a host', () => {
  it.each([
    ['http://line.test:5000/v2/?n=1', '/v2/?n=1', 'line.test:5000'],
    ['HTTPS://Line.test/v2/', '/v2/', 'Line.test'],
    ['http://[::1]:5000/v2/', '/v2/', '[::1]:5000'],
    ['http://line.test', '/', 'line.test'],
    ['http://line.test?a=/b', '/?a=/b', 'line.test'],
    ['http://line.test//v2/', '//v2/', 'line.test'],
  ])('is its path, and its host counts instead of the header: %s', async (target, url, host) => {
    const raw = `Accept a Host ${host}`
    expect(await seenOf(`GET ${target} HTTP/1.1`)).toEqual({ url, host, raw })
    expect(await seenOf(`GET ${target} HTTP/1.0`, '')).toEqual({ url, host, raw })
  })

  it.each(['/v2/', '/http://line.test/v2/', 'http://user@line.test/v2/', 'http:///v2/'])(
    'is left alone when it is none, or no proper one: %s',
    async (url) => {
      const seen = { url, host: 'header.test', raw: 'Host header.test Accept a' }
      expect(await seenOf(`GET ${url} HTTP/1.1`)).toEqual(seen)
    },
  )
})
