// A login that each request carries itself, as where there are no tokens: how often it is refused when it is wrong,
// and that those whose login is right do not wait for one another.

import type { ServerResponse } from 'node:http'
import { writeFile } from 'node:fs/promises'
import { join } from 'node:path'
import { describe, expect, it, onTestFinished } from 'vitest'
import { FILE_LIFETIME_MS } from '../../../../src/upstream/login/credential-files.ts'
import { startFakeUpstream } from '../../../support/fake-upstream.ts'
import { buildImage } from '../../../support/images.ts'
import { makeTempDirectory } from '../../../support/temp-directory.ts'
import { nextTurn, waitFor } from '../../../support/wait-for.ts'
import { content, failureOf, makeClient, repositoryOf, startServer } from '../small-server.ts'

const NAMES = Array.from({ length: 100 }, (_, i) => `repository-${i}`)
const PAUSE_MS = 1_000
const MANIFESTS = { kind: 'manifest-tag' } as const

function basicOf(password: string): string {
  return `Basic ${Buffer.from(`robot:${password}`).toString('base64')}`
}

/** @param password that we have; the upstream wants `right` */
async function makeRig(password: string, { connectionsMax }: { connectionsMax?: number } = {}) {
  const credentials = { username: 'robot', password: 'right' }
  const upstream = await startFakeUpstream({ auth: 'basic', credentials })
  onTestFinished(() => upstream.close())
  const image = buildImage({ seed: 'private' })
  for (const name of NAMES) upstream.addImage(name, '1', image)
  const passwordFile = join(await makeTempDirectory(), 'password')
  await writeFile(passwordFile, password)
  const rig = makeClient(upstream.url, {
    credentials: { kind: 'files', username: 'robot', passwordFile },
    connection: { connectionsMax },
  })
  const pull = (name: string): Promise<unknown> => rig.client.getManifest(repositoryOf(name), '1')
  return {
    ...rig,
    upstream,
    /** The upstream wants another one from now on. */
    setPassword: (next: string) => void (credentials.password = next),
    writePassword: (next: string) => writeFile(passwordFile, next),
    pull,
    pullAll: () => Promise.allSettled(NAMES.map(pull)),
    /** Requests with this password; with a status: those that were answered so. */
    sent: (sentPassword: string, status?: number) =>
      upstream.requests.filter(
        (request) =>
          request.headers.authorization === basicOf(sentPassword) &&
          (status === undefined || request.status === status),
      ).length,
  }
}

function kindsOf(outcomes: readonly PromiseSettledResult<unknown>[]): Record<string, number> {
  const counts: Record<string, number> = {}
  for (const outcome of outcomes) {
    const kind = outcome.status === 'fulfilled' ? 'pulled' : String(outcome.reason.kind)
    counts[kind] = (counts[kind] ?? 0) + 1
  }
  return counts
}

describe('a password that is wrong from the start', () => {
  it('is refused twice, however many ask: one tries it, and asks whether it is good for anything', async () => {
    const { pullAll, sent } = await makeRig('wrong')
    expect(kindsOf(await pullAll())).toEqual({ 'login-failed': 100 })
    expect(sent('wrong')).toBe(2)
  })
})

