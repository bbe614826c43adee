// Every way in which an operator can have credentials for an upstream: the one that is asked with them lets us in, and
// no other upstream sees them.

import { chmod, writeFile } from 'node:fs/promises'
import { createServer } from 'node:http'
import { connect, type Socket } from 'node:net'
import { join } from 'node:path'
import { describe, expect, it, onTestFinished } from 'vitest'
import { answering, makeHelperDirectory } from '../support/credential-helper.ts'
import { startFakeUpstream, type FakeUpstream } from '../support/fake-upstream.ts'
import { buildImage } from '../support/images.ts'
import { startLayover, type Layover } from '../support/layover.ts'
import { TLS_CERTIFICATE } from '../support/tls-certificate.ts'
import { makeTempDirectory } from '../support/temp-directory.ts'

const NAME = 'team/app'
const LOGIN = { username: 'robot', password: 's3cret' }
const BASIC = Buffer.from(`${LOGIN.username}:${LOGIN.password}`).toString('base64')

interface Source {
  readonly keys: Readonly<Record<string, unknown>>
  readonly environment?: Readonly<Record<string, string>>
}

async function writeSecret(name: string, text: string): Promise<string> {
  const file = join(await makeTempDirectory(), name)
  await writeFile(file, text)
  await chmod(file, 0o600)
  return file
}

const SOURCES: Readonly<Record<string, (host: string) => Promise<Source>>> = {
  'in the file': async () => ({ keys: LOGIN }),
  'in a file of their own': async () => ({
    keys: {
      username: LOGIN.username,
      passwordfile: await writeSecret('password', `${LOGIN.password}\n`),
    },
  }),
  'in two files of their own': async () => ({
    keys: {
      usernamefile: await writeSecret('username', LOGIN.username),
      passwordfile: await writeSecret('password', LOGIN.password),
    },
  }),
  "in Docker's configuration": async (host) => ({
    keys: {
      credentials: {
        dockerconfig: await writeSecret(
          'config.json',
          JSON.stringify({ auths: { [host]: { auth: BASIC } } }),
        ),
      },
    },
  }),
  'with a helper': async () => {
    const helpers = await makeHelperDirectory()
    await helpers.add('docker-credential-test', answering(LOGIN.username, LOGIN.password))
    return { keys: { credentials: { helper: 'test' } }, environment: helpers.environment }
  },
  'with a command': async () => {
    const helpers = await makeHelperDirectory()
    const command = await helpers.add('login', answering(LOGIN.username, LOGIN.password))
    return {
      keys: { credentials: { exec: { command, lifetime: '1h' } } },
      environment: helpers.environment,
    }
  },
}

async function startUpstream(options: object = {}): Promise<FakeUpstream> {
  const upstream = await startFakeUpstream({ auth: 'basic', credentials: LOGIN, ...options })
  upstream.addImage(NAME, '1', buildImage({ seed: 'private' }))
  return upstream
}

async function pull(layover: Layover, path: string): Promise<number | undefined> {
  return (await layover.get(`${path}/manifests/1`)).status
}

