// Who may try which credentials when: the guard and the tokens together, over real sockets.

import type { ServerResponse } from 'node:http'
import { writeFileSync } from 'node:fs'
import { rm, writeFile } from 'node:fs/promises'
import { join } from 'node:path'
import { describe, expect, it } from 'vitest'
import type { CredentialsOptions } from '../../../../src/upstream/login/credentials.ts'
import { makeTempDirectory } from '../../../support/temp-directory.ts'
import { nextTurn, waitFor } from '../../../support/wait-for.ts'
import {
  alpine,
  content,
  failureOf,
  makeClient,
  repositoryOf,
  sendJson,
  startServer,
  type SmallServer,
  type TestClient,
} from '../small-server.ts'

const MINUTE_MS = 60_000

function basicOf(password: string): string {
  return `Basic ${Buffer.from(`robot:${password}`).toString('base64')}`
}

/** What the token endpoint says of a request: a status, or a token. */
type Verdict = (question: { authorization: string; scope: string | null; body: string }) => number

/** A registry with tokens, and what it was asked with. */
async function startBearer(verdict: Verdict) {
  const attempts: { method: string; authorization: string; scope: string | null; body: string }[] =
    []
  const server = await startServer((request, response) => {
    const url = new URL(request.url ?? '', 'http://x')
    const { authorization = '' } = request.headers
    if (url.pathname !== '/token') {
      if (authorization.startsWith('Bearer ')) return response.end(content)
      const realm = `http://${request.headers.host}/token`
      response.setHeader('www-authenticate', `Bearer realm="${realm}",service="registry.test"`)
      return response.writeHead(401).end()
    }
    let body = ''
    request.setEncoding('utf8').on('data', (part: string) => (body += part))
    return request.on('end', () => {
      const scope = url.searchParams.get('scope')
      attempts.push({ method: request.method ?? '', authorization, scope, body })
      const status = verdict({ authorization, scope, body })
      sendJson(response, status === 200 ? { token: 't', expires_in: 60 } : {}, status)
    })
  })
  return { server, attempts }
}

function logInto(server: SmallServer, credentials: CredentialsOptions) {
  const changes: boolean[] = []
  const onLoginChange = ({ isFailing }: { isFailing: boolean }): void =>
    void changes.push(isFailing)
  return { changes, ...makeClient(server.url, { credentials }, { onLoginChange }) }
}

const wrong = { kind: 'static', username: 'robot', password: 'wrong' } as const

async function pull({ client }: Pick<TestClient, 'client'>, name = 'library/alpine') {
  return client.getManifest(repositoryOf(name), 'a')
}

function warnings({ log }: Pick<TestClient, 'log'>): unknown[] {
  return log.filter(({ level }) => level === 40)
}

async function fileOf(password: string) {
  const passwordFile = join(await makeTempDirectory(), 'password')
  await writeFile(passwordFile, password)
  return {
    passwordFile,
    credentials: { kind: 'files', username: 'robot', passwordFile },
  } as const
}

async function configFor(host: string): Promise<CredentialsOptions> {
  const file = join(await makeTempDirectory(), 'config.json')
  await writeFile(file, JSON.stringify({ auths: { [host]: { identitytoken: 'idt&=' } } }))
  return { kind: 'docker-config', file }
}

function refuse(response: ServerResponse | undefined): void {
  response?.writeHead(401, { 'www-authenticate': 'Basic realm="x"' }).end()
}

