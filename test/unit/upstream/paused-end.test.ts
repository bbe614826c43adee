import { createServer, type Socket } from 'node:net'
import type { Readable } from 'node:stream'
import { buffer } from 'node:stream/consumers'
import { describe, expect, it, onTestFinished } from 'vitest'
import type { UpstreamClient } from '../../../src/upstream/upstream-client.ts'
import { nextTurn, waitFor, within } from '../../support/wait-for.ts'
import { alpine, content, digest, hostOf, makeClient } from './small-server.ts'

/** More than is read ahead of a slow reader. */
const body = Buffer.alloc(400_000, 'layover ')

/** Answers the first request with `head` and `body` and then ends or resets the connection; the others with `content`. */
async function startUpstream(head: string, end: 'fin' | 'rst' = 'fin'): Promise<UpstreamClient> {
  const sockets: Socket[] = []
  const server = createServer((socket) => {
    sockets.push(socket)
    const isFirst = sockets.length === 1
    socket
      .on('error', () => undefined)
      .once('data', () => {
        if (!isFirst) {
          socket.write(`HTTP/1.1 200 OK\r\nContent-Length: ${content.length}\r\n\r\n`)
          socket.end(content)
          return
        }
        socket.write(`HTTP/1.1 200 OK\r\nConnection: close\r\n${head}\r\n`)
        socket.write(body, () => (end === 'fin' ? socket.end() : socket.resetAndDestroy()))
      })
  })
  await new Promise<void>((resolve) => server.listen(0, '127.0.0.1', resolve))
  onTestFinished(() => {
    for (const socket of sockets) socket.destroy()
    server.close()
  })
  const connection = { connectionsMax: 1 }
  return makeClient(`http://${hostOf(server)}`, { connection }).client
}

/** Long enough for the connection's end to arrive at each pause. */
async function readSlowly(stream: Readable): Promise<Buffer> {
  const chunks: Buffer[] = []
  for await (const chunk of stream) {
    chunks.push(chunk)
    for (let turn = 0; turn < 20; turn++) await nextTurn()
  }
  return Buffer.concat(chunks)
}

describe('a slow reader of an answer that ends with its connection', () => {
  it('has all of it', async () => {
    const client = await startUpstream('')
    const blob = await client.getBlob(alpine, digest)
    expect(await within('the body', readSlowly(blob.body))).toEqual(body)
  })

  it('has all of it, if its length was told', async () => {
    const client = await startUpstream(`Content-Length: ${body.length}\r\n`)
    const blob = await client.getBlob(alpine, digest)
    expect(await within('the body', readSlowly(blob.body))).toEqual(body)
  })

  it.each(['fin', 'rst'] as const)('hears that it is short (%s)', async (end) => {
    const client = await startUpstream(`Content-Length: ${body.length + 1}\r\n`, end)
    const blob = await client.getBlob(alpine, digest)
    await expect(within('the body', readSlowly(blob.body))).rejects.toMatchObject({
      code: expect.stringMatching(/^UND_ERR_(RES_CONTENT_LENGTH_MISMATCH|SOCKET)$/),
    })
    expect(await buffer((await client.getBlob(alpine, digest)).body)).toEqual(content)
  })

  it('leaves its connection to others when it gives up', async () => {
    const client = await startUpstream('')
    const blob = await client.getBlob(alpine, digest)
    await waitFor('the body to be read ahead', () => blob.body.readableLength > 200_000)
    for (let turn = 0; turn < 20; turn++) await nextTurn()
    blob.body.on('error', () => undefined).destroy()
    const next = within('the next answer', client.getBlob(alpine, digest))
    expect(await buffer((await next).body)).toEqual(content)
  })
})
