// Registries that refuse a login or a token in other ways than with a 401 that says what they want.

import { writeFile } from 'node:fs/promises'
import { join } from 'node:path'
import { describe, expect, it } from 'vitest'
import type { CredentialsOptions } from '../../../../src/upstream/login/credentials.ts'
import { makeTempDirectory } from '../../../support/temp-directory.ts'
import { waitFor } from '../../../support/wait-for.ts'
import {
  content,
  failureOf,
  makeClient,
  repositoryOf,
  sendJson,
  startServer,
  type SmallServer,
} from '../small-server.ts'

const fixed = { kind: 'static', username: 'robot', password: 'first' } as const

function basicOf(password: string): string {
  return `Basic ${Buffer.from(`robot:${password}`).toString('base64')}`
}

function logInto(server: SmallServer, credentials: CredentialsOptions = fixed) {
  const changes: boolean[] = []
  const onLoginChange = ({ isFailing }: { isFailing: boolean }): void =>
    void changes.push(isFailing)
  const rig = makeClient(server.url, { credentials }, { onLoginChange })
  const pull = (name: string) => rig.client.getManifest(repositoryOf(name), 'a')
  return { ...rig, changes, pull }
}

/**
 * A registry that wants a password.
 *
 * @param statusOf what it answers to one who has sent some; undefined: content
 */
function startBasic(statusOf: (path: string, authorization: string) => number | undefined) {
  return startServer((request, response) => {
    const { authorization } = request.headers
    const path = request.url ?? ''
    const status = authorization === undefined ? 401 : statusOf(path, authorization)
    if (status === undefined) return response.end(content)
    // Who asks for so much time is not asked again.
    const headers = { 'www-authenticate': 'Basic realm="x"', 'retry-after': '3600' }
    return response.writeHead(status, headers).end()
  })
}

function pingsOf({ hits }: SmallServer): number {
  return hits.filter(({ path, headers }) => path === '/v2/' && headers.authorization).length
}

/** A registry whose `/v2/` answers everybody alike, and that has one secret repository. */
async function startMute(pingStatus: number) {
  const rig = { right: 'first' }
  const server = await startServer((request, response) => {
    const { headers, url } = request
    if (url === '/v2/') return response.writeHead(pingStatus).end()
    const isKnown = headers.authorization === basicOf(rig.right)
    if (isKnown && !url?.includes('secret')) return response.end(content)
    return response.writeHead(401, { 'www-authenticate': 'Basic realm="x"' }).end()
  })
  const refusals = () =>
    server.hits.filter(
      ({ headers: { authorization }, path }) =>
        path !== '/v2/' && authorization && authorization !== basicOf(rig.right),
    ).length
  return Object.assign(rig, { server, refusals })
}

/** A registry with tokens t1, t2, …, of which it takes the last; it refuses others with `status` and no challenge. */
async function startTerse(status: number) {
  let sold = 0
  const rig = {
    takes: (_path: string | undefined, token: string) => token === `Bearer t${sold}`,
  }
  const server = await startServer((request, response) => {
    if (request.url?.startsWith('/token')) {
      return sendJson(response, { token: `t${++sold}`, expires_in: 3600 })
    }
    const { authorization } = request.headers
    if (authorization && rig.takes(request.url, authorization)) return response.end(content)
    if (authorization) return response.writeHead(status).end()
    const realm = `http://${request.headers.host}/token`
    return response.writeHead(401, { 'www-authenticate': `Bearer realm="${realm}"` }).end()
  })
  return Object.assign(rig, { server, endTokens: () => void sold++ })
}

describe('a 401 without a challenge', () => {
  it('is about the password, when that is no longer good for anything', async () => {
    let isRight = true
    const server = await startServer((request, response) => {
      const { authorization } = request.headers
      if (authorization && isRight) return response.end(content)
      return response
        .writeHead(401, authorization ? {} : { 'www-authenticate': 'Basic realm="x"' })
        .end()
    })
    const { changes, pull } = logInto(server)
    await pull('one')
    isRight = false
    const hitsBefore = server.hits.length
    for (const name of ['two', 'three', 'four']) {
      expect((await failureOf(pull(name))).kind).toBe('login-failed')
    }
    // The password, and twice whether it is good for anything.
    expect(server.hits.length - hitsBefore).toBe(3)
    expect(changes).toEqual([true])
  })

  it('ends the token that was sent: another one is asked for, once for all', async () => {
    const { endTokens, server } = await startTerse(401)
    const { pull } = logInto(server)
    await pull('one')
    endTokens()
    await Promise.all([pull('one'), pull('one'), pull('one')])
    expect(server.count('/token')).toBe(2)
  })

  it('to a token that is fresh means denied', async () => {
    const registry = await startTerse(401)
    const { pull } = logInto(registry.server)
    await pull('one')
    registry.takes = () => false
    expect((await failureOf(pull('one'))).kind).toBe('denied')
    expect(registry.server.count('/token')).toBe(2)
  })
})

describe('a 400 to a token', () => {
  it('ends it if it was used before: another one is asked for, once for all', async () => {
    const { endTokens, server } = await startTerse(400)
    const { pull } = logInto(server)
    await pull('one')
    endTokens()
    await Promise.all([pull('one'), pull('one'), pull('one')])
    expect(server.count('/token')).toBe(2)
  })

  it('that is fresh is about the request', async () => {
    const registry = await startTerse(400)
    const { pull } = logInto(registry.server)
    await pull('one')
    registry.takes = () => false
    expect(await failureOf(pull('one'))).toMatchObject({ kind: 'bad-response', status: 400 })
    expect([registry.server.count('/token'), registry.server.count('/v2/')]).toEqual([2, 4])
  })
})

