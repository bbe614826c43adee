import { readFile, rename, rm, writeFile } from 'node:fs/promises'
import { join } from 'node:path'
import { describe, expect, it, onTestFinished } from 'vitest'
import {
  createCredentials,
  type CredentialsOptions,
} from '../../../../src/upstream/login/credentials.ts'
import type { Credentials } from '../../../../src/upstream/login/login.ts'
import type { JsonObject } from '../../../../src/upstream/response-body.ts'
import {
  answering,
  makeHelperDirectory,
  type HelperDirectory,
} from '../../../support/credential-helper.ts'
import { FakeClock } from '../../../support/fake-clock.ts'
import { makeTempDirectory } from '../../../support/temp-directory.ts'
import { waitFor, within } from '../../../support/wait-for.ts'
import { loggerInto } from '../small-server.ts'

const ECR = '123456789012.dkr.ecr.eu-west-1.amazonaws.com'
const HOUR_MS = 60 * 60_000

interface Rig {
  readonly credentials: Credentials
  readonly clock: FakeClock
  readonly log: JsonObject[]
  readonly current: (host?: string) => ReturnType<Credentials['current']>
}

function rigOf(
  options: CredentialsOptions | undefined,
  { environment = {}, host = 'registry.test' }: { environment?: object; host?: string } = {},
): Rig {
  const clock = new FakeClock()
  const log: JsonObject[] = []
  const deps = { clock, logger: loggerInto(log), environment: { ...environment } }
  const credentials = createCredentials(options, deps, { name: host, host })
  onTestFinished(() => credentials.close())
  return { credentials, clock, log, current: (to = host) => credentials.current(to) }
}

async function filesOf(password: string) {
  const directory = await makeTempDirectory()
  const passwordFile = join(directory, 'password')
  await writeFile(passwordFile, password)
  return { directory, passwordFile, ...rigOf({ kind: 'files', username: 'robot', passwordFile }) }
}

async function helperOf(script: string, { host = 'registry.test' } = {}) {
  const helpers = await makeHelperDirectory()
  await helpers.add('docker-credential-test', script)
  const rig = rigOf({ kind: 'helper', helper: 'test' }, { host, ...environmentOf(helpers) })
  return { helpers, runs: () => helpers.runs('docker-credential-test'), ...rig }
}

function environmentOf({ environment }: HelperDirectory): { environment: object } {
  return { environment: { ...environment, REGISTRY_PROXY_PASSWORD: 'ours', AWS_REGION: 'eu' } }
}

async function execOf(lifetimeMs: number) {
  const helpers = await makeHelperDirectory()
  const command = await helpers.add('my helper', answering('robot', 's$count$MINE$NODE_OPTIONS'))
  const environment = { ...helpers.environment, NODE_OPTIONS: 'x', MINE: '-mine' }
  return {
    runs: () => helpers.runs('my helper'),
    ...rigOf({ kind: 'exec', command, lifetimeMs }, { environment }),
  }
}

describe('credentials in the configuration', () => {
  it('are what they are', async () => {
    const login = { username: 'oauth2accesstoken', password: 'ya29.x' }
    expect(await rigOf({ kind: 'static', ...login }).current()).toEqual(login)
    expect(await rigOf(undefined).current()).toBeUndefined()
  })
})

