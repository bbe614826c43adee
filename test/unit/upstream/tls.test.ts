import { once } from 'node:events'
import type { RequestListener } from 'node:http'
import { createServer } from 'node:https'
import type { TLSSocket } from 'node:tls'
import { describe, expect, it, onTestFinished } from 'vitest'
import { TLS_CERTIFICATE } from '../../support/tls-certificate.ts'
import { alpine, content, failureOf, hostOf, makeClient, startServer } from './small-server.ts'

const { cert, key } = TLS_CERTIFICATE

async function startTlsServer(listener: RequestListener): Promise<string> {
  const options = { ...TLS_CERTIFICATE, requestCert: true, rejectUnauthorized: false }
  const server = createServer(options, listener).listen(0, '127.0.0.1')
  await once(server, 'listening')
  onTestFinished(() => server.close().closeAllConnections())
  return `https://${hostOf(server)}`
}

/** For a server that no authority vouches for; Node reads this at each connect. */
function trustAnyone(): void {
  process.env['NODE_TLS_REJECT_UNAUTHORIZED'] = '0'
  onTestFinished(() => void delete process.env['NODE_TLS_REJECT_UNAUTHORIZED'])
}

describe('an https upstream', () => {
  it('whose certificate is not trusted is unreachable, and the message says why', async () => {
    const url = await startTlsServer((_request, response) => response.end(content))
    const { client, clock, observations } = makeClient(url)
    const failure = failureOf(client.getManifest(alpine, 'a'))
    while (observations.length < 3) await clock.advance(200)
    const error = await failure
    expect(error.kind).toBe('unreachable')
    expect(error.message).toMatch(/self-signed certificate/)
  })

  it('cannot lead us to plain http', async () => {
    trustAnyone()
    const plain = await startServer((_request, response) => response.end(content))
    const url = await startTlsServer((_request, response) => {
      response.writeHead(307, { location: plain.url }).end()
    })
    const error = await failureOf(makeClient(url).client.getManifest(alpine, 'a'))
    expect(error).toMatchObject({ kind: 'bad-response' })
    expect(error.message).toContain('leads from https to http')
    expect(plain.hits.length).toBe(0)
  })

  it('cannot have tokens asked for over plain http', async () => {
    trustAnyone()
    const plain = await startServer((_request, response) => response.end('{"token":"t"}'))
    const url = await startTlsServer((_request, response) => {
      response.setHeader('www-authenticate', `Bearer realm="${plain.url}/token"`)
      response.writeHead(401).end()
    })
    const allowedRealms = [plain.host, plain.url]
    const error = await failureOf(
      makeClient(url, { allowedRealms }).client.getManifest(alpine, 'a'),
    )
    expect(error).toMatchObject({ kind: 'login-failed' })
    expect(plain.hits.length).toBe(0)
  })
})

describe('an https upstream with settings of its own', () => {
  it('is trusted by the authority that was named', async () => {
    const url = await startTlsServer((_request, response) => response.end(content))
    const { client } = makeClient(url, { connection: { tls: { ca: [cert] } } })
    expect((await client.getManifest(alpine, 'a')).bytes).toEqual(content)
  })

  it('sees our certificate, and nobody does that it sends us on to', async () => {
    const seen: string[] = []
    const note = (name: string, socket: unknown): void => {
      const { subject } = (socket as TLSSocket).getPeerCertificate()
      seen.push(`${name}: ${String(subject?.CN ?? 'none')}`)
    }
    const elsewhere = await startTlsServer((request, response) => {
      note('elsewhere', request.socket)
      response.end(content)
    })
    const url = await startTlsServer((request, response) => {
      note('own', request.socket)
      response.writeHead(307, { location: `${elsewhere}/x` }).end()
    })
    const tls = { ca: [cert], certificate: cert, key }
    await makeClient(url, { connection: { tls } }).client.getManifest(alpine, 'a')
    expect(seen).toEqual(['own: 127.0.0.1', 'elsewhere: none'])
  })

  it('need not prove itself if so wanted, but whoever it sends us on to must', async () => {
    const elsewhere = await startTlsServer((_request, response) => response.end(content))
    const url = await startTlsServer((request, response) => {
      if (request.url?.endsWith('/far')) response.writeHead(307, { location: elsewhere }).end()
      else response.end(content)
    })
    const connection = { tls: { skipsVerification: true } }
    const { client } = makeClient(url, { connection, callLimitMs: 1 })
    expect((await client.getManifest(alpine, 'near')).bytes).toEqual(content)
    expect((await failureOf(client.getManifest(alpine, 'far'))).kind).toBe('unreachable')
  })
})