describe('a password that was right', () => {
  it('is refused six times when it was changed before many ask', async () => {
    const { clock, pull, pullAll, sent, setPassword } = await makeRig('right')
    await pull('repository-0')
    await pull('repository-1')
    await clock.advance(PAUSE_MS)
    setPassword('other')
    expect(kindsOf(await pullAll())).toEqual({ 'login-failed': 100 })
    // Four at once, and two that ask whether the login is good for anything.
    expect(sent('right', 401)).toBe(6)
  })

  it('does not go once it was refused, also where requests wait for a connection', async () => {
    const { pull, pullAll, sent, setPassword } = await makeRig('right', { connectionsMax: 8 })
    await pull('repository-0')
    await pull('repository-1')
    setPassword('other')
    expect(kindsOf(await pullAll())).toEqual({ 'login-failed': 100 })
    // As many as there are connections, and two that ask whether the login is good for anything.
    expect(sent('right', 401)).toBeLessThanOrEqual(10)
  })

  it('does not go again with a request that is tried again', async () => {
    const { clock, pull, sent, setPassword, upstream } = await makeRig('right')
    await pull('repository-0')
    await pull('repository-1')
    upstream.fault({ repository: 'repository-2' }, { status: 503 }, { times: 1 })
    const triedAgain = failureOf(pull('repository-2'))
    await waitFor('the first try', () => sent('right', 503) === 1 && (clock.nextTimerMs ?? 0) < 500)
    setPassword('other')
    await failureOf(pull('repository-3'))
    expect(sent('right', 401)).toBe(3)
    await clock.advance(200)
    expect((await triedAgain).kind).toBe('login-failed')
    expect(sent('right', 401)).toBe(3)
  })

  it('gives way at once to the one that has come into the file', async () => {
    const { clock, log, pull, pullAll, sent, setPassword, writePassword } = await makeRig('right')
    await pull('repository-0')
    await pull('repository-1')
    await clock.advance(PAUSE_MS)
    setPassword('new')
    await writePassword('new')
    expect(kindsOf(await pullAll())).toEqual({ pulled: 100 })
    expect(sent('right', 401)).toBe(6)
    expect(sent('new', 401)).toBe(0)
    expect(log.filter(({ level }) => level === 40)).toEqual([])
  })
})

describe('a password that is right', () => {
  it('goes with all who ask, as long as one was let in a moment ago', async () => {
    const { clock, pull, pullAll, sent, upstream } = await makeRig('right', { connectionsMax: 100 })
    await pull('repository-0')
    await clock.advance(PAUSE_MS - 1)
    const gate = upstream.gate(MANIFESTS)
    const all = pullAll()
    await waitFor('all to be asked for, none answered', () => sent('right') === 101)
    gate.release()
    expect(kindsOf(await all)).toEqual({ pulled: 100 })
    // No more requests than content, but for the first, which did not know of the password.
    expect(upstream.requests).toHaveLength(102)
  })

  it('goes with four after a pause, and with all when the first of them is let in', async () => {
    const { clock, pull, pullAll, sent, upstream } = await makeRig('right', { connectionsMax: 100 })
    await pull('repository-0')
    await clock.advance(PAUSE_MS)
    const gate = upstream.gate(MANIFESTS)
    const all = pullAll()
    await waitFor('four to be asked for', () => sent('right') === 1 + 4)
    for (let i = 0; i < 10; i++) await nextTurn()
    expect(sent('right')).toBe(1 + 4)
    gate.release()
    expect(kindsOf(await all)).toEqual({ pulled: 100 })
  })

  it('goes with twice as many each second where the others have no answer', async () => {
    const { clock, pull, sent, upstream } = await makeRig('right', { connectionsMax: 100 })
    await pull('repository-0')
    await clock.advance(PAUSE_MS)
    const hanging = NAMES.slice(0, 60)
    for (const repository of hanging) upstream.fault({ repository }, 'hang')
    const outcomes = Promise.allSettled(hanging.map(pull))
    const others = Promise.all(NAMES.slice(60).map(pull))
    await waitFor('four to go', () => sent('right') === 1 + 4)
    await clock.advance(PAUSE_MS - 1)
    expect(sent('right')).toBe(1 + 4)
    await clock.advance(1)
    for (const size of [12, 28, 60]) {
      await waitFor('twice as many to go', () => sent('right') === 1 + size)
      await clock.advance(PAUSE_MS)
    }
    // The next are answered, and all others go.
    await others
    await clock.advance(25_000)
    expect(kindsOf(await outcomes)).toEqual({ timeout: 60 })
  })

  it('is tried by the next one when the first has no answer for a second', async () => {
    const { clock, pull, sent, upstream } = await makeRig('right')
    upstream.fault({ repository: 'repository-0' }, 'hang')
    const first = failureOf(pull('repository-0'))
    await waitFor('the first to try', () => upstream.hanging === 1)
    const others = Promise.all(NAMES.slice(1).map(pull))
    await nextTurn()
    await clock.advance(PAUSE_MS - 1)
    expect(sent('right')).toBe(1)
    await clock.advance(1)
    await others
    await clock.advance(25_000)
    expect((await first).kind).toBe('timeout')
  })
})