describe('credentials in files', () => {
  it.each([
    ['p', 'p'],
    ['p\n', 'p'],
    ['p\r\n', 'p'],
    [' p \n\n', ' p \n'],
    ['{"type": "service_account",\n"key": "a:b"}\n', '{"type": "service_account",\n"key": "a:b"}'],
  ])('are read without the last line break (%j)', async (text, password) => {
    const { current } = await filesOf(text)
    expect(await current()).toEqual({ username: 'robot', password })
  })

  it('may name the user too', async () => {
    const directory = await makeTempDirectory()
    const [usernameFile, passwordFile] = [join(directory, 'user'), join(directory, 'password')]
    await writeFile(usernameFile, 'org+robot\n')
    await writeFile(passwordFile, 'p\n')
    const { current } = rigOf({ kind: 'files', username: undefined, usernameFile, passwordFile })
    expect(await current()).toEqual({ username: 'org+robot', password: 'p' })
  })

  it('are read again after ten seconds, or at once when they were refused', async () => {
    const { clock, credentials, current, passwordFile } = await filesOf('old')
    await current()
    // As Kubernetes does it: another file takes the name.
    await writeFile(`${passwordFile}.new`, 'new')
    await rename(`${passwordFile}.new`, passwordFile)
    await clock.advance(9_999)
    expect(await current()).toMatchObject({ password: 'old' })
    await clock.advance(1)
    expect(await current()).toMatchObject({ password: 'new' })
    await writeFile(passwordFile, 'newer')
    credentials.forget()
    expect(await current()).toMatchObject({ password: 'newer' })
  })

  it('that go missing stay in use until they are refused, which the log says once', async () => {
    const { clock, credentials, current, log, passwordFile } = await filesOf('p')
    await current()
    await rm(passwordFile)
    for (let i = 0; i < 3; i++) {
      await clock.advance(10_000)
      expect(await current()).toMatchObject({ password: 'p' })
    }
    const told = `${passwordFile} cannot be read: ENOENT; what was read before stays in use`
    expect(log.map(({ level, msg }) => [level, msg])).toEqual([[40, `registry.test: ${told}`]])
    credentials.forget()
    await expect(current()).rejects.toThrow(`${passwordFile} cannot be read: ENOENT`)
  })

  it('that are back are taken without a restart', async () => {
    const { clock, current, log, passwordFile } = await filesOf('p')
    await rm(passwordFile)
    await expect(current()).rejects.toThrow('ENOENT')
    await writeFile(passwordFile, 'p')
    await clock.advance(9_999)
    await expect(current()).rejects.toThrow('ENOENT')
    await clock.advance(1)
    expect(await current()).toMatchObject({ password: 'p' })
    expect(log.map(({ level }) => level)).toEqual([40, 30])
  })

  it.each([
    ['', 'is empty: it should hold the password'],
    ['\n', 'is empty'],
    ['x'.repeat(300_000), 'is larger than'],
  ])('that hold nothing useful are a mistake (%#)', async (text, told) => {
    const { current } = await filesOf(text)
    await expect(current()).rejects.toThrow(told)
  })

  it('that are directories, or have no user beside them, are a mistake', async () => {
    const { directory, passwordFile } = await filesOf('p')
    const noFile = rigOf({ kind: 'files', username: 'robot', passwordFile: directory })
    await expect(noFile.current()).rejects.toThrow('EISDIR')
    const noUser = rigOf({ kind: 'files', username: undefined, passwordFile })
    await expect(noUser.current()).rejects.toThrow('no username')
  })
})

