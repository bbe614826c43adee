// The matrix itself: that it is complete, that its short form is what it says, and that its checks would find
// what they are there for.

import { describe, expect, it } from 'vitest'
import { NAMED_FAULTS, type FaultName } from '../support/fake-upstream-faults.ts'
import type { RawResponse } from '../support/http-client.ts'
import { answerDeviations, recoveryDeviations } from './answer-checks.ts'
import { expectedOf } from './expectation.ts'
import { BLOB_BYTES, CLIENTS, RESOURCES, STATES } from './fault-row.ts'
import { matrix, ROWS, shortForm, type Cell } from './matrix.ts'
import { formatMatrix } from './report.ts'
import type { Scene } from './scene.ts'

const { cells, leftOut } = matrix()

function cellOf(fault: string, parts: Partial<Cell> = {}): Cell {
  const row = ROWS.find(({ name }) => name === fault)
  if (!row) throw new Error(`there is no row ${fault}`)
  return { row, resource: 'blob', state: 'cold', client: 'one', ...parts }
}

function pairs(all: readonly Cell[]): Set<string> {
  return new Set(
    all.flatMap(({ client, resource, state }) => [`${resource} ${state}`, `${resource} ${client}`]),
  )
}

describe('the matrix', () => {
  it('has every combination, or says why not', () => {
    const all = ROWS.length * RESOURCES.length * STATES.length * CLIENTS.length
    const left = [...leftOut.values()].reduce((sum, count) => sum + count, 0)
    expect(cells.length + left).toBe(all)
    expect(cells.length).toBeGreaterThan(3_000)
  })

  it('has a row for every fault that has a name, and one name for each row', () => {
    const names = ROWS.map(({ name }) => name)
    expect(new Set(names).size).toBe(names.length)
    const used = new Set(ROWS.flatMap(({ plans }) => plans.map(({ fault }) => fault)))
    const unused = Object.keys(NAMED_FAULTS).filter((name) => !used.has(name as FaultName))
    expect(unused).toEqual([])
  })

  it('uses every rule that leaves something out, and no row is left out entirely', () => {
    expect([...leftOut.values()].every((count) => count > 0)).toBe(true)
    expect(new Set(cells.map(({ row }) => row))).toEqual(new Set(ROWS))
  })

  it('has a short form with every fault, and every state and client of every resource', () => {
    const short = shortForm(cells)
    expect(new Set(short.map(({ row }) => row))).toEqual(new Set(ROWS))
    expect(pairs(short)).toEqual(pairs(cells))
    expect(short.length).toBeLessThan(2 * ROWS.length)
  })
})

describe('what is expected', () => {
  it('of what is fresh is the content, whatever the fault', () => {
    const warm = cells.filter(({ state }) => state === 'warm')
    expect(new Set(warm.map((cell) => expectedOf(cell).outcome))).toEqual(new Set(['content']))
  })

  it('of a cut download depends on whether the part came before the cut', () => {
    const cell = cellOf('cut-at-last-byte')
    expect(expectedOf(cell).outcome).toBe('short')
    expect(expectedOf(cell, { first: 0, last: BLOB_BYTES - 2 }).outcome).toBe('content')
    expect(expectedOf(cell, { first: 0, last: BLOB_BYTES - 1 }).outcome).toBe('short')
  })

  it('of an outage is an error, or the old answer where there is one', () => {
    const tag = { resource: 'tag' } as const
    expect(expectedOf(cellOf('down', tag))).toEqual({ outcome: 'unavailable', retryAfterS: 5 })
    const stale = { outcome: 'content', source: 'stale' }
    expect(expectedOf(cellOf('down', { ...tag, state: 'stale' }))).toEqual(stale)
    expect(expectedOf(cellOf('denied', { ...tag, state: 'stale' })).outcome).toBe('absent')
  })
})

const BODY = Buffer.from('the right bytes')

const scene = {
  name: 'a/b',
  upstreamHost: 'hub',
  right: () => ({ bytes: BODY }),
} as Partial<Scene> as Scene

const HEADERS = {
  'content-length': String(BODY.length),
  'docker-distribution-api-version': 'registry/2.0',
  'cache-status': 'layover; fwd=uri-miss; fwd-status=200; stored',
  'x-cache': 'MISS',
}

interface Changes {
  readonly status?: number
  readonly headers?: Readonly<Record<string, string | undefined>>
  readonly body?: Buffer
  readonly ending?: RawResponse['ending']
  readonly trailing?: Buffer
}

