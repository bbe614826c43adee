// Attacks that others have met, as tests named after them: what a hostile upstream can make us send, and to whom.

import type { IncomingMessage, ServerResponse } from 'node:http'
import { describe, expect, it } from 'vitest'
import { addressScope, type AddressScope } from '../../../src/upstream/address-scope.ts'
import { isAllowedRealm } from '../../../src/upstream/realm.ts'
import { nextTurn } from '../../support/wait-for.ts'
import {
  alpine,
  content,
  digest,
  failureOf,
  kindOf,
  makeClient,
  pour,
  sendJson,
  startServer,
  type SmallServer,
} from './small-server.ts'

const login = { username: 'robot', password: 's3cret' }
const credentials = { kind: 'static', ...login } as const
/** The longest pause before another try. */
const RETRY_WAIT_MAX_MS = 1_000
const SECRETS = ['s3cret', Buffer.from('robot:s3cret').toString('base64')]

/** Takes whatever it is given. */
function startStranger(): Promise<SmallServer> {
  return startServer((_request, response) => sendJson(response, { token: 't' }))
}

/** An upstream that wants tokens from `realm`. */
function startChallenging(realmOf: (request: IncomingMessage) => string): Promise<SmallServer> {
  return startServer((request, response) => {
    if (request.headers.authorization) return response.end(content)
    response.setHeader('www-authenticate', `Bearer realm="${realmOf(request)}",service="x"`)
    return response.writeHead(401).end()
  })
}

function secretsIn(told: unknown): string[] {
  const text = JSON.stringify(told)
  return SECRETS.filter((secret) => text.includes(secret))
}

/** 127.0.0.2 stands for a public address. */
function scopeOf(address: string): AddressScope {
  return address === '127.0.0.2' ? 'public' : addressScope(address)
}

function endless(status: number): (response: ServerResponse) => void {
  return (response) => {
    response.writeHead(status, { 'content-type': 'application/json' })
    pour(response)
  }
}

describe('CVE-2026-33540: credentials for whoever the challenge names', () => {
  it.each([
    ['another port', (host: string) => `http://${host}/token`],
    ['userinfo that looks like us', (host: string) => `http://registry.test@${host}/token`],
    ['no scheme', (host: string) => `//${host}/token`],
    ['backslashes', (host: string) => `\\\\${host}/token`],
    ['line breaks in it', (host: string) => `ht\ttp://${host}/token`],
  ])('are not sent to a realm with %s', async (_what, realmOf) => {
    const stranger = await startStranger()
    const server = await startChallenging(() => realmOf(stranger.host))
    const { client, log } = makeClient(server.url, { credentials })
    const failure = await failureOf(client.getManifest(alpine, 'a'))
    expect(['denied', 'login-failed', 'bad-response']).toContain(failure.kind)
    expect(stranger.hits).toEqual([])
    expect(secretsIn([failure.message, log])).toEqual([])
  })

  it('are not even sent to it when the upstream redirects there', async () => {
    const stranger = await startServer((request, response) => {
      const realm = `http://${request.headers.host}/token`
      response.setHeader('www-authenticate', `Bearer realm="${realm}"`)
      return response.writeHead(401).end()
    })
    const server = await startServer((_request, response) =>
      response.writeHead(302, { location: `${stranger.url}/v2/` }).end(),
    )
    const { client } = makeClient(server.url, { credentials })
    await failureOf(client.getManifest(alpine, 'a'))
    expect(stranger.hits.map(({ path, headers }) => [path, headers.authorization])).toEqual([
      ['/v2/', undefined],
    ])
  })

  it.each([
    ['https://registry.test.evil.test/token', false],
    ['https://evil-registry.test/token', false],
    ['https://auth.registry.test/token', true],
    ['https://registry.test:8443/token', true],
  ])('%s is of registry.test: %s', (realm, isOwn) => {
    expect(isAllowedRealm(new URL(realm), new URL('https://registry.test'), [])).toBe(isOwn)
  })

  it('are not sent to another tenant of a hosting domain', () => {
    const [realm, upstream] = ['https://evil.github.io/token', 'https://us.github.io']
    expect(isAllowedRealm(new URL(realm), new URL(upstream), [])).toBe(false)
  })
})

describe('CVE-2026-48978: a realm that is no token service at all', () => {
  it.each([
    'file:///etc/passwd',
    'ftp://registry.test/token',
    'data:application/json,{"token":"x"}',
    'javascript:alert(1)',
    'unix:/var/run/docker.sock',
  ])('%s is not asked', async (realm) => {
    const server = await startChallenging(() => realm)
    const { client } = makeClient(server.url, { credentials })
    expect(await kindOf(client.getManifest(alpine, 'a'))).toBe('login-failed')
    expect(server.hits).toHaveLength(1)
  })

  it.each([
    'http://registry.test/token',
    'http://auth.registry.test/token',
    'https://169.254.169.254/latest/meta-data/',
    'https://[fd00:ec2::254]/latest/',
    'https://127.0.0.1:2375/',
    'https://localhost/token',
    'https://10.0.0.1/token',
  ])('%s is none of an https upstream', (realm) => {
    expect(isAllowedRealm(new URL(realm), new URL('https://registry.test'), [])).toBe(false)
  })

  it('gets no credentials by a redirect of the token endpoint', async () => {
    const stranger = await startStranger()
    const server = await startServer((request, response) => {
      if (request.url?.startsWith('/token')) {
        return response.writeHead(307, { location: `${stranger.url}/token` }).end()
      }
      const realm = `http://${request.headers.host}/token`
      return response.writeHead(401, { 'www-authenticate': `Bearer realm="${realm}"` }).end()
    })
    const { client } = makeClient(server.url, { credentials })
    expect(await kindOf(client.getManifest(alpine, 'a'))).toBe('bad-response')
    expect(stranger.hits).toEqual([])
  })
})