describe('a credential helper', () => {
  it('is asked about the registry, once for all who want to know', async () => {
    const { current, runs } = await helperOf(answering('robot', 's$count'))
    const all = await Promise.all([current(), current('auth.registry.test'), current()])
    expect(new Set(all)).toEqual(new Set([{ username: 'robot', password: 's1' }]))
    expect(await runs()).toEqual(['registry.test'])
  })

  it('is asked about Docker Hub under the name that Docker stores it with', async () => {
    const { current, runs } = await helperOf(answering('robot', 's'), {
      host: 'registry-1.docker.io',
    })
    await current()
    expect(await runs()).toEqual(['https://index.docker.io/v1/'])
  })

  it('is asked again after five minutes, or at once when its answer was refused', async () => {
    const { clock, credentials, current } = await helperOf(answering('robot', 's$count'))
    await current()
    await clock.advance(5 * 60_000 - 1)
    expect(await current()).toMatchObject({ password: 's1' })
    await clock.advance(1)
    expect(await current()).toMatchObject({ password: 's2' })
    credentials.forget()
    expect(await current()).toMatchObject({ password: 's3' })
  })

  it('of ECR never leaves a token in use that has ended', async () => {
    // As docker-credential-ecr-login does it: a token of 12 h, given out again for its first six.
    const { clock, credentials, current, helpers } = await helperOf(
      answering('AWS', '$(cat "$0.token")'),
      { host: ECR },
    )
    const token = join(helpers.path, 'docker-credential-test.token')
    let issuedAtMs = Number.NEGATIVE_INFINITY
    for (let i = 0; i < 24 * 6; i++) {
      if (clock.monotonic() - issuedAtMs >= 6 * HOUR_MS) {
        issuedAtMs = clock.monotonic()
        await writeFile(token, String(issuedAtMs + 12 * HOUR_MS))
      }
      const login = await credentials.current(ECR)
      const endsAtMs = Number(login && 'password' in login ? login.password : 0)
      expect(endsAtMs - clock.monotonic()).toBeGreaterThan(5 * HOUR_MS)
      await clock.advance(10 * 60_000)
    }
    expect(await current()).toMatchObject({ username: 'AWS' })
  })

  it('may give an identity token', async () => {
    const { current } = await helperOf(answering('<token>', 'idt'))
    expect(await current()).toEqual({ identityToken: 'idt' })
  })

  it('that knows nothing means that the upstream is asked anonymously, which the log says', async () => {
    const { current, log } = await helperOf(
      'echo "credentials not found in native keychain"; exit 1',
    )
    expect(await current()).toBeUndefined()
    expect(log.map(({ msg }) => msg)).toEqual([
      'registry.test: there are no credentials for it; it is asked anonymously',
    ])
  })

  it.each([
    ['fails', 'echo "no AWS region" >&2; exit 3', 'exit code 3: no AWS region'],
    ['fails in a line of output', 'echo "not logged in"; exit 1', 'exit code 1: not logged in'],
    ['fails with its answer', `${answering('robot', 's3cret')}; exit 1`, 'exit code 1;'],
    ['dies', 'kill -9 $$', 'it was killed'],
    ['answers with text', 'echo s3cret', 'did not answer with Username and Secret'],
    ['answers with half', `echo '{"Secret":"s3cret"}'`, 'did not answer with Username and Secret'],
    ['never stops talking', 'while :; do echo s3cret; done', 'wrote more than 65536 bytes'],
  ])('that %s is reported without what it gave away', async (_what, script, told) => {
    const { current, log, runs } = await helperOf(script)
    await expect(current()).rejects.toThrow(told.replace(/;$/, ''))
    await expect(current()).rejects.toThrow('docker-credential-test get')
    expect(await runs()).toHaveLength(1)
    expect(log).toHaveLength(1)
    expect(String(log[0]?.['msg'])).toContain(told)
    expect(JSON.stringify(log)).not.toContain('s3cret')
  })

  it('that fails is asked again after ten seconds, and its last answer serves till then', async () => {
    const script = `[ $count = 2 ] && exit 1\n${answering('robot', 's$count')}`
    const { clock, current } = await helperOf(script)
    await current()
    await clock.advance(5 * 60_000)
    expect(await current()).toMatchObject({ password: 's1' })
    await clock.advance(9_999)
    expect(await current()).toMatchObject({ password: 's1' })
    await clock.advance(1)
    expect(await current()).toMatchObject({ password: 's3' })
  })

  it('that hangs is given up after ten seconds, and killed', async () => {
    const { clock, current, helpers } = await helperOf('echo $$ > "$0.pid"; exec sleep 1000')
    const asked = expect(current()).rejects.toThrow('no answer within 10 s')
    const pid = await pidOf(join(helpers.path, 'docker-credential-test'))
    await clock.advance(10_000)
    await asked
    await waitFor('the helper to be gone', () => !isRunning(pid))
  })

  it('is killed when the cache stops', async () => {
    const { credentials, current, helpers, log } = await helperOf(
      'echo $$ > "$0.pid"; exec sleep 1000',
    )
    const asked = expect(current()).rejects.toThrow('the cache is stopping')
    const pid = await pidOf(join(helpers.path, 'docker-credential-test'))
    credentials.close()
    await within('the question to end', asked)
    await waitFor('the helper to be gone', () => !isRunning(pid))
    expect(log).toEqual([])
  })

  it('sees what it needs of the environment, and nothing of ours', async () => {
    const { current } = await helperOf(answering('robot', '$AWS_REGION$REGISTRY_PROXY_PASSWORD'))
    expect(await current()).toEqual({ username: 'robot', password: 'eu' })
  })

  it('that does not exist is reported', async () => {
    const { environment } = await makeHelperDirectory()
    const { current } = rigOf({ kind: 'helper', helper: 'missing' }, { environment })
    await expect(current()).rejects.toThrow(
      'docker-credential-missing get failed: there is no such program (is it in PATH?)',
    )
  })

  it.each(['', '../../bin/sh', '/bin/sh', 'a b', 'A', '-x', '.hidden', 'a\0b', 'a;b', 'a\nb'])(
    'cannot be called %j',
    (helper) => {
      expect(() => rigOf({ kind: 'helper', helper })).toThrow('cannot be a credential helper')
    },
  )
})