/** Knows the password, and refuses what is secret with 401 as well. Says when the test does what is at `/v2/`, or late. */
async function startSecretive() {
  const pings: (() => void)[] = []
  const late: (() => void)[] = []
  const server = await startServer((request, response) => {
    const isKnown = request.headers.authorization === basicOf('right')
    if (isKnown && request.url === '/v2/') return void pings.push(() => response.end('{}'))
    if (isKnown && request.url?.includes('late')) return void late.push(() => response.end(content))
    if (isKnown && !request.url?.includes('secret')) return response.end(content)
    return response.writeHead(401, { 'www-authenticate': 'Basic realm="x"' }).end()
  })
  const credentials = { kind: 'static', username: 'robot', password: 'right' } as const
  const rig = makeClient(server.url, { credentials })
  const pull = (name: string) => rig.client.getManifest(repositoryOf(name), 'a')
  return { ...rig, server, late, pings, pull }
}

describe('a refusal that may be about the repository', () => {
  it('keeps the others back until that is known', async () => {
    const { late, pings, pull, server } = await startSecretive()
    await pull('open')
    const refused = failureOf(pull('secret'))
    await waitFor('the login to be checked', () => pings.length === 1)
    const others = NAMES.slice(0, 10).map((name) => pull(`late/${name}`))
    for (let i = 0; i < 10; i++) await nextTurn()
    expect(server.count('/v2/late/')).toBe(0)
    pings[0]?.()
    expect((await refused).kind).toBe('denied')
    // It is right: nobody has to be let in first.
    await waitFor('all others to go', () => late.length === 10)
    for (const answer of late) answer()
    await Promise.all(others)
  })

  it('keeps the others back for a second at most', async () => {
    const { clock, pings, pull } = await startSecretive()
    await pull('open')
    const refused = failureOf(pull('secret'))
    await waitFor('the login to be checked', () => pings.length === 1)
    const others = Promise.all(NAMES.map(pull))
    await nextTurn()
    await clock.advance(PAUSE_MS)
    await others
    pings[0]?.()
    expect((await refused).kind).toBe('denied')
  })
})

/** Wants a password, and says nothing of one before the test does. */
async function startSilent() {
  const waiting: { path: string; response: ServerResponse }[] = []
  const server = await startServer((request, response) => {
    if (request.headers.authorization) {
      return void waiting.push({ path: request.url ?? '', response })
    }
    return refuse(response)
  })
  const credentials = { kind: 'static', username: 'robot', password: 'some' } as const
  const rig = makeClient(server.url, { credentials })
  const pull = (name: string) => rig.client.getManifest(repositoryOf(name), 'a')
  return { ...rig, waiting, pull }
}

function refuse(response: ServerResponse | undefined): void {
  response?.writeHead(401, { 'www-authenticate': 'Basic realm="x"' }).end()
}

describe('a registry that takes seconds to refuse a password', () => {
  it('is not asked with it again once it has refused it, and each refusal is not another rest', async () => {
    const { clock, pull, waiting } = await startSilent()
    const failures = NAMES.map((name) => failureOf(pull(name)))
    await waitFor('one to try', () => waiting.length === 1)
    await clock.advance(PAUSE_MS)
    await waitFor('another to try', () => waiting.length === 2)
    refuse(waiting[0]?.response)
    await waitFor('the login to be checked', () => waiting[2]?.path === '/v2/')
    await clock.advance(5 * PAUSE_MS)
    for (let i = 0; i < 10; i++) await nextTurn()
    refuse(waiting[2]?.response)
    await Promise.all(failures.slice(2))
    await clock.advance(5 * PAUSE_MS)
    refuse(waiting[1]?.response)
    for (const failure of await Promise.all(failures)) expect(failure.kind).toBe('login-failed')
    expect(waiting).toHaveLength(3)
    await clock.advance(55_000 - 1)
    expect((await failureOf(pull('other'))).message).toContain('not tried again for 1 s')
  })

  it('is asked once whether it is good for anything, also when it was taken before', async () => {
    const { clock, pull, waiting } = await startSilent()
    const first = pull('first')
    await waitFor('the first to try', () => waiting.length === 1)
    waiting.shift()?.response.end(content)
    await first
    await clock.advance(PAUSE_MS)
    const failures = NAMES.map((name) => failureOf(pull(name)))
    await waitFor('four to go', () => waiting.length === 4)
    await clock.advance(PAUSE_MS)
    await waitFor('more to go', () => waiting.length === 12)
    refuse(waiting[0]?.response)
    await waitFor('the login to be checked', () => waiting.length === 14)
    expect(waiting.slice(12).map(({ path }) => path)).toContain('/v2/')
    for (const { response } of waiting.slice(12)) refuse(response)
    // Nobody waits for room: there are twelve under way.
    await Promise.all(failures.slice(12))
    for (const { response } of waiting.slice(1, 12)) {
      await clock.advance(2 * PAUSE_MS)
      refuse(response)
    }
    for (const failure of await Promise.all(failures)) expect(failure.kind).toBe('login-failed')
    expect(waiting).toHaveLength(14)
  })
})