describe('refused credentials', () => {
  it('rest for longer each time, up to an hour', async () => {
    const { attempts, server } = await startBearer(() => 401)
    const rig = logInto(server, wrong)
    const rests = [1, 2, 4, 8, 16, 32, 60, 60]
    for (const [i, minutes] of rests.entries()) {
      const failure = await failureOf(pull(rig))
      // They may change meanwhile: nobody is sent away for longer.
      expect(failure).toMatchObject({ kind: 'login-failed', retryAfterMs: MINUTE_MS })
      expect(failure.message).toContain(`not tried again for ${minutes * 60} s, unless they change`)
      expect(attempts).toHaveLength(i + 1)
      await rig.clock.advance(minutes * MINUTE_MS - 1)
      await failureOf(pull(rig))
      expect(attempts).toHaveLength(i + 1)
      await rig.clock.advance(1)
    }
    expect(warnings(rig)).toHaveLength(1)
    expect(rig.changes).toEqual([true])
  })

  it('are tried by one request, however many wait for it', async () => {
    const { attempts, server } = await startBearer(() => 401)
    const rig = logInto(server, wrong)
    const names = Array.from({ length: 20 }, (_, i) => `repository-${i}`)
    const pullAll = () => Promise.all(names.map((name) => failureOf(pull(rig, name))))
    for (const failure of await pullAll()) expect(failure.kind).toBe('login-failed')
    expect(attempts).toHaveLength(1)
    await rig.clock.advance(MINUTE_MS)
    await pullAll()
    expect(attempts).toHaveLength(2)
  })

  it('are tried by one request also where they are sent with each', async () => {
    const waiting: ServerResponse[] = []
    const server = await startServer((request, response) => {
      if (request.headers.authorization) return void waiting.push(response)
      return response.writeHead(401, { 'www-authenticate': 'Basic realm="x"' }).end()
    })
    const rig = logInto(server, wrong)
    const failures = Array.from({ length: 10 }, () => failureOf(pull(rig)))
    await waitFor('one to be sent', () => waiting.length > 0 && server.hits.length === 11)
    refuse(waiting[0])
    await waitFor('the login to be checked', () => server.hits.at(-1)?.path === '/v2/')
    refuse(waiting[1])
    for (const failure of await Promise.all(failures)) expect(failure.kind).toBe('login-failed')
    expect(waiting).toHaveLength(2)
  })

  it('do not hold up the others when the one who tries them leaves', async () => {
    const waiting: ServerResponse[] = []
    const server = await startServer((request, response) => {
      if (request.headers.authorization) return void waiting.push(response)
      return response.writeHead(401, { 'www-authenticate': 'Basic realm="x"' }).end()
    })
    const rig = logInto(server, { ...wrong, password: 'right' })
    const leaver = new AbortController()
    const left = rig.client.getManifest(alpine, 'a', { signal: leaver.signal })
    await waitFor('the first to try', () => waiting.length === 1)
    const others = [pull(rig), pull(rig)]
    // They know what is wanted: without the guard they would be here by the time somebody leaves.
    await nextTurn()
    expect(waiting).toHaveLength(1)
    leaver.abort(new Error('left'))
    await expect(left).rejects.toThrow('left')
    await waitFor('another to try', () => waiting.length === 2)
    waiting[1]?.end(content)
    await waitFor('the last to be let in', () => waiting.length === 3)
    waiting[2]?.end(content)
    await Promise.all(others)
  })

  it('are told of until they are taken again', async () => {
    let status = 401
    const { server } = await startBearer(() => status)
    const rig = logInto(server, wrong)
    expect(rig.client.problems).toEqual([])
    await failureOf(pull(rig))
    await rig.clock.advance(10_000)
    expect(rig.client.problems).toEqual([
      `credentials refused since 2026-01-01T00:00:00.000Z (${server.host} answered 401 Unauthorized); ` +
        'tried again in 50 s, or when they change',
    ])
    status = 200
    await rig.clock.advance(50_000)
    await pull(rig)
    expect(rig.client.problems).toEqual([])
    expect(rig.changes).toEqual([true, false])
    expect(rig.log.at(-1)?.['msg']).toBe(`${server.host} takes the credentials again`)
  })
})

describe('credentials that were taken', () => {
  const names = Array.from({ length: 100 }, (_, i) => `repository-${i}`)

  it('are refused a few times at most when they are changed, however many ask at once', async () => {
    let isRight = true
    const { attempts, server } = await startBearer(() => (isRight ? 200 : 401))
    const rig = logInto(server, wrong)
    await Promise.all(names.map((name) => pull(rig, name)))
    expect(attempts).toHaveLength(100)
    await rig.clock.advance(MINUTE_MS)
    isRight = false
    const failures = await Promise.all(names.map((name) => failureOf(pull(rig, name))))
    expect(failures.map(({ kind }) => kind)).toEqual(names.map(() => 'login-failed'))
    // Four at once, and one that asks whether the login is good for anything.
    expect(attempts).toHaveLength(105)
    await rig.clock.advance(MINUTE_MS)
    await Promise.all(names.map((name) => failureOf(pull(rig, name))))
    expect(attempts).toHaveLength(106)
  })

  it('are refused a few times more when they are changed while many ask', async () => {
    let answered = 0
    const { attempts, server } = await startBearer(() => (answered++ < 50 ? 200 : 401))
    const rig = logInto(server, wrong)
    await Promise.allSettled(names.map((name) => pull(rig, name)))
    expect(attempts.length - 50).toBeLessThanOrEqual(9)
    expect(rig.client.problems).toHaveLength(1)
  })
})