describe('a command of proxy.exec', () => {
  it('is asked about the host that the credentials are for, with the environment of the process', async () => {
    const { current, runs } = await execOf(Infinity)
    expect(await current('auth.docker.io')).toEqual({ username: 'robot', password: 's1-mine' })
    expect(await runs()).toEqual(['auth.docker.io'])
  })

  it('without a lifetime is asked once, and when its answer was refused', async () => {
    const { clock, credentials, current, runs } = await execOf(Infinity)
    await current()
    await clock.advance(10 * 365 * 24 * HOUR_MS)
    await current()
    expect(await runs()).toHaveLength(1)
    credentials.forget()
    await current()
    expect(await runs()).toHaveLength(2)
  })

  it('with a lifetime is asked when that is over, and with none of it each time', async () => {
    const hourly = await execOf(HOUR_MS)
    await hourly.current()
    await hourly.clock.advance(HOUR_MS - 1)
    await hourly.current()
    expect(await hourly.runs()).toHaveLength(1)
    await hourly.clock.advance(1)
    await hourly.current()
    expect(await hourly.runs()).toHaveLength(2)
    const always = await execOf(0)
    await always.current()
    await always.current()
    expect(await always.runs()).toHaveLength(2)
  })
})

describe('a docker config', () => {
  const auths = { 'registry.test': { username: 'robot', password: 'file' } }

  it('is looked for where Docker does', async () => {
    const directory = await makeTempDirectory()
    await writeFile(join(directory, 'config.json'), JSON.stringify({ auths }))
    const options = { kind: 'docker-config', file: undefined } as const
    const found = rigOf(options, { environment: { DOCKER_CONFIG: directory, HOME: '/nowhere' } })
    expect(await found.current()).toMatchObject({ password: 'file' })
    const missing = rigOf(options, { environment: { HOME: directory } })
    await expect(missing.current()).rejects.toThrow(join(directory, '.docker', 'config.json'))
  })

  it('is read again when it changes, also from an entry to a helper and back', async () => {
    const helpers = await makeHelperDirectory()
    await helpers.add('docker-credential-one', answering('robot', 'one$count'))
    const file = join(helpers.path, 'config.json')
    await writeFile(file, JSON.stringify({ auths }))
    const { clock, credentials, current } = rigOf({ kind: 'docker-config', file }, helpers)
    expect(await current()).toMatchObject({ password: 'file' })
    await writeFile(file, JSON.stringify({ auths, credHelpers: { 'registry.test': 'one' } }))
    await clock.advance(10_000)
    expect(await current()).toMatchObject({ password: 'one1' })
    await clock.advance(10_000)
    expect(await current()).toMatchObject({ password: 'one1' })
    credentials.forget()
    expect(await current()).toMatchObject({ password: 'one2' })
    await writeFile(file, JSON.stringify({ auths }))
    credentials.forget()
    expect(await current()).toMatchObject({ password: 'file' })
  })

  it('cannot name a program of its own', async () => {
    const file = join(await makeTempDirectory(), 'config.json')
    await writeFile(file, JSON.stringify({ credsStore: '../../tmp/evil' }))
    const { current } = rigOf({ kind: 'docker-config', file })
    await expect(current()).rejects.toThrow('cannot be a credential helper')
  })
})

async function pidOf(program: string): Promise<number> {
  return waitFor('the helper to run', async () => {
    const text = await readFile(`${program}.pid`, 'utf8').catch(() => '')
    return text.endsWith('\n') ? Number(text) : undefined
  })
}

function isRunning(pid: number): boolean {
  try {
    process.kill(pid, 0)
    return true
  } catch {
    return false
  }
}
