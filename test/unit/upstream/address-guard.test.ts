// The guard over real sockets. All of them are on the loopback, so the tests say what an address stands for:
// 127.0.0.2 is public, 127.0.0.3 and .5 private, 127.0.0.4 link-local, all others are what they are.

import type { lookup } from 'node:dns'
import { describe, expect, it } from 'vitest'
import { addressScope, type AddressScope } from '../../../src/upstream/address-scope.ts'
import type { UpstreamOptions } from '../../../src/upstream/upstream-client.ts'
import {
  alpine,
  content,
  digest,
  failureOf,
  makeClient,
  startServer,
  type SmallServer,
} from './small-server.ts'

const PUBLIC = '127.0.0.2'
const PRIVATE = '127.0.0.3'
const LINK_LOCAL = '127.0.0.4'
const OTHER_PRIVATE = '127.0.0.5'

function scopeOf(address: string): AddressScope {
  if (address === PUBLIC) return 'public'
  if (address === PRIVATE || address === OTHER_PRIVATE) return 'private'
  if (address === LINK_LOCAL) return 'link-local'
  return addressScope(address)
}

/** The port of a server that answers with the content, and counts who comes, at any loopback address. */
async function startTarget(): Promise<SmallServer & { readonly port: string }> {
  const target = await startServer((_request, response) => response.end(content), '0.0.0.0')
  return { ...target, port: new URL(target.url).port }
}

/** @param names what names resolve to, by turns */
function clientOf(
  url: string,
  { names = {}, ...options }: Partial<UpstreamOptions> & { names?: Record<string, string[]> } = {},
) {
  const lookups: string[] = []
  const resolve = (name: string, _options: unknown, done: (...result: unknown[]) => void): void => {
    lookups.push(name)
    const known = names[name]
    const address = known && known.length > 1 ? known.shift() : known?.[0]
    if (address === undefined) done(Object.assign(new Error('ENOTFOUND'), { code: 'ENOTFOUND' }))
    else done(null, [{ address, family: 4 }])
  }
  const deps = { scopeOf, lookup: resolve as unknown as typeof lookup }
  return { lookups, ...makeClient(url, options, deps) }
}

/** An upstream that sends everybody on. @param at the address that it is reached under */
async function startRedirecting(at: string, location: string): Promise<string> {
  const home = await startServer(
    (_request, response) => response.writeHead(307, { location }).end(),
    '0.0.0.0',
  )
  return `http://${at}:${new URL(home.url).port}`
}

describe('a redirect', () => {
  it.each([
    ['a private address', PRIVATE, 'which is not a public address'],
    ['a loopback address', '127.0.0.1', 'which is not a public address'],
    ['a loopback address in other clothes', '[::ffff:127.0.0.1]', 'which is not a public address'],
    ['a loopback address as a number', '2130706433', 'which is not a public address'],
    ['a metadata service', LINK_LOCAL, 'which is not a public address'],
    ['localhost', 'localhost', 'which is at no public address'],
    ['a name below localhost', 'x.localhost', 'which is at no public address'],
    ['a name that resolves to a private address', 'inside.test', 'which is at no public address'],
    ['that name with a dot', 'inside.test.', 'which is at no public address'],
  ])('from a public upstream to %s is not followed', async (_what, host, told) => {
    const target = await startTarget()
    const url = await startRedirecting(PUBLIC, `http://${host}:${target.port}/secret?key=s3cret`)
    const { client, log } = clientOf(url, {
      names: { 'inside.test': [PRIVATE], 'inside.test.': [PRIVATE] },
    })
    for (let i = 0; i < 2; i++) {
      const failure = await failureOf(client.getBlob(alpine, digest))
      expect(failure.kind).toBe('bad-response')
      expect(failure.message).toContain('leads to a host at no public address')
      expect(failure.message).not.toContain(host)
      expect(failure.message).not.toContain('s3cret')
    }
    expect(target.sockets).toEqual([])
    const warnings = log.filter(({ level }) => level === 40)
    expect(warnings.map(({ msg }) => msg)).toEqual([expect.stringContaining(told)])
    expect(JSON.stringify(log)).not.toContain('s3cret')
  })

  it('to a name that leads elsewhere when it is connected to is not followed', async () => {
    const target = await startTarget()
    const url = await startRedirecting(PUBLIC, `http://rebinding.test:${target.port}/`)
    const { client, lookups } = clientOf(url, { names: { 'rebinding.test': [PUBLIC, PRIVATE] } })
    // The first is what somebody who looks before he connects would see.
    expect((await client.getManifest(alpine, 'a')).bytes).toEqual(content)
    for (const socket of target.sockets) socket.destroy()
    await expect
      .poll(async () => (await failureOf(client.getManifest(alpine, 'a'))).message)
      .toContain('leads to a host at no public address')
    expect(lookups.length).toBeGreaterThan(1)
  })

  it.each([
    ['listed', { redirectHosts: ['inside.test'] }],
    ['listed with all below its domain', { redirectHosts: ['*.test'] }],
    ['a listed realm', { allowedRealms: ['https://inside.test/token'] }],
    ['private, and that is allowed', { allowPrivateAddresses: true }],
  ])('to a host that is %s is followed', async (_what, options) => {
    const target = await startTarget()
    const url = await startRedirecting(PUBLIC, `http://inside.test:${target.port}/`)
    const { client } = clientOf(url, { ...options, names: { 'inside.test': [PRIVATE] } })
    expect((await client.getManifest(alpine, 'a')).bytes).toEqual(content)
  })

  it.each([
    ['private', PRIVATE, PRIVATE, true],
    ['private', PRIVATE, OTHER_PRIVATE, false],
    ['private', PRIVATE, 'registry.test', true],
    ['private', PRIVATE, 'files.registry.test', true],
    ['private', PRIVATE, 'same.registry.test', true],
    ['private', PRIVATE, 'other.test', false],
    ['private', PRIVATE, '127.0.0.1', false],
    ['private', PRIVATE, LINK_LOCAL, false],
    ['loopback', '127.0.0.1', OTHER_PRIVATE, false],
    ['loopback', '127.0.0.1', 'files.registry.test', true],
    ['loopback', '127.0.0.1', '127.0.0.9', true],
    ['loopback', '127.0.0.1', 'localhost', true],
    ['loopback', '127.0.0.1', LINK_LOCAL, false],
  ])('of a %s upstream (%s) to %s: followed %s', async (_scope, at, to, isFollowed) => {
    const target = await startTarget()
    const url = await startRedirecting('registry.test', `http://${to}:${target.port}/`)
    const names = {
      'registry.test': [at],
      'files.registry.test': [OTHER_PRIVATE],
      'same.registry.test': [at],
      'other.test': [OTHER_PRIVATE],
      localhost: ['127.0.0.1'],
    }
    const { client } = clientOf(url, { names })
    const outcome = client.getManifest(alpine, 'a').then(
      () => true,
      () => false,
    )
    expect(await outcome).toBe(isFollowed)
    expect(target.sockets.length > 0).toBe(isFollowed)
  })

  it('to link-local addresses is not even followed where private ones are allowed', async () => {
    const target = await startTarget()
    const url = await startRedirecting(PUBLIC, `http://${LINK_LOCAL}:${target.port}/`)
    const { client } = clientOf(url, { allowPrivateAddresses: true })
    expect((await failureOf(client.getManifest(alpine, 'a'))).kind).toBe('bad-response')
    expect(target.sockets).toEqual([])
  })
})