describe('credentials that change', () => {
  it('are taken at once when the old ones are refused, and nobody notices', async () => {
    let password = 'one'
    const { attempts, server } = await startBearer(({ authorization }) =>
      authorization === basicOf(password) ? 200 : 401,
    )
    const { credentials, passwordFile } = await fileOf('one')
    const rig = logInto(server, credentials)
    await pull(rig)
    password = 'two'
    await writeFile(passwordFile, password)
    await rig.clock.advance(1_000)
    await pull(rig, 'other')
    expect(attempts.map(({ authorization }) => authorization)).toEqual(
      // The third asks whether it is the repository that is refused.
      ['one', 'one', 'one', 'two'].map(basicOf),
    )
    expect(warnings(rig)).toEqual([])
    expect(rig.changes).toEqual([])
  })

  it('are taken at once also where they are sent with each request', async () => {
    let password = 'one'
    const server = await startServer((request, response) => {
      if (request.headers.authorization === basicOf(password)) return response.end(content)
      return response.writeHead(401, { 'www-authenticate': 'Basic realm="ecr"' }).end()
    })
    const { credentials, passwordFile } = await fileOf('one')
    const rig = logInto(server, credentials)
    await pull(rig)
    password = 'two'
    await writeFile(passwordFile, password)
    await Promise.all(Array.from({ length: 10 }, () => pull(rig)))
    expect(warnings(rig)).toEqual([])
  })

  it('and are wrong as well are no word about the repository', async () => {
    const passwordFile = join(await makeTempDirectory(), 'password')
    await writeFile(passwordFile, 'first')
    const server = await startServer((request, response) => {
      const { authorization } = request.headers
      if (authorization === basicOf('first')) writeFileSync(passwordFile, 'second')
      response.writeHead(401, { 'www-authenticate': 'Basic realm="x"' }).end()
    })
    const rig = logInto(server, { kind: 'files', username: 'robot', passwordFile })
    expect((await failureOf(pull(rig))).kind).toBe('login-failed')
    expect(rig.changes).toEqual([true])
    // Without one, and with each of them: the request, and whether it is good for anything.
    expect(server.hits).toHaveLength(5)
  })

  it('end the rest of those that were refused', async () => {
    const { attempts, server } = await startBearer(({ authorization }) =>
      authorization === basicOf('right') ? 200 : 401,
    )
    const { credentials, passwordFile } = await fileOf('wrong')
    const rig = logInto(server, credentials)
    await failureOf(pull(rig))
    await failureOf(pull(rig))
    await writeFile(passwordFile, 'right')
    await rig.clock.advance(1_000)
    await pull(rig)
    expect(attempts).toHaveLength(2)
  })

  it('are read again before the old ones are tried again', async () => {
    const { attempts, server } = await startBearer(({ authorization }) =>
      authorization === basicOf('right') ? 200 : 401,
    )
    const { credentials, passwordFile } = await fileOf('wrong')
    const rig = logInto(server, credentials)
    await failureOf(pull(rig))
    await rig.clock.advance(MINUTE_MS - 1)
    // Read a moment before they are due, and corrected in that moment.
    await failureOf(pull(rig))
    await writeFile(passwordFile, 'right')
    await rig.clock.advance(1)
    await Promise.all([pull(rig), pull(rig, 'other')])
    const refused = attempts.filter(({ authorization }) => authorization === basicOf('wrong'))
    expect(refused).toHaveLength(1)
  })

  it('may be missing for a moment', async () => {
    const { server } = await startBearer(({ authorization }) =>
      authorization === basicOf('right') ? 200 : 401,
    )
    const { credentials, passwordFile } = await fileOf('wrong')
    const rig = logInto(server, credentials)
    await failureOf(pull(rig))
    await rm(passwordFile)
    await failureOf(pull(rig))
    await writeFile(passwordFile, 'right')
    await rig.clock.advance(1_000)
    await pull(rig)
  })

  it('each time, and are wrong each time, are tried every ten seconds at most', async () => {
    const { attempts, server } = await startBearer(() => 401)
    const { credentials, passwordFile } = await fileOf('w0')
    const rig = logInto(server, credentials)
    for (let i = 1; i <= 60; i++) {
      await failureOf(pull(rig))
      await writeFile(passwordFile, `w${i}`)
      await rig.clock.advance(1_000)
    }
    expect(attempts.length).toBeLessThanOrEqual(8)
    expect(attempts.length).toBeGreaterThan(3)
  })
})