describe('credentials', () => {
  it.each(Object.entries(SOURCES))('of an upstream can be %s', async (_what, sourceFor) => {
    const corp = await startUpstream()
    onTestFinished(() => corp.close())
    const { keys, environment } = await sourceFor(new URL(corp.url).host)
    const { layover, upstream: main } = await startLayover({
      environment,
      configuration: {
        proxy: { upstreams: { 'corp.test': { remoteurl: corp.url, ...keys } } },
      },
    })
    expect(await pull(layover, `/v2/corp.test/${NAME}`)).toBe(200)
    await pull(layover, `/v2/${NAME}`)
    expect(main.requests.map(({ headers }) => headers.authorization).filter(Boolean)).toEqual([])
    expect(await layover.metric('layover_upstream_login_failing{upstream="corp.test"}')).toBe(0)
  })

  it.each(Object.entries(SOURCES))('of the main upstream can be %s', async (_what, sourceFor) => {
    const upstream = await startUpstream()
    const { keys, environment } = await sourceFor(new URL(upstream.url).host)
    const { layover } = await startLayover({
      upstream,
      environment,
      configuration: { proxy: keys },
    })
    expect(await pull(layover, `/v2/${NAME}`)).toBe(200)
  })

  it("of the main upstream can come from distribution's proxy.exec, which counts more", async () => {
    const upstream = await startUpstream()
    const helpers = await makeHelperDirectory()
    const command = await helpers.add('login', answering(LOGIN.username, LOGIN.password))
    const { layover } = await startLayover({
      upstream,
      environment: helpers.environment,
      configuration: {
        proxy: { username: 'other', password: 'wrong', exec: { command, lifetime: '1h' } },
      },
    })
    expect(await pull(layover, `/v2/${NAME}`)).toBe(200)
    expect(await helpers.runs('login')).toEqual([new URL(upstream.url).host])
  })

  it('are not sent to a token server elsewhere, and the message names the key to change', async () => {
    const corp = await startUpstream({
      auth: 'bearer',
      challenge: 'Bearer realm="https://auth.elsewhere.test/token",service="x"',
    })
    onTestFinished(() => corp.close())
    const { layover } = await startLayover({
      configuration: {
        proxy: { upstreams: { 'corp.test': { remoteurl: corp.url, ...LOGIN } } },
      },
    })
    const answer = await layover.get(`/v2/corp.test/${NAME}/manifests/1`)
    expect(answer.status).toBe(503)
    expect(answer.body.toString()).toContain(
      'add auth.elsewhere.test to proxy.upstreams.corp.test.allowedrealms',
    )
  })
})

/** A proxy server for which all names lead to one port. */
async function startTunnel(port: number): Promise<string> {
  const server = createServer().on('connect', (_request, client: Socket) => {
    const onward = connect(port, '127.0.0.1', () => {
      client.write('HTTP/1.1 200 OK\r\n\r\n')
      client.pipe(onward).pipe(client)
    })
    for (const [one, other] of [
      [client, onward],
      [onward, client],
    ] as const) {
      one.on('error', () => {}).once('close', () => other.destroy())
    }
  })
  await new Promise<void>((resolve) => server.listen(0, '127.0.0.1', resolve))
  onTestFinished(() => {
    server.close()
    server.closeAllConnections()
  })
  const address = server.address()
  return `http://127.0.0.1:${typeof address === 'object' ? address?.port : 0}`
}

describe('credentials for all registries below a domain', () => {
  it('rest once they are refused, however many other registries clients name', async () => {
    const upstream = await startUpstream({
      tls: TLS_CERTIFICATE,
      credentials: { ...LOGIN, password: 'another' },
    })
    onTestFinished(() => upstream.close())
    const auths = { 'a.corp.test': { auth: BASIC } }
    const keys = {
      credentials: { dockerconfig: await writeSecret('config.json', JSON.stringify({ auths })) },
      httpproxy: await startTunnel(Number(new URL(upstream.url).port)),
      skipverify: true,
      deny: ['r*.corp.test/**'],
    }
    const { layover } = await startLayover({
      configuration: {
        proxy: { remoteurl: 'http://127.0.0.1:1', upstreams: { '*.corp.test': keys } },
      },
    })
    const attempts = () =>
      upstream.requests.filter(({ headers }) => headers.authorization === `Basic ${BASIC}`).length
    expect(await pull(layover, `/v2/a.corp.test/${NAME}`)).toBe(503)
    const first = attempts()
    expect(first).toBeGreaterThan(0)
    for (let i = 0; i < 100; i++) {
      expect(await pull(layover, `/v2/r${i}.corp.test/${NAME}`)).toBe(404)
    }
    for (let i = 0; i < 3; i++) expect(await pull(layover, `/v2/a.corp.test/${NAME}`)).toBe(503)
    expect(attempts()).toBe(first)
    const refusals = layover.messages().filter((message) => message.includes('were refused'))
    expect(refusals).toHaveLength(1)
  })
})