describe('CVE-2020-15157: a 401 from where a layer was redirected to', () => {
  it.each(['Basic realm="cdn"', 'Bearer realm="{self}/token",service="x"'])(
    'gets no credentials (%s)',
    async (challenge) => {
      const cdn = await startServer((request, response) => {
        const self = `http://${request.headers.host}`
        const header = challenge.replace('{self}', self)
        response.writeHead(401, { 'www-authenticate': header }).end()
      })
      const server = await startServer((request, response) => {
        if (!request.headers.authorization) {
          return response.writeHead(401, { 'www-authenticate': 'Basic realm="x"' }).end()
        }
        return response.writeHead(307, { location: `${cdn.url}/layer` }).end()
      })
      const { client } = makeClient(server.url, { credentials })
      for (let i = 0; i < 2; i++) {
        expect(await kindOf(client.getBlob(alpine, digest))).toBe('bad-response')
      }
      expect(cdn.hits.map(({ path }) => path)).toEqual(['/layer', '/layer'])
      expect(cdn.hits.some(({ headers }) => headers.authorization !== undefined)).toBe(false)
    },
  )
})

describe('CVE-2026-14646: a redirect into our network', () => {
  it('is not followed, while relative ones and those to public hosts are', async () => {
    const inside = await startStranger()
    let location = ''
    const server = await startServer((request, response) => {
      if (request.url?.startsWith('/artifacts-downloads/')) return response.end(content)
      return response.writeHead(302, { location }).end()
    }, '0.0.0.0')
    const url = `http://127.0.0.2:${new URL(server.url).port}`
    const { client } = makeClient(url, {}, { scopeOf })
    location = `${inside.url}/latest/meta-data/`
    expect(await kindOf(client.getManifest(alpine, 'a'))).toBe('bad-response')
    expect(inside.sockets).toEqual([])
    // What the first fix of that one broke: Artifact Registry sends such.
    location = '/artifacts-downloads/namespaces/x?signature=y'
    expect((await client.getManifest(alpine, 'a')).bytes).toEqual(content)
  })
})

describe('CVE-2026-0600: the metadata service of a cloud', () => {
  it.each(['169.254.169.254', '[fd00:ec2::254]', '100.100.100.200', '168.63.129.16'])(
    '%s is not asked, whoever sends us there',
    async (host) => {
      const server = await startServer((_request, response) =>
        response.writeHead(307, { location: `http://${host}/latest/meta-data/` }).end(),
      )
      // The upstream itself is on the loopback, from where private addresses would be reached.
      for (const options of [{}, { allowPrivateAddresses: true }]) {
        const { client } = makeClient(server.url, options)
        const failure = await failureOf(client.getManifest(alpine, 'a'))
        expect(failure.message).toContain('at no public address')
      }
    },
  )
})

describe('CVE-2020-1702 and CVE-2017-11468: answers without end', () => {
  it.each([
    ['a manifest', 'manifest', endless(200)],
    ['a list of tags', 'tags', endless(200)],
    ['a list of referrers', 'referrers', endless(200)],
    ['a reason', 'manifest', endless(500)],
    ['a refusal', 'manifest', endless(403)],
  ] as const)('%s is read to its limit only', async (_what, call, answer) => {
    const server = await startServer((_request, response) => answer(response))
    const rig = makeClient(server.url)
    const calls = {
      manifest: () => rig.client.getManifest(alpine, 'a'),
      tags: () => rig.client.listTags(alpine),
      referrers: () => rig.client.getReferrers(alpine, digest),
    }
    const failure = failureOf(calls[call]())
    const over = failure.then(() => true)
    const step = async (): Promise<boolean> => {
      // A 500 is tried again after a wait; time must not pass while bytes do.
      const { nextTimerMs = Infinity } = rig.clock
      await (nextTimerMs <= RETRY_WAIT_MAX_MS ? rig.clock.advance(nextTimerMs) : nextTurn())
      return false
    }
    while (!(await Promise.race([over, step()])));
    expect(['bad-response', 'unavailable', 'denied']).toContain((await failure).kind)
    const sent = server.sockets.map(({ bytesWritten }) => bytesWritten)
    expect(Math.max(...sent)).toBeLessThan(64 * 1024 * 1024)
  })

  it('a token is read to its limit only', async () => {
    const server = await startServer((request, response) => {
      if (request.url?.startsWith('/token')) return endless(200)(response)
      const realm = `http://${request.headers.host}/token`
      return response.writeHead(401, { 'www-authenticate': `Bearer realm="${realm}"` }).end()
    })
    const { client } = makeClient(server.url)
    expect(await kindOf(client.getManifest(alpine, 'a'))).toBe('bad-response')
  })
})