describe('credentials that cannot be read', () => {
  it('are no reason to ask anonymously, and clients are not told of our files', async () => {
    const { attempts, server } = await startBearer(() => 200)
    const rig = logInto(server, { kind: 'files', username: 'robot', passwordFile: '/no/such/file' })
    const failure = await failureOf(pull(rig))
    expect(failure).toMatchObject({ kind: 'login-failed', retryAfterMs: 10_000 })
    expect(failure.message).not.toContain('/no/such')
    expect(attempts).toEqual([])
    expect(JSON.stringify(warnings(rig))).toContain('/no/such/file cannot be read: ENOENT')
    expect(rig.client.problems).toEqual(['the credentials could not be read: the log says why'])
    expect(rig.changes).toEqual([true])
  })
})

describe('a 403 of the token endpoint', () => {
  it('may be about the repository: the login itself is asked about, once for all', async () => {
    const { attempts, server } = await startBearer(({ scope }) =>
      scope === null || scope.includes('alpine') ? 200 : 403,
    )
    const rig = logInto(server, wrong)
    for (const name of ['secret-a', 'secret-b', 'secret-c']) {
      expect(await failureOf(pull(rig, name))).toMatchObject({ kind: 'denied', status: 403 })
    }
    expect(attempts.map(({ scope }) => scope?.slice(11) ?? 'none')).toEqual([
      'secret-a:pull',
      'none',
      // It may have been changed since.
      'secret-b:pull',
      'none',
      'secret-c:pull',
      'none',
    ])
    await pull(rig)
    expect(warnings(rig)).toEqual([])
    attempts.splice(0)
    const names = ['secret-d', 'secret-e', 'secret-f']
    await Promise.all(names.map((name) => failureOf(pull(rig, name))))
    expect(attempts.filter(({ scope }) => scope === null)).toHaveLength(1)
  })

  it('is no word about the repository while the login cannot be asked about', async () => {
    const { server } = await startBearer(({ scope }) => (scope === null ? 429 : 403))
    const rig = logInto(server, wrong)
    expect((await failureOf(pull(rig))).kind).toBe('rate-limited')
  })

  it('is a refusal of the login where that is good for nothing', async () => {
    const { attempts, server } = await startBearer(() => 403)
    const rig = logInto(server, wrong)
    expect(await failureOf(pull(rig))).toMatchObject({ kind: 'login-failed' })
    expect(await failureOf(pull(rig, 'other'))).toMatchObject({ kind: 'login-failed' })
    expect(attempts).toHaveLength(2)
    expect(rig.changes).toEqual([true])
  })
})

describe('a 401 of the token endpoint', () => {
  it('may be about the repository once the login was taken, and does not cost others their login', async () => {
    const { attempts, server } = await startBearer(({ scope }) =>
      scope?.includes('secret') ? 401 : 200,
    )
    const rig = logInto(server, wrong)
    await pull(rig)
    for (const name of ['secret-a', 'secret-b']) {
      expect(await failureOf(pull(rig, name))).toMatchObject({ kind: 'denied', status: 401 })
    }
    await pull(rig, 'other')
    expect(attempts.map(({ scope }) => scope?.slice(11) ?? 'none')).toEqual([
      'library/alpine:pull',
      'secret-a:pull',
      'none',
      'secret-b:pull',
      'none',
      'other:pull',
    ])
    expect([warnings(rig), rig.changes]).toEqual([[], []])
  })

  it('is a refusal of a login that is no longer good for anything', async () => {
    let isRight = true
    const { attempts, server } = await startBearer(() => (isRight ? 200 : 401))
    const rig = logInto(server, wrong)
    await pull(rig)
    isRight = false
    for (const name of ['a', 'b']) {
      expect(await failureOf(pull(rig, name))).toMatchObject({ kind: 'login-failed' })
    }
    expect(attempts).toHaveLength(3)
  })
})

