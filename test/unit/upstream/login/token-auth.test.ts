import type { IncomingMessage, ServerResponse } from 'node:http'
import { describe, expect, it } from 'vitest'
import { waitFor } from '../../../support/wait-for.ts'
import {
  alpine,
  content,
  digest,
  failureOf,
  makeClient,
  repositoryOf,
  sendJson,
  startServer,
  type Handler,
} from '../small-server.ts'

const credentials = { kind: 'static', username: 'robot', password: 's3cret' } as const
const basicHeader = `Basic ${Buffer.from('robot:s3cret').toString('base64')}`

interface BearerOptions {
  /** Answers the token endpoint; counts from 1. */
  readonly token?: (response: ServerResponse, count: number, request: IncomingMessage) => void
  readonly scope?: string
  /** Which tokens the registry takes. */
  readonly accepts?: (token: string) => boolean
  readonly realm?: string
}

/** A registry that sells its own tokens: t1, t2, … */
async function startBearer(options: BearerOptions = {}) {
  const { accepts = () => true, scope = 'repository:some/other:pull' } = options
  const { token = (response, count) => sendJson(response, { token: `t${count}` }) } = options
  let count = 0
  const server = await startServer((request, response) => {
    const url = new URL(request.url ?? '', 'http://x')
    if (url.pathname === '/token') return token(response, ++count, request)
    const sent = /^Bearer (.*)$/.exec(request.headers.authorization ?? '')?.[1]
    if (sent && accepts(sent)) return response.end(content)
    const realm = options.realm ?? `http://${request.headers.host}/token`
    const challenge = `Bearer realm="${realm}",service="registry.test",scope="${scope}"`
    response.setHeader('www-authenticate', challenge)
    return sendJson(response, { errors: [{ code: 'UNAUTHORIZED', message: 'log in' }] }, 401)
  })
  return server
}

function queryOf(path: string | undefined): Record<string, string> {
  return Object.fromEntries(new URL(path ?? '', 'http://x').searchParams)
}

