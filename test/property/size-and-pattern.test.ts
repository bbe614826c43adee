import * as fc from 'fast-check'
import { describe, expect, it } from 'vitest'
import { formatDiskAmount, formatSize, parseDiskAmount, parseSize } from '../../src/config/size.ts'
import { parseImagePattern, parsePattern } from '../../src/oci/pattern.ts'

const FACTORS = {
  '': 1,
  B: 1,
  k: 1024,
  K: 1024,
  kB: 1e3,
  KiB: 1024,
  M: 1024 ** 2,
  MB: 1e6,
  MiB: 1024 ** 2,
  G: 1024 ** 3,
  GB: 1e9,
  GiB: 1024 ** 3,
  gib: 1024 ** 3,
  T: 1024 ** 4,
  TB: 1e12,
  TiB: 1024 ** 4,
}

const unit = fc.constantFrom(...(Object.keys(FACTORS) as (keyof typeof FACTORS)[]))

describe('sizes', () => {
  it('are amounts of a unit', () => {
    const amount = fc.integer({ min: 0, max: 8_000 })
    fc.assert(
      fc.property(amount, unit, fc.constantFrom('', ' '), (count, name, space) => {
        expect(parseSize(`${count}${space}${name}`)).toBe(count * FACTORS[name])
        expect(parseSize(` ${count}.50${name} `)).toBe(Math.floor((count + 0.5) * FACTORS[name]))
      }),
    )
  })

  it('are the same after a round trip', () => {
    fc.assert(
      fc.property(fc.nat({ max: Number.MAX_SAFE_INTEGER }), (bytes) => {
        expect(parseSize(formatSize(bytes))).toBe(bytes)
      }),
    )
    fc.assert(
      fc.property(fc.integer({ min: 0, max: 10_000 }), (hundredths) => {
        const text = `${hundredths / 100}%`
        const amount = parseDiskAmount(text)
        expect(amount && parseDiskAmount(formatDiskAmount(amount))).toEqual(amount)
        expect(amount && formatDiskAmount(amount)).toBe(text)
      }),
    )
  })

  it.each(['200GiB', '1TiB', '3MiB', '5KiB', '1000B', '0B'])('print as %s', (text) => {
    expect(formatSize(parseSize(text) ?? NaN)).toBe(text)
  })

  it('are whole numbers of bytes, whatever is written', () => {
    const text = fc.oneof(fc.string(), fc.stringMatching(/^[\d. ]{0,20}[kKmMgGtTiBb% ]{0,4}$/))
    fc.assert(
      fc.property(text, (written) => {
        const bytes = parseSize(written)
        if (bytes !== undefined) expect(Number.isSafeInteger(bytes) && bytes >= 0).toBe(true)
        const amount = parseDiskAmount(written)
        if (amount?.kind === 'part') expect(amount.part >= 0 && amount.part <= 1).toBe(true)
      }),
    )
  })

  it.each([
    '',
    'GiB',
    '-1',
    '1e3',
    '1,5GB',
    '1 2',
    '1.GB',
    '.5GB',
    '5 PB',
    '9999999TiB',
    '101%',
    '1%%',
  ])('are not %j', (text) => {
    expect(parseSize(text)).toBeUndefined()
    expect(parseDiskAmount(text)).toBeUndefined()
  })
})

const component = fc.stringMatching(/^[a-z0-9][a-z0-9._-]{0,6}$/)
const names = fc.array(component, { minLength: 1, maxLength: 4 })

const matches = (pattern: string, text: string): boolean => parsePattern(pattern)?.(text) === true

describe('patterns', () => {
  it('match themselves, and no other name', () => {
    fc.assert(
      fc.property(names, names, (one, other) => {
        const [left, right] = [one.join('/'), other.join('/')]
        expect(matches(left, left)).toBe(true)
        expect(matches(left, right)).toBe(left === right)
      }),
    )
  })

  it('have a star for each part of one component', () => {
    fc.assert(
      fc.property(names, fc.nat(), fc.nat(), (parts, index, cut) => {
        const at = index % parts.length
        const chosen = parts[at] ?? ''
        const head = chosen.slice(0, cut % (chosen.length + 1))
        const pattern = parts.with(at, `${head}*`).join('/')
        expect(matches(pattern, parts.join('/'))).toBe(true)
        expect(matches(pattern, [...parts, 'more'].join('/'))).toBe(false)
      }),
    )
  })

  it('have two stars for any components, or none', () => {
    fc.assert(
      fc.property(names, names, fc.array(component, { maxLength: 3 }), (head, tail, between) => {
        const pattern = [...head, '**', ...tail].join('/')
        expect(matches(pattern, [...head, ...between, ...tail].join('/'))).toBe(true)
        expect(matches([...head, '**'].join('/'), [...head, ...tail].join('/'))).toBe(true)
        expect(matches('**', head.join('/'))).toBe(true)
      }),
    )
  })

  it.each([
    ['ci/*', 'ci/a', true],
    ['ci/*', 'ci/a/b', false],
    ['ci/*', 'ci', false],
    ['ci/**', 'ci/a/b', true],
    ['ci/**', 'ci', false],
    ['**/cache', 'cache', true],
    ['**/cache', 'a/b/cache', true],
    ['**/cache', 'a/mycache', false],
    ['team-?', 'team-a', true],
    ['team-?', 'team-/', false],
    ['v1.2', 'v1x2', false],
    ['v1.*', 'v1.20', true],
  ])('%s and %s: %s', (pattern, text, expected) => {
    expect(matches(pattern, text)).toBe(expected)
  })

  it('are never anything that could not be meant', () => {
    fc.assert(
      fc.property(fc.string({ unit: 'binary' }), (text) => {
        const isPattern = /^[\w.\-/*?]{1,512}$/.test(text)
        expect(parsePattern(text) !== undefined).toBe(isPattern)
      }),
    )
    for (const text of ['', '(a+)+', '[a]', 'a b', 'a\n', '^a$', 'a|b']) {
      expect(parsePattern(text)).toBeUndefined()
    }
  })

  it('take no time over what they do not match', () => {
    const pattern = `${'**/'.repeat(20)}x`
    expect(matches(pattern, `${'a/'.repeat(100)}y`)).toBe(false)
    expect(matches('*a'.repeat(200), 'a'.repeat(150))).toBe(false)
  })
})

describe('patterns for images', () => {
  it.each([
    ['library/node', undefined],
    ['library/node:20-*', ['20-slim', '18-slim']],
    ['library/node:*', undefined],
    ['**:v?', ['v1', 'v10']],
  ])('%s has a pattern for tags: %j', (text, tags) => {
    const image = parseImagePattern(text)
    expect(image?.matchesRepository(text.startsWith('**') ? 'any/name' : 'library/node')).toBe(true)
    expect(tags?.map((tag) => image?.matchesTag?.(tag))).toEqual(tags && [true, false])
    if (tags === undefined) expect(image?.matchesTag).toBeUndefined()
  })

  it.each(['', ':', 'a:', ':b', 'a:b:c', 'a:b c'])('are not %j', (text) => {
    expect(parseImagePattern(text)).toBeUndefined()
  })
})
