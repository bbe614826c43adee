// The keys that say how much of the disk is used, and what is kept on it.

import { describe, expect, it } from 'vitest'

import { formatConfiguration } from '../../../src/config/format.ts'
import { file, load } from './fixture.ts'

const storage = (...lines: readonly string[]) =>
  load(file('storage:', ...lines.map((line) => `  ${line}`)))

const GIB = 1024 ** 3
const A_SIZE = 'expected a size such as 200GiB, or a part of the disk such as 80%'
const A_REPOSITORY =
  'expected a repository such as library/node or ci/*, or with its tags: library/node:20-*'

describe('storage.maxsize and storage.minfree', () => {
  it.each([
    ['200GiB', { kind: 'bytes', bytes: 200 * GIB }],
    ['1.5TB', { kind: 'bytes', bytes: 1.5e12 }],
    ['"500 MB"', { kind: 'bytes', bytes: 500e6 }],
    ['80%', { kind: 'part', part: 0.8 }],
    ['"2.5 %"', { kind: 'part', part: 0.025 }],
  ])('take %s', (written, amount) => {
    const { configuration, warnings } = storage(`maxsize: ${written}`, `minfree: ${written}`)
    expect(configuration?.storage).toMatchObject({ maxSize: amount, minFree: amount })
    expect(warnings).toEqual([])
  })

  it('may come from the environment', () => {
    const { configuration } = load(undefined, {
      REGISTRY_STORAGE_MAXSIZE: '10GiB',
      REGISTRY_STORAGE_MINFREE: '5%',
    })
    expect(configuration?.storage).toMatchObject({
      maxSize: { kind: 'bytes', bytes: 10 * GIB },
      minFree: { kind: 'part', part: 0.05 },
    })
  })

  it.each([
    ['maxsize: lots', `storage.maxsize: ${A_SIZE}, got "lots"`],
    ['maxsize: -1GiB', `storage.maxsize: ${A_SIZE}, got "-1GiB"`],
    ['maxsize: 120%', `storage.maxsize: ${A_SIZE}, got "120%"`],
    ['minfree: 5 percent', `storage.minfree: ${A_SIZE}, got "5 percent"`],
    ['minfree: 5PB', `storage.minfree: ${A_SIZE}, got "5PB"`],
    ['maxsize: 0', 'storage.maxsize: expected more than nothing; without it there is no limit'],
    ['maxsize: 0%', 'storage.maxsize: expected more than nothing; without it there is no limit'],
    ['minfree: 100%', 'storage.minfree: expected less than all of the disk'],
  ])('refuse %s', (line, problem) => {
    expect(storage(line).problems).toEqual([problem])
  })

  it('warn of a number that counts bytes', () => {
    expect(storage('maxsize: 200').warnings).toEqual([
      'storage.maxsize: 200 means 200 bytes; write 200GiB',
    ])
    expect(storage('minfree: 0').warnings).toEqual([])
    expect(storage('maxsize: 510000000').warnings).toEqual([])
  })
})