describe('a 403 where each request carries the password', () => {
  it('may be about the password: one that has come in its place is tried at once', async () => {
    let right = 'first'
    const server = await startBasic((_path, sent) => (sent === basicOf(right) ? undefined : 403))
    const passwordFile = join(await makeTempDirectory(), 'password')
    await writeFile(passwordFile, right)
    const rig = logInto(server, { kind: 'files', username: 'robot', passwordFile })
    await rig.pull('one')
    right = 'second'
    await writeFile(passwordFile, right)
    await Promise.all(['one', 'two', 'three'].map(rig.pull))
    expect(pingsOf(server)).toBe(1)
    expect(rig.changes).toEqual([])
  })

  it('has a password rest that is no longer good for anything', async () => {
    let isRight = true
    const server = await startBasic(() => (isRight ? undefined : 403))
    const { changes, pull } = logInto(server)
    await pull('one')
    isRight = false
    for (const name of ['one', 'two', 'three']) {
      expect((await failureOf(pull(name))).kind).toBe('login-failed')
    }
    expect(pingsOf(server)).toBe(1)
    expect(changes).toEqual([true])
  })

  it('may be about the repository, and holds up nobody while that is found out', async () => {
    const pings: (() => void)[] = []
    const server = await startServer((request, response) => {
      if (!request.headers.authorization) {
        return response.writeHead(401, { 'www-authenticate': 'Basic realm="x"' }).end()
      }
      if (request.url === '/v2/') return void pings.push(() => response.end('{}'))
      if (request.url?.includes('secret')) return response.writeHead(403).end()
      return response.end(content)
    })
    const { changes, pull } = logInto(server)
    await pull('open')
    const refused = ['secret/a', 'secret/b'].map((name) => failureOf(pull(name)))
    await waitFor('the login to be checked', () => pings.length === 1)
    await Promise.all(['one', 'two', 'three', 'four', 'five'].map(pull))
    pings[0]?.()
    for (const failure of await Promise.all(refused)) {
      expect(failure).toMatchObject({ kind: 'denied', status: 403 })
    }
    expect(pings).toHaveLength(1)
    expect(changes).toEqual([])
  })

  it('says nothing of the password where everybody is forbidden', async () => {
    const server = await startServer((request, response) => {
      const { authorization } = request.headers
      if (request.url === '/v2/' || authorization) return response.writeHead(403).end()
      return response.writeHead(401, { 'www-authenticate': 'Basic realm="x"' }).end()
    })
    const { changes, pull } = logInto(server)
    expect((await failureOf(pull('one'))).kind).toBe('denied')
    expect(changes).toEqual([])
  })
})

describe('a registry that does not say at /v2/ whether a password is good for anything', () => {
  it.each([401, 503])('and answers %d there is asked for what was had with it', async (status) => {
    const server = await startBasic((path) => {
      if (path === '/v2/') return status
      return path.includes('secret') ? 401 : undefined
    })
    const { changes, pull } = logInto(server)
    await pull('open')
    expect((await failureOf(pull('secret'))).kind).toBe('denied')
    await pull('other')
    expect(pingsOf(server)).toBe(1)
    expect(changes).toEqual([])
  })

  it('has shown it by what is not there for others', async () => {
    const server = await startServer((request, response) => {
      const { headers, url } = request
      const isAllowed = url !== '/v2/' && !url?.includes('secret')
      if (headers.authorization && isAllowed) return response.end(content)
      const status = headers.authorization || server.hits.length === 1 ? 401 : 404
      return response.writeHead(status, { 'www-authenticate': 'Basic realm="x"' }).end()
    })
    const { changes, pull } = logInto(server)
    await pull('open')
    expect((await failureOf(pull('secret'))).kind).toBe('denied')
    await pull('other')
    expect(changes).toEqual([])
  })

  it('has shown nothing by what everybody gets', async () => {
    let isRight = true
    const server = await startServer((request, response) => {
      const isPublic = request.url?.includes('public') ?? false
      const isKnown = isRight && request.headers.authorization !== undefined
      const isForAll = isPublic && server.hits.length > 1
      if (isKnown || isForAll) return response.end(content)
      return response.writeHead(401, { 'www-authenticate': 'Basic realm="x"' }).end()
    })
    const { changes, pull } = logInto(server)
    await pull('public')
    isRight = false
    expect((await failureOf(pull('private'))).kind).toBe('login-failed')
    expect(changes).toEqual([true])
  })

  describe.each([200, 404, 405])('and answers %d there to everybody', (pingStatus) => {
    it.each([
      // The request, and what was had of a repository.
      ['others were', ['one', 'two'], 2],
      ['that alone was', ['one'], 2],
      // The request alone.
      ['nothing was', [], 1],
    ])('refuses a wrong password a few times, when %s had with it', async (_what, had, times) => {
      const registry = await startMute(pingStatus)
      const { changes, pull } = logInto(registry.server)
      for (const name of had) await pull(name)
      registry.right = 'second'
      const before = registry.refusals()
      for (const name of ['one', 'one', 'two', 'three']) {
        expect((await failureOf(pull(name))).kind).toBe('login-failed')
      }
      expect(registry.refusals() - before).toBe(times)
      expect(changes).toEqual([true])
    })

    it('takes no login from others for a repository that is forbidden', async () => {
      const { server } = await startMute(pingStatus)
      const { changes, pull } = logInto(server)
      await pull('open')
      for (const name of ['secret/a', 'secret/b']) {
        expect((await failureOf(pull(name))).kind).toBe('denied')
      }
      await pull('other')
      expect(changes).toEqual([])
    })
  })
})
