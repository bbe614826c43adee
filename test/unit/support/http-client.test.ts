import { createServer, type Server, type Socket } from 'node:net'
import { describe, expect, it, onTestFinished } from 'vitest'
import { openRaw, rawGet } from '../../support/http-client.ts'
import { waitFor } from '../../support/wait-for.ts'

/** A server that hands each connection over once a request has arrived on it. */
async function serverThat(answer: (socket: Socket, request: string) => void): Promise<string> {
  const sockets = new Set<Socket>()
  const server: Server = createServer((socket) => {
    sockets.add(socket)
    socket.on('error', () => {})
    socket.once('data', (bytes) => answer(socket, bytes.toString()))
  })
  await new Promise<void>((resolve) => {
    server.listen(0, '127.0.0.1', resolve)
  })
  onTestFinished(() => {
    for (const socket of sockets) socket.destroy()
    server.close()
  })
  const address = server.address()
  return `http://127.0.0.1:${typeof address === 'object' && address ? address.port : 0}/path?q=1`
}

describe('rawGet', () => {
  it('reports status, headers as written, body, and that it was complete', async () => {
    const requests: string[] = []
    const url = await serverThat((socket, request) => {
      requests.push(request)
      socket.write(
        'HTTP/1.1 206 Partial Content\r\nX-ODD-case: a\r\nContent-Length: 5\r\n\r\nhello',
      )
    })
    const response = await rawGet(url, { method: 'GET', headers: { 'X-Sent': 'yes' } })
    expect(response.status).toBe(206)
    expect(response.headers).toEqual([
      ['X-ODD-case', 'a'],
      ['Content-Length', '5'],
    ])
    expect(response.header('x-odd-CASE')).toBe('a')
    expect(response.body.toString()).toBe('hello')
    expect(response.ending).toBe('complete')
    expect(requests[0]).toMatch(/^GET \/path\?q=1 HTTP\/1.1\r\nHost: 127.0.0.1:\d+\r\nX-Sent: yes/)
  })

  it('tells what follows the body', async () => {
    const url = await serverThat((socket) =>
      socket.end('HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nokappended text'),
    )
    const response = await rawGet(url)
    expect([response.body.toString(), response.ending]).toEqual(['ok', 'complete'])
    expect(response.trailing.toString()).toBe('appended text')
  })

  it('puts chunks together, skips interim responses, and misses a last chunk', async () => {
    const chunks = '3\r\nabc\r\n2\r\nde\r\n'
    const head =
      'HTTP/1.1 103 Early Hints\r\n\r\nHTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n'
    const whole = await rawGet(
      await serverThat((socket) => socket.end(`${head}${chunks}0\r\n\r\n`)),
    )
    expect([whole.status, whole.body.toString(), whole.ending]).toEqual([200, 'abcde', 'complete'])
    const cut = await rawGet(await serverThat((socket) => socket.end(head + chunks)))
    expect([cut.body.toString(), cut.ending]).toEqual(['abcde', 'fin'])
  })

  it.each([
    ['fin', (socket: Socket) => socket.end()],
    ['rst', (socket: Socket) => socket.resetAndDestroy()],
  ] as const)('tells a %s short of the length', async (ending, end) => {
    const url = await serverThat((socket) => {
      socket.write('HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\nhello', () => end(socket))
    })
    const response = await rawGet(url)
    expect([response.status, response.body.toString(), response.ending]).toEqual([
      200,
      'hello',
      ending,
    ])
  })

  it.each([
    ['fin', (socket: Socket) => socket.end()],
    ['rst', (socket: Socket) => socket.resetAndDestroy()],
  ] as const)('tells a %s before any answer', async (ending, end) => {
    const response = await rawGet(await serverThat((socket) => end(socket)))
    expect([response.status, response.ending]).toEqual([undefined, ending])
  })

  it('expects no body after HEAD', async () => {
    const url = await serverThat((socket) =>
      socket.write('HTTP/1.1 200 OK\r\nContent-Length: 1000\r\n\r\n'),
    )
    const response = await rawGet(url, { method: 'HEAD' })
    expect([response.body.length, response.ending]).toEqual([0, 'complete'])
  })

  it('says so when nobody listens', async () => {
    await expect(rawGet('http://127.0.0.1:1/')).rejects.toThrow('ECONNREFUSED')
  })

  it('leaves after as many bytes as it was told', async () => {
    let left = false
    const url = await serverThat((socket) => {
      socket.on('close', () => (left = true))
      socket.write('HTTP/1.1 200 OK\r\nContent-Length: 1000\r\n\r\n' + 'x'.repeat(500))
    })
    const response = await rawGet(url, { leaveAfterBytes: 100 })
    expect([response.body.length, response.ending]).toEqual([100, 'aborted'])
    await waitFor('the server to notice', () => left)
  })

  it('reads in small steps to the same end', async () => {
    const url = await serverThat((socket) =>
      socket.end(`HTTP/1.1 200 OK\r\nContent-Length: 1000\r\n\r\n${'x'.repeat(1000)}`),
    )
    const response = await rawGet(url, { readBytesPerTick: 7 })
    expect([response.body.length, response.ending]).toEqual([1000, 'complete'])
  })
})

describe('openRaw', () => {
  it('takes no more from the connection than it is asked for', async () => {
    const sizeBytes = 32 * 1024 * 1024
    let flushed = false
    const url = await serverThat((socket) => {
      socket.write(`HTTP/1.1 200 OK\r\nContent-Length: ${sizeBytes}\r\n\r\n`)
      socket.write(Buffer.alloc(sizeBytes), () => (flushed = true))
    })
    const exchange = await openRaw(url)
    expect((await exchange.read(1000)).length).toBe(1000)
    expect(exchange.ending).toBeUndefined()
    expect(flushed).toBe(false)
    const rest = await exchange.finish()
    expect([rest.body.length, rest.ending]).toEqual([sizeBytes - 1000, 'complete'])
  })
})