/** Nobody may have what is secret, whoever asks for it gets the same answer as without a password. */
function startPicky(isRight: (authorization: string | undefined) => boolean) {
  return startServer((request, response) => {
    const isForbidden = request.url?.includes('secret') ?? false
    if (isRight(request.headers.authorization) && !isForbidden) return response.end(content)
    return response.writeHead(401, { 'www-authenticate': 'Basic realm="x"' }).end()
  })
}

describe('a 401 of a registry that takes passwords', () => {
  it('may be about the repository, and does not cost others their login', async () => {
    const server = await startPicky((authorization) => authorization === basicOf('wrong'))
    const rig = logInto(server, wrong)
    expect(await failureOf(pull(rig, 'secret-a'))).toMatchObject({ kind: 'denied', status: 401 })
    expect(server.count('/v2/')).toBe(server.hits.length)
    const pings = server.hits.filter(({ path }) => path === '/v2/')
    // And once without, whether everybody is let in there.
    expect(pings.map(({ headers }) => headers.authorization !== undefined)).toEqual([true, false])
    expect(await failureOf(pull(rig, 'secret-b'))).toMatchObject({ kind: 'denied', status: 401 })
    await pull(rig)
    expect(rig.changes).toEqual([])
  })

  it('is about the password that was changed since it was found to be good', async () => {
    let isRight = true
    const server = await startPicky((sent) => isRight && sent === basicOf('wrong'))
    const rig = logInto(server, wrong)
    await pull(rig)
    expect((await failureOf(pull(rig, 'secret'))).kind).toBe('denied')
    isRight = false
    expect((await failureOf(pull(rig))).kind).toBe('login-failed')
  })

  it('is about the password when that is no good for anything', async () => {
    const server = await startPicky(() => false)
    const rig = logInto(server, wrong)
    for (const name of ['secret-a', 'library/alpine']) {
      expect((await failureOf(pull(rig, name))).kind).toBe('login-failed')
    }
    // Asked without, with the password, and whether that is good for anything.
    expect(server.hits).toHaveLength(3)
    expect(rig.changes).toEqual([true])
  })
})

describe('an identity token', () => {
  it('is exchanged by POST, and stands in no URL and no header', async () => {
    const { attempts, server } = await startBearer(() => 200)
    const rig = logInto(server, await configFor(server.host))
    await pull(rig)
    expect(attempts).toMatchObject([{ method: 'POST', authorization: '', scope: null }])
    expect(Object.fromEntries(new URLSearchParams(attempts[0]?.body))).toEqual({
      grant_type: 'refresh_token',
      refresh_token: 'idt&=',
      service: 'registry.test',
      scope: 'repository:library/alpine:pull',
      client_id: 'layover',
    })
    expect(JSON.stringify([rig.log, server.hits])).not.toContain('idt')
  })

  it('that is refused rests as a password does', async () => {
    const { attempts, server } = await startBearer(() => 401)
    const rig = logInto(server, await configFor(server.host))
    for (let i = 0; i < 3; i++) expect((await failureOf(pull(rig))).kind).toBe('login-failed')
    expect(attempts).toHaveLength(1)
  })

  it('is of no use to a registry that wants a password', async () => {
    const server = await startServer((_request, response) => {
      response.writeHead(401, { 'www-authenticate': 'Basic realm="x"' }).end()
    })
    const rig = logInto(server, await configFor(server.host))
    for (let i = 0; i < 2; i++) {
      const failure = await failureOf(rig.client.getManifest(alpine, 'a'))
      expect(failure.kind).toBe('login-failed')
      expect(failure.message).toContain('only an identity token')
    }
    // The password is what it asks for: nothing is sent once that is known.
    expect(server.hits).toHaveLength(1)
  })
})