function responseOf({ headers = {}, ...rest }: Changes = {}): RawResponse {
  const all: Readonly<Record<string, string | undefined>> = { ...HEADERS, ...headers }
  const empty = Buffer.alloc(0)
  const header = (name: string): string | undefined => all[name.toLowerCase()]
  return {
    status: 200,
    headers: [],
    header,
    body: BODY,
    ending: 'complete',
    trailing: empty,
    ...rest,
  }
}

function found(changes: Changes, fault = 'chunked'): string[] {
  const seen = [{ response: responseOf(changes), part: undefined, method: 'GET' as const }]
  return answerDeviations(cellOf(fault), scene, { requests: 1, seen })
}

function errorBody(detail: unknown): Buffer {
  const error = { code: 'UNAVAILABLE', message: 'service unavailable', detail }
  return Buffer.from(JSON.stringify({ errors: [error] }))
}

const UNAVAILABLE: Changes = {
  status: 503,
  headers: { 'content-type': 'application/json', 'retry-after': '5' },
  body: errorBody({ upstream: 'hub', reason: 'hub did not answer' }),
}

describe('the checks', () => {
  it('find nothing in what is right', () => {
    expect(found({})).toEqual([])
    expect(found(UNAVAILABLE, 'down')).toEqual([])
    expect(found({ ending: 'fin', body: BODY.subarray(0, 4) }, 'cut-at-start')).toEqual([])
  })

  const wrongs: [string, Changes, string, string][] = [
    ['other bytes', { body: Buffer.from('the wrong bytes') }, 'chunked', 'other content'],
    ['a 500', { ...UNAVAILABLE, status: 500 }, 'down', '500'],
    ['a reset', { ending: 'rst', body: BODY.subarray(0, 4) }, 'cut-at-start', 'ends by rst'],
    ['a clean end instead of a short one', {}, 'cut-at-start', 'expected an early FIN'],
    ['a body that is not short', { ending: 'fin' }, 'cut-at-start', 'is not short'],
    ['chunks', { headers: { 'transfer-encoding': 'chunked' } }, 'chunked', 'is chunked'],
    ['no length', { headers: { 'content-length': undefined } }, 'chunked', 'no Content-Length'],
    [
      'a length that lies',
      { headers: { 'content-length': '7' } },
      'chunked',
      'Content-Length is 7',
    ],
    ['text after the body', { trailing: BODY }, 'chunked', 'after its body'],
    ['an old answer', { headers: { 'x-cache': 'STALE' } }, 'chunked', 'STALE'],
    ['a foreign link', { headers: { link: '<http://x.invalid/>' } }, 'chunked', 'links to'],
    ['no Retry-After', { ...UNAVAILABLE, headers: {} }, 'down', 'Retry-After'],
    ['an error without JSON', { ...UNAVAILABLE, body: BODY }, 'down', 'without a code'],
    ['no reason', { ...UNAVAILABLE, body: errorBody(undefined) }, 'down', 'no reason'],
    ['a 404 for an outage', { ...UNAVAILABLE, status: 404 }, 'down', 'expected 503'],
  ]
  it.each(wrongs)('find %s', (_, changes, fault, deviation) => {
    expect(found(changes, fault).join('; ')).toContain(deviation)
  })

  it('find that the next client is not served', () => {
    const right = { bytes: BODY }
    expect(recoveryDeviations(responseOf(), { right, scene })).toEqual([])
    expect(recoveryDeviations(responseOf(UNAVAILABLE), { right, scene })).not.toEqual([])
    const other = responseOf({ body: Buffer.from('the wrong bytes') })
    expect(recoveryDeviations(other, { right, scene })).not.toEqual([])
  })
})

describe('the table', () => {
  it('says what clients saw in each state, and what is not as it should be', () => {
    const cell = { state: 'cold', client: 'one', saw: ['200 MISS'], deviations: [] }
    const text = formatMatrix([
      { fault: 'hang', about: '', resource: 'tag', cells: [cell] },
      { fault: 'hang', about: '', resource: 'tag', cells: [{ ...cell, client: 'head' }] },
      { fault: 'down', about: '', resource: 'tag', cells: [{ ...cell, deviations: ['too bad'] }] },
    ])
    expect(text).toMatch(/tag +down +1 +cold: 200 MISS +WRONG: cold\/one/)
    expect(text).toMatch(/tag +hang +2 +cold: 200 MISS +ok/)
    expect(text).toContain('  too bad')
    expect(text).toContain('3 cells of')
    expect(text).toContain('1 deviate')
  })
})