describe('a token', () => {
  it('is fetched when the first request is refused, and used again', async () => {
    const server = await startBearer()
    const { client, observations } = makeClient(server.url)
    await client.getManifest(alpine, 'a')
    await client.getManifest(alpine, 'b')
    expect(observations.map(({ kind, status }) => [kind, status])).toEqual([
      ['manifest', 401],
      ['token', 200],
      ['manifest', 200],
      ['manifest', 200],
    ])
    const asked = server.hits[1]
    expect(queryOf(asked?.path)).toEqual({
      service: 'registry.test',
      scope: 'repository:library/alpine:pull',
    })
    expect(asked?.headers.authorization).toBeUndefined()
    expect(server.hits[3]?.headers.authorization).toBe('Bearer t1')
  })

  it('for the next repository is asked for straight away', async () => {
    const server = await startBearer()
    const { client } = makeClient(server.url)
    await client.getManifest(alpine, 'a')
    await client.getManifest(repositoryOf('library/busybox'), 'a')
    expect(server.hits.map(({ path }) => path.slice(0, 6))).toEqual([
      '/v2/li',
      '/token',
      '/v2/li',
      '/token',
      '/v2/li',
    ])
    expect(queryOf(server.hits[3]?.path)['scope']).toBe('repository:library/busybox:pull')
  })

  it('of one scope for everything is shared by all repositories', async () => {
    const server = await startBearer({ scope: 'aws' })
    const { client } = makeClient(server.url)
    await client.getManifest(alpine, 'a')
    await client.getManifest(repositoryOf('library/busybox'), 'a')
    expect(server.count('/token')).toBe(1)
    expect(queryOf(server.hits[1]?.path)['scope']).toBe('aws')
  })

  it('is for the repository as a proxy that rewrites paths has it', async () => {
    const names = new Map<string, string>()
    const server = await startServer((request, response) => {
      const url = new URL(request.url ?? '', 'http://x')
      if (url.pathname === '/token') {
        const scope = url.searchParams.get('scope') ?? ''
        // Whoever asks for what there is not is told so.
        return [...names.values()].includes(scope)
          ? sendJson(response, { token: Buffer.from(scope).toString('base64url') })
          : sendJson(response, {}, 403)
      }
      const name = /\/v2\/(.*)\/manifests/.exec(url.pathname)?.[1] ?? ''
      const scope = `repository:${name === 'team/own' ? name : `cache/${name}`}:pull`
      names.set(name, scope)
      const wanted = `Bearer ${Buffer.from(scope).toString('base64url')}`
      if (request.headers.authorization === wanted) return response.end(content)
      const realm = `http://${request.headers.host}/token`
      const said = scope.replace('pull', 'pull,push')
      const challenge = `Bearer realm="${realm}",service="x",scope="repository:x:pull ${said}"`
      return response.writeHead(401, { 'www-authenticate': challenge }).end()
    })
    const { client } = makeClient(server.url)
    for (const name of ['team/app', 'app', 'team/own', 'team/app', 'app', 'team/own']) {
      await client.getManifest(repositoryOf(name), 'a')
    }
    expect(server.count('/token')).toBe(3)
    // Each is refused once, before its name is known.
    expect(server.hits).toHaveLength(3 * 3 + 3)
  })

  it.each([
    'repository:other/library/alpines:pull',
    'repository:xlibrary/alpine:pull',
    'repository:x library/alpine:pull',
    'repository:x:y/library/alpine:pull',
    'repository:cache/library/alpine',
  ])('is never for another repository: %s', async (scope) => {
    const server = await startBearer({ scope })
    const { client } = makeClient(server.url)
    await client.getManifest(alpine, 'a')
    expect(queryOf(server.hits[1]?.path)['scope']).toBe('repository:library/alpine:pull')
  })

  it('is asked for with the credentials', async () => {
    const server = await startBearer()
    const { client } = makeClient(server.url, { credentials })
    await client.getManifest(alpine, 'a')
    expect(server.hits[1]?.headers.authorization).toBe(basicHeader)
    expect(queryOf(server.hits[1]?.path)['account']).toBe('robot')
    expect(server.hits.map(({ headers }) => headers.authorization)).toEqual([
      undefined,
      basicHeader,
      'Bearer t1',
    ])
  })

  it('is fetched once for all who need it at the same time', async () => {
    const waiting: ServerResponse[] = []
    const server = await startBearer({ token: (response) => void waiting.push(response) })
    const { client } = makeClient(server.url)
    const leaver = new AbortController()
    const left = client.getManifest(alpine, 'x', { signal: leaver.signal })
    const calls = Array.from({ length: 20 }, (_, i) => client.getManifest(alpine, `t${i}`))
    await waitFor('all to be refused', () => server.count('/v2/') === 21 && waiting.length > 0)
    // Whoever leaves takes nothing from the others.
    leaver.abort(new Error('left'))
    await expect(left).rejects.toThrow('left')
    for (const response of waiting) sendJson(response, { access_token: 'shared' })
    await Promise.all(calls)
    expect(server.count('/token')).toBe(1)
    expect(server.hits.at(-1)?.headers.authorization).toBe('Bearer shared')
  })

  it.each([
    [300, 270_000],
    [60, 54_000],
    [10, 9_000],
    [0, 1_000],
    [-5, 1_000],
    [undefined, 54_000],
    ['300', 54_000],
    [1e12, 3_570_000],
  ])('with expires_in %s is used for %i ms', async (expiresIn, usableMs) => {
    const server = await startBearer({
      token: (response) => sendJson(response, { token: 't', expires_in: expiresIn }),
    })
    const { client, clock } = makeClient(server.url)
    await client.getManifest(alpine, 'a')
    await clock.advance(usableMs - 1)
    await client.getManifest(alpine, 'a')
    expect(server.count('/token')).toBe(1)
    await clock.advance(1)
    await client.getManifest(alpine, 'a')
    expect(server.count('/token')).toBe(2)
  })

  it('that was used before and is refused now is replaced, once', async () => {
    let valid = 't1'
    const server = await startBearer({ accepts: (token) => token === valid })
    const { client } = makeClient(server.url)
    await client.getManifest(alpine, 'a')
    valid = 't2'
    await client.getManifest(alpine, 'a')
    expect(server.count('/token')).toBe(2)
    expect(server.count('/v2/')).toBe(4)
  })

  it('that is fresh and refused means denied', async () => {
    const server = await startBearer({ accepts: () => false })
    const { client } = makeClient(server.url)
    const error = await failureOf(client.getManifest(alpine, 'a'))
    expect(error).toMatchObject({ kind: 'denied', status: 401 })
    expect(error.message).toContain('log in')
    expect([server.count('/token'), server.count('/v2/')]).toEqual([1, 2])
    // The next call finds the token held, and so learns once more that it is of no use.
    await failureOf(client.getManifest(alpine, 'a'))
    expect([server.count('/token'), server.count('/v2/')]).toEqual([2, 4])
  })

  it('is not chased through challenges that change each time', async () => {
    const server = await startServer((request, response, hits) => {
      const realm = `http://${request.headers.host}/token?round=${hits.length}`
      if (request.url?.startsWith('/token')) return sendJson(response, { token: 't' })
      response.setHeader('www-authenticate', `Bearer realm="${realm}"`)
      return response.writeHead(401).end()
    })
    const { client } = makeClient(server.url)
    expect(await failureOf(client.getManifest(alpine, 'a'))).toMatchObject({ kind: 'denied' })
    expect(server.hits.length).toBe(5)
  })
})

