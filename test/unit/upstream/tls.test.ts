import { once } from 'node:events'
import type { RequestListener } from 'node:http'
import { createServer } from 'node:https'
import { describe, expect, it, onTestFinished } from 'vitest'
import { alpine, content, failureOf, hostOf, makeClient, startServer } from './small-server.ts'

// Made for these tests, for 127.0.0.1; signed by nobody.
const cert = `-----BEGIN CERTIFICATE-----
MIIBkDCCATagAwIBAgIUUZ2UagregzNiQ636MwNfP9anPbEwCgYIKoZIzj0EAwIw
FDESMBAGA1UEAwwJMTI3LjAuMC4xMCAXDTI2MTEyMTA0MjgyMFoYDzIxMjYxMDI4
MDQyODIwWjAUMRIwEAYDVQQDDAkxMjcuMC4wLjEwWTATBgcqhkjOPQIBBggqhkjO
PQMBBwNCAAScUuMB309+2tFj4gytIBJpeJorQDZysNVWLSxw5NUlUohi7n4H1wFr
WxdiadRsTWnwW1Kswg+1yVp9TZS0nCido2QwYjAdBgNVHQ4EFgQUgPyYVzE3BP0s
iPJ5pQhc5Fx+m14wHwYDVR0jBBgwFoAUgPyYVzE3BP0siPJ5pQhc5Fx+m14wDwYD
VR0TAQH/BAUwAwEB/zAPBgNVHREECDAGhwR/AAABMAoGCCqGSM49BAMCA0gAMEUC
IA4wcC7Fs9FUNMvNGdiXPWfBvaLtc0ixYtGQ4QApd07KAiEA9ywzwQXiQcT+zHkl
gcAPqyVcmMgzPveqj2any8gX1w4=
-----END CERTIFICATE-----
`
const key = `-----BEGIN PRIVATE KEY-----
MIGHAgEAMBMGByqGSM49AgEGCCqGSM49AwEHBG0wawIBAQQgSB73hwtsh//NeqVO
KhHbto7XEZIcDztrZkkNDQ9HIUShRANCAAScUuMB309+2tFj4gytIBJpeJorQDZy
sNVWLSxw5NUlUohi7n4H1wFrWxdiadRsTWnwW1Kswg+1yVp9TZS0nCid
-----END PRIVATE KEY-----
`

async function startTlsServer(listener: RequestListener): Promise<string> {
  const server = createServer({ cert, key }, listener).listen(0, '127.0.0.1')
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
