// Registries that refuse a login or a token in other ways than with a 401 that says what they want.

import { describe, expect, it } from 'vitest'
import {
  content,
  failureOf,
  makeClient,
  repositoryOf,
  sendJson,
  startServer,
  type SmallServer,
} from './small-server.ts'

const credentials = { kind: 'static', username: 'robot', password: 'first' } as const

function logInto(server: SmallServer) {
  const changes: boolean[] = []
  const onLoginChange = ({ isFailing }: { isFailing: boolean }): void =>
    void changes.push(isFailing)
  const rig = makeClient(server.url, { credentials }, { onLoginChange })
  const pull = (name: string) => rig.client.getManifest(repositoryOf(name), 'a')
  return { ...rig, changes, pull }
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
    // The password, and whether it is good for anything.
    expect(server.hits.length - hitsBefore).toBe(2)
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