describe('the token endpoint', () => {
  it.each([
    ['anonymous', 401, 'denied'],
    ['anonymous', 403, 'denied'],
    ['known', 401, 'login-failed'],
    ['known', 404, 'bad-response'],
    ['known', 400, 'bad-response'],
    ['known', 429, 'rate-limited'],
    ['known', 307, 'bad-response'],
    ['known', 204, 'bad-response'],
  ])('asked by %s and answering %i means %s', async (who, status, kind) => {
    const server = await startBearer({
      token: (response) =>
        response.writeHead(status, { 'retry-after': '7', location: '/elsewhere' }).end(),
    })
    const { client } = makeClient(server.url, who === 'known' ? { credentials } : {})
    const error = await failureOf(client.getManifest(alpine, 'a'))
    expect(error).toMatchObject({ kind, status })
    if (status === 429) expect(error.retryAfterMs).toBe(7_000)
    expect(server.count('/token')).toBe(1)
    expect(server.count('/elsewhere')).toBe(0)
  })

  it.each([
    ['no JSON', (response: ServerResponse) => response.end('<html>')],
    ['no object', (response: ServerResponse) => sendJson(response, ['t'])],
    ['no token', (response: ServerResponse) => sendJson(response, { token: '' })],
    ['a token of lines', (response: ServerResponse) => sendJson(response, { token: 'a\r\nb: c' })],
    [
      'ten megabytes',
      (response: ServerResponse) => sendJson(response, { token: 'x'.repeat(10_000_000) }),
    ],
  ])('that answers with %s is a bad response', async (_what, token) => {
    const server = await startBearer({ token })
    const { client } = makeClient(server.url)
    const error = await failureOf(client.getManifest(alpine, 'a'))
    expect(error.kind).toBe('bad-response')
    expect(error.message.length).toBeLessThan(200)
    expect(server.count('/token')).toBe(1)
  })

  it('out of order is tried again, and is then unavailable', async () => {
    const server = await startBearer({ token: (response) => response.writeHead(500).end() })
    const { client, clock } = makeClient(server.url)
    const failure = failureOf(client.getManifest(alpine, 'a'))
    for (const [waitMs, count] of [
      [200, 1],
      [800, 2],
    ] as const) {
      await waitFor('the wait', () => server.count('/token') === count && isWaiting(waitMs))
      await clock.advance(waitMs)
    }
    expect(await failure).toMatchObject({ kind: 'unavailable', status: 500 })
    expect(server.count('/token')).toBe(3)

    function isWaiting(waitMs: number): boolean {
      return clock.nextTimerMs === waitMs
    }
  })

  it('that hangs is a timeout after ten seconds', async () => {
    const server = await startBearer({
      token: (response) => void response.writeHead(200).write('{'),
    })
    const { client, clock } = makeClient(server.url)
    const failure = failureOf(client.getManifest(alpine, 'a'))
    await waitFor('the token request', () => server.count('/token') === 1)
    await clock.advance(10_000)
    expect(await failure).toMatchObject({ kind: 'timeout' })
    await waitFor('no timer to be left', () => clock.pendingTimers === 0)
  })
})

describe('refused credentials', () => {
  it('rest for a minute, and are reported once', async () => {
    let isRight = false
    const server = await startBearer({
      token: (response) =>
        isRight
          ? sendJson(response, { token: 't' })
          : sendJson(response, { details: 'incorrect username or password' }, 401),
    })
    const { client, clock, log } = makeClient(server.url, { credentials })
    const first = await failureOf(client.getManifest(alpine, 'a'))
    expect(first).toMatchObject({ kind: 'login-failed', retryAfterMs: 60_000 })
    await clock.advance(10_000)
    const second = await failureOf(client.getManifest(repositoryOf('other'), 'a'))
    expect(second).toMatchObject({ kind: 'login-failed', retryAfterMs: 50_000 })
    expect(server.count('/token')).toBe(1)
    const warnings = log.filter(({ level }) => level === 40)
    expect(warnings.length).toBe(1)
    expect(JSON.stringify(warnings)).toContain('incorrect username or password')

    isRight = true
    await clock.advance(50_000)
    await client.getManifest(alpine, 'a')
    expect(server.count('/token')).toBe(2)
  })

  it('rest also where they are sent with each request', async () => {
    const server = await startServer((_request, response) => {
      response.writeHead(401, { 'www-authenticate': 'Basic realm="x"' }).end()
    })
    const { client, clock } = makeClient(server.url, { credentials })
    expect(await failureOf(client.getManifest(alpine, 'a'))).toMatchObject({ kind: 'login-failed' })
    expect(await failureOf(client.getManifest(alpine, 'a'))).toMatchObject({ kind: 'login-failed' })
    // Without, with them, and whether they are good for anything.
    expect(server.hits.length).toBe(3)
    await clock.advance(60_000)
    await failureOf(client.getManifest(alpine, 'a'))
    expect(server.hits.length).toBe(5)
  })

  it('and tokens appear in no log line and no message', async () => {
    const server = await startBearer({ token: (response) => sendJson(response, {}, 401) })
    const { client, log } = makeClient(server.url, { credentials })
    const { message } = await failureOf(client.getManifest(alpine, 'a'))
    const told = JSON.stringify([log, message])
    expect(log.length).toBeGreaterThan(0)
    expect(told).not.toContain(credentials.password)
    expect(told).not.toContain(basicHeader.slice(6))
  })
})

