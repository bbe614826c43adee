import type { IncomingHttpHeaders } from 'node:http'
import { describe, expect, it } from 'vitest'
import { PullAllowance, rateLimitOf, type RateLimit } from '../../../src/upstream/pull-allowance.ts'
import type { JsonObject } from '../../../src/upstream/response-body.ts'
import { FakeClock } from '../../support/fake-clock.ts'
import { alpine, content, digest, loggerInto, makeClient, startServer } from './small-server.ts'

const SOURCE = '203.0.113.7'

function headersOf(remaining: number, { limit = 100, source = '' } = {}): IncomingHttpHeaders {
  return {
    'ratelimit-limit': `${limit};w=21600`,
    'ratelimit-remaining': `${remaining};w=21600`,
    ...(source && { 'docker-ratelimit-source': source }),
  }
}

function rigOf({ isDockerHub = false, isAnonymous = true } = {}) {
  const clock = new FakeClock()
  const log: JsonObject[] = []
  const noted: RateLimit[] = []
  const allowance = new PullAllowance(
    { clock, logger: loggerInto(log), onRateLimit: (rateLimit) => void noted.push(rateLimit) },
    { name: 'hub', isDockerHub, isAnonymous },
  )
  return { allowance, clock, log, noted }
}

describe('what an answer says of the limit', () => {
  it.each([
    ['100;w=21600', '76;w=21600', 100, 76, 21_600_000],
    [' 100 ; w=21600 ', '0;w=21600', 100, 0, 21_600_000],
    ['100;w=21600', '76', 100, 76, 21_600_000],
    ['60', '59', 60, 59, 60_000],
    [undefined, '5;w=60', undefined, 5, 60_000],
    [';w=21600', '5;w=21600', undefined, 5, 21_600_000],
    ['many', '5;w=21600', undefined, 5, 21_600_000],
  ])('is understood (%s, %s)', (limit, remaining, count, left, windowMs) => {
    const headers = { 'ratelimit-limit': limit, 'ratelimit-remaining': remaining }
    expect(rateLimitOf(headers)).toEqual({
      limit: count,
      remaining: left,
      windowMs,
      source: undefined,
    })
  })

  it.each([
    undefined,
    '',
    ';w=21600',
    'many',
    '-1;w=21600',
    '1e3',
    '76;w=x',
    '1, 2',
    '9'.repeat(30),
    '5;w=99999999999',
  ])('may be nothing (%s)', (remaining) => {
    expect(rateLimitOf({ 'ratelimit-remaining': remaining })).toBeUndefined()
  })
})

describe('the log', () => {
  it('tells once that few pulls are left, once that they are nearly spent, and that there are more', () => {
    const { allowance, log, noted } = rigOf()
    for (const remaining of [100, 21, 20, 19, 25, 18, 6, 5, 4, 6, 3, 0, 11, 39, 41, 100]) {
      allowance.note(headersOf(remaining, { source: SOURCE }))
    }
    expect(log.map(({ level, msg }) => [level, msg])).toEqual([
      [40, 'hub lets us have 20 of 100 pulls in 6 h; credentials give more'],
      [
        40,
        'hub lets us have 5 of 100 pulls in 6 h; they are kept for what is not cached; credentials give more',
      ],
      [30, 'hub lets us have 11 of 100 pulls in 6 h'],
      [30, 'hub lets us have 41 of 100 pulls in 6 h'],
    ])
    expect(log[0]).toMatchObject({ remaining: 20, limit: 100, source: SOURCE })
    expect(noted).toHaveLength(16)
  })

  it('does not advise credentials to those who have some', () => {
    const { allowance, log } = rigOf({ isAnonymous: false })
    allowance.note(headersOf(10))
    expect(log[0]?.['msg']).toBe('hub lets us have 10 of 100 pulls in 6 h')
    expect(allowance.problem).toBe('hub lets us have 10 of 100 pulls in 6 h')
  })
})

describe('pulls that are nearly spent', () => {
  it.each([
    [100, 6, false],
    [100, 5, true],
    [200, 11, false],
    [200, 10, true],
    [10, 2, false],
    [10, 1, true],
  ])('of %i are %i: %s', (limit, remaining, isSpent) => {
    const { allowance } = rigOf()
    allowance.note(headersOf(remaining, { limit }))
    expect(allowance.reluctance('GET') !== undefined).toBe(isSpent)
  })

  it.each([
    ['Docker Hub', { isDockerHub: true }, ''],
    ['a host that passes Docker Hub on', {}, SOURCE],
  ])('do not keep HEAD from %s, where it is free', (_who, options, source) => {
    const { allowance } = rigOf(options)
    allowance.note(headersOf(0, { source }))
    expect(allowance.reluctance('HEAD')).toBeUndefined()
    expect(allowance.reluctance('GET')).toMatchObject({ kind: 'rate-limited' })
  })

  it('elsewhere are asked about by one caller a while later, and no more until it has an answer', async () => {
    const { allowance, clock } = rigOf()
    allowance.note(headersOf(3))
    expect(allowance.reluctance('HEAD')?.message).toBe(
      'hub lets us have 3 of 100 pulls in 6 h; they are kept for what is not cached',
    )
    await clock.advance(18 * 60_000 - 1)
    expect(allowance.reluctance('HEAD')).toBeDefined()
    await clock.advance(1)
    expect(allowance.reluctance('HEAD')).toBeUndefined()
    expect(allowance.reluctance('HEAD')).toBeDefined()
    allowance.note(headersOf(90))
    expect(allowance.reluctance('HEAD')).toBeUndefined()
  })

  it('are not assumed where nothing is said', () => {
    const { allowance } = rigOf()
    allowance.note({})
    expect(allowance.reluctance('GET')).toBeUndefined()
    expect(allowance.problem).toBeUndefined()
  })
})

describe('the client of an upstream', () => {
  it('notes what is left from all answers and from refusals, of the upstream alone', async () => {
    const cdn = await startServer((_request, response) => {
      response.setHeader('ratelimit-remaining', '1;w=21600').end(content)
    })
    let left = 50
    const server = await startServer((request, response) => {
      if (request.url?.endsWith('/moved')) {
        return response.writeHead(307, { location: cdn.url }).end()
      }
      response.setHeader('ratelimit-limit', '100;w=21600')
      response.setHeader('ratelimit-remaining', `${left--};w=21600`)
      const isList = /\/(?:tags|referrers)\//.test(request.url ?? '')
      const body = isList ? '{"tags":[],"manifests":[]}' : content
      return response.writeHead(request.url?.endsWith('/over') ? 429 : 200).end(body)
    })
    const remaining: number[] = []
    const onRateLimit = (rateLimit: RateLimit): void => void remaining.push(rateLimit.remaining)
    const { client } = makeClient(server.url, {}, { onRateLimit })
    await client.headManifest(alpine, 'a')
    await client.getManifest(alpine, 'a')
    await expect(client.getManifest(alpine, 'over')).rejects.toMatchObject({ kind: 'rate-limited' })
    await client.getManifest(alpine, 'moved')
    await client.headBlob(alpine, digest)
    ;(await client.getBlob(alpine, digest)).body.resume()
    await client.listTags(alpine)
    await client.getReferrers(alpine, digest)
    expect(remaining).toEqual([50, 49, 48, 47, 46, 45, 44])
  })
})