describe('an answer to a login that comes after another was taken', () => {
  it.each(['accepted', 'refused'])('changes nothing, when it was %s', async (outcome) => {
    const waiting: ServerResponse[] = []
    let hold = true
    const server = await startServer((request, response) => {
      const { authorization } = request.headers
      if (authorization === undefined) return refuse(response)
      if (hold || request.url?.includes('held')) return void waiting.push(response)
      return response.end(content)
    })
    const passwordFile = join(await makeTempDirectory(), 'password')
    await writeFile(passwordFile, 'old')
    const { client, clock } = makeClient(server.url, {
      credentials: { kind: 'files', username: 'robot', passwordFile },
    })
    const pull = (name: string) => client.getManifest(repositoryOf(name), 'a')
    const late = pull('late')
    await waitFor('the old one to be tried', () => waiting.length === 1)
    await writeFile(passwordFile, 'new')
    // Read again.
    await clock.advance(FILE_LIFETIME_MS)
    hold = false
    await pull('one')
    const [first] = waiting.splice(0)
    if (outcome === 'accepted') first?.end(content)
    else refuse(first)
    await late
    // Nobody has to find out about the new one.
    const others = ['held/a', 'held/b'].map(pull)
    await waitFor('both to go', () => waiting.length === 2)
    for (const response of waiting) response.end(content)
    await Promise.all(others)
    expect(server.count('/v2/late')).toBe(outcome === 'accepted' ? 2 : 3)
    expect(server.hits.filter(({ path }) => path === '/v2/')).toEqual([])
  })
})

describe('a registry that refuses a password and does not say whether it is good for anything', () => {
  it('is asked with it by one at a time, later each time', async () => {
    let isUp = true
    const server = await startServer((request, response) => {
      if (!request.headers.authorization) return refuse(response)
      if (isUp) return response.end(content)
      if (request.url !== '/v2/') return refuse(response)
      return response.writeHead(503, { 'retry-after': '3600' }).end()
    })
    const credentials = { kind: 'static', username: 'robot', password: 'some' } as const
    const { client, clock } = makeClient(server.url, { credentials })
    const pull = (name: string) => client.getManifest(repositoryOf(name), 'a')
    await pull('first')
    await clock.advance(PAUSE_MS)
    isUp = false
    const outcomes = Promise.allSettled(NAMES.map(pull))
    // The first twice, four at once, and two that ask whether the login is good for anything.
    await waitFor(
      'the check',
      () => server.count('/v2/repository') === 4 && server.hits.length === 8,
    )
    for (const [i, afterMs] of [1_000, 2_000, 4_000, 8_000].entries()) {
      for (let turn = 0; turn < 20; turn++) await nextTurn()
      expect(server.hits).toHaveLength(8 + 2 * i)
      await clock.advance(afterMs)
      await waitFor('another try, and a check', () => server.hits.length === 10 + 2 * i)
    }
    isUp = true
    await clock.advance(8_000)
    // But for the four, and the four who tried it since.
    expect(kindsOf(await outcomes)).toEqual({ pulled: 92, unavailable: 8 })
  })
})