/** A registry that takes the credentials themselves. */
const basicRegistry: Handler = (request, response) => {
  if (request.headers.authorization === basicHeader) response.end(content)
  else response.writeHead(401, { 'www-authenticate': 'Basic realm="x"' }).end()
}

describe('a basic challenge', () => {
  it('is answered from then on', async () => {
    const server = await startServer(basicRegistry)
    const { client } = makeClient(server.url, { credentials })
    await client.getManifest(alpine, 'a')
    await client.getManifest(repositoryOf('other'), 'a')
    expect(server.hits.map(({ headers }) => headers.authorization)).toEqual([
      undefined,
      basicHeader,
      basicHeader,
    ])
  })

  it('without credentials means denied', async () => {
    const server = await startServer(basicRegistry)
    const { client } = makeClient(server.url)
    expect(await failureOf(client.getManifest(alpine, 'a'))).toMatchObject({ kind: 'denied' })
    expect(server.hits.length).toBe(1)
  })

  it('is passed over where there is a bearer challenge too', async () => {
    const server = await startServer((request, response) => {
      if (request.url?.startsWith('/token')) return sendJson(response, { token: 't' })
      if (request.headers.authorization === 'Bearer t') return response.end(content)
      const realm = `http://${request.headers.host}/token`
      response.setHeader('www-authenticate', ['Basic realm="x"', `Bearer realm="${realm}"`])
      return response.writeHead(401).end()
    })
    const { client } = makeClient(server.url, { credentials })
    await client.getManifest(alpine, 'a')
    expect(server.hits.at(-1)?.headers.authorization).toBe('Bearer t')
  })
})

describe('a realm elsewhere', () => {
  it('gets nothing unless it is listed', async () => {
    const elsewhere = await startServer((_request, response) => sendJson(response, { token: 't' }))
    const server = await startBearer({ realm: `${elsewhere.url}/token` })
    const refused = makeClient(server.url, { credentials })
    for (let i = 0; i < 3; i++) {
      const error = await failureOf(refused.client.getManifest(alpine, 'a'))
      expect(error.kind).toBe('login-failed')
      expect(error.message).toContain(`add ${elsewhere.host} to proxy.allowedrealms`)
    }
    expect(elsewhere.hits.length).toBe(0)
    expect(refused.log.filter(({ level }) => level === 40).length).toBe(1)

    const listed = makeClient(server.url, { credentials, allowedRealms: [elsewhere.host] })
    await listed.client.getManifest(alpine, 'a')
    expect(elsewhere.hits.length).toBe(1)
  })

  it('that a 401 after a redirect names gets nothing either', async () => {
    const cdn = await startServer((request, response) => {
      const realm = `http://${request.headers.host}/token`
      response.writeHead(401, { 'www-authenticate': `Bearer realm="${realm}"` }).end()
    })
    const server = await startServer((_request, response) => {
      response.writeHead(307, { location: `${cdn.url}/blob` }).end()
    })
    const { client } = makeClient(server.url, { credentials })
    const error = await failureOf(client.getBlob(alpine, digest))
    expect(error).toMatchObject({ kind: 'bad-response', status: 401 })
    expect(cdn.hits.map(({ path }) => path)).toEqual(['/blob'])
  })
})

describe('a 401 without a challenge that is understood', () => {
  it.each([undefined, 'Negotiate abc==', 'Bearer service="x"', 'Bearer realm="http://["'])(
    'means denied (%s)',
    async (challenge) => {
      const server = await startServer((_request, response) => {
        if (challenge) response.setHeader('www-authenticate', challenge)
        response.writeHead(401).end()
      })
      const { client } = makeClient(server.url, { credentials })
      expect(await failureOf(client.getManifest(alpine, 'a'))).toMatchObject({ kind: 'denied' })
      expect(server.hits.length).toBe(1)
    },
  )
})