describe('storage.retention', () => {
  it('pins, or says how long', () => {
    const { configuration, warnings } = storage(
      'retention:',
      '  - match: library/node:*',
      '    pin: true',
      '  - {match: ci/*, ttl: 24h}',
      '  - {match: "**", ttl: 0}',
    )
    expect(warnings).toEqual([])
    expect(configuration?.storage.retention).toEqual([
      { match: 'library/node:*', isPinned: true, ttlMs: undefined },
      { match: 'ci/*', isPinned: false, ttlMs: 24 * 3_600_000 },
      { match: '**', isPinned: false, ttlMs: 0 },
    ])
  })

  it.each([
    ['{pin: true}', '.match: expected a repository such as library/node, got nothing'],
    ['{match: Library/Node, pin: true}', `.match: ${A_REPOSITORY}, got "Library/Node"`],
    ['{match: "a:b:c", pin: true}', `.match: ${A_REPOSITORY}, got "a:b:c"`],
    ['{match: "a b", pin: true}', `.match: ${A_REPOSITORY}, got "a b"`],
    ['{match: ci/*}', ': expected either pin: true or a ttl'],
    ['{match: ci/*, pin: true, ttl: 1h}', ': expected either pin: true or a ttl'],
    ['{match: "ci/*:pr-*", ttl: 1h}', '.match: a ttl is for repositories; leave the tag out'],
    ['{match: ci/*, ttl: soon}', '.ttl: expected a duration such as 24h, got "soon"'],
    ['{match: ci/*, pin: maybe}', '.pin: expected true or false, got "maybe"'],
  ])('refuses %s', (rule, problem) => {
    const { problems } = storage('retention:', `  - ${rule}`)
    expect(problems[0]).toBe(`storage.retention.0${problem}`)
  })

  it('refuses a ttl that would empty the cache', () => {
    expect(storage('retention: [{match: ci/*, ttl: 3600}]').problems).toEqual([
      'storage.retention.0.ttl: expected a second or more; a bare number counts nanoseconds, so write 168h',
    ])
  })

  it('tells every mistake at once', () => {
    const { problems } = storage(
      'maxsize: much',
      'minfree: 100%',
      'retention: [{match: A}, {match: b, ttl: x}, {}]',
    )
    expect(problems.map((problem) => problem.slice(0, problem.indexOf(': ')))).toEqual(
      expect.arrayContaining([
        'storage.maxsize',
        'storage.minfree',
        'storage.retention.0.match',
        'storage.retention.1.ttl',
        'storage.retention.2.match',
      ]),
    )
  })

  it('warns of keys that nobody knows', () => {
    const { warnings } = storage('retention: [{match: a, pin: true, tll: 1h}]')
    expect(warnings.join()).toContain('storage.retention.0.tll')
  })
})

const scrubOf = (line: string) => storage(line).configuration?.storage.scrub

describe('storage.scrub', () => {
  it('has a rate', () => {
    const intervalMs = 168 * 3_600_000
    expect(scrubOf('scrub: {interval: 168h}')).toEqual({ intervalMs, bytesPerSecond: 20e6 })
    expect(scrubOf('scrub: {interval: 168h, rate: 5MB}')).toEqual({
      intervalMs,
      bytesPerSecond: 5e6,
    })
    expect(scrubOf('scrub: {interval: 0}')).toBeUndefined()
  })

  it.each([
    ['{interval: often}', 'storage.scrub.interval: expected a duration such as 168h, got "often"'],
    ['{interval: 1h, rate: 5%}', 'storage.scrub.rate: expected a size such as 20MB, got "5%"'],
  ])('refuses %s', (section, problem) => {
    expect(storage(`scrub: ${section}`).problems).toEqual([problem])
  })

  it('warns of a rate that has no effect', () => {
    expect(storage('scrub: {rate: 5MB}').warnings).toEqual([
      'storage.scrub.rate: has no effect without interval',
    ])
  })
})

describe('what check-config prints', () => {
  it('has these keys, and reads the same again', () => {
    const { configuration } = storage(
      'maxsize: 200GiB',
      'minfree: 5%',
      'retention: [{match: "library/node:20-*", pin: true}, {match: ci/**, ttl: 24h}]',
      'scrub: {interval: 168h, rate: 5MB}',
    )
    const shown = configuration ? formatConfiguration(configuration) : ''
    expect(shown).toContain(
      [
        '  maxsize: 200GiB',
        '  minfree: 5%',
        '  retention:',
        '    - match: library/node:20-*',
        '      pin: true',
        '    - match: ci/**',
        '      ttl: 24h0m0s',
        '  scrub:',
        '    interval: 168h0m0s',
        '    rate: 5000000B',
        '',
      ].join('\n'),
    )
    expect(load(shown)).toEqual({ configuration, warnings: [], problems: [] })
  })
})