describe('a token realm', () => {
  it('of the same domain at a private address is not asked', async () => {
    const target = await startTarget()
    const home = await startServer((_request, response) => {
      const realm = `http://auth.registry.test:${target.port}/token`
      response.writeHead(401, { 'www-authenticate': `Bearer realm="${realm}"` }).end()
    }, '0.0.0.0')
    const names = { 'www.registry.test': [PUBLIC], 'auth.registry.test': [PRIVATE] }
    const url = `http://www.registry.test:${new URL(home.url).port}`
    const credentials = { kind: 'static', username: 'robot', password: 's3cret' } as const
    const { client } = clientOf(url, { names, credentials })
    const failure = await failureOf(client.getManifest(alpine, 'a'))
    expect(failure.message).toContain('leads to a host at no public address')
    expect(target.sockets).toEqual([])
  })
})

describe('an upstream that a client named', () => {
  it.each([
    ['127.0.0.1', {}],
    ['inside.test', { 'inside.test': [PRIVATE] }],
    ['localhost', {}],
  ])('is not asked at %s', async (host, names) => {
    const target = await startTarget()
    const { client } = clientOf(`http://${host}:${target.port}`, { names, isUntrusted: true })
    const failure = await failureOf(client.getManifest(alpine, 'a'))
    expect(failure.kind).toBe('bad-response')
    expect(failure.message).toContain('entry of its own, or add it to proxy.redirecthosts')
    expect(target.sockets).toEqual([])
  })

  it('is asked inside if the operator allows that for its name', async () => {
    const target = await startTarget()
    const { client } = clientOf(`http://inside.test:${target.port}`, {
      names: { 'inside.test': [PRIVATE] },
      isUntrusted: true,
      redirectHosts: ['*.test'],
    })
    await client.getManifest(alpine, 'a')
    expect(target.sockets.length).toBeGreaterThan(0)
  })

  it('is asked at a public address, and may not send us inside', async () => {
    const target = await startTarget()
    const url = await startRedirecting(PUBLIC, `http://${PRIVATE}:${target.port}/`)
    const { client } = clientOf(url, { isUntrusted: true })
    const failure = await failureOf(client.getManifest(alpine, 'a'))
    expect(failure.message).toContain('leads to a host at no public address')
  })
})

describe('behind a proxy', () => {
  it('literal addresses and localhost are refused here, names are left to the proxy', async () => {
    const asked: string[] = []
    const proxy = await startServer((request, response) => {
      const url = new URL(request.url ?? '')
      asked.push(url.hostname)
      if (url.hostname !== 'registry.test') return response.end(content)
      const target = url.pathname.split('/').at(-1)
      return response.writeHead(307, { location: `http://${target}/blob` }).end()
    })
    const environmentProxy = { httpProxy: proxy.host }
    const { client } = clientOf('http://registry.test', { environmentProxy })
    for (const target of ['10.0.0.1', '[fd00::1]', '169.254.169.254', 'localhost']) {
      const failure = await failureOf(client.getManifest(alpine, target))
      expect(failure.message).toMatch(/at no public address/)
    }
    expect((await client.getManifest(alpine, 'inside.test')).bytes).toEqual(content)
    expect(new Set(asked)).toEqual(new Set(['registry.test', 'inside.test']))
  })
})
