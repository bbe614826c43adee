import { describe, expect, it } from 'vitest'

import { formatDuration, parseAge, parseDuration } from '../../../src/config/duration.ts'

const HOUR_MS = 3_600_000

describe('parseDuration', () => {
  it.each([
    ['168h', 168 * HOUR_MS],
    ['1h30m', 1.5 * HOUR_MS],
    ['1.5s', 1500],
    ['.5s', 500],
    ['1.s', 1000],
    ['100ms', 100],
    ['1us', 0.001],
    ['1µs', 0.001],
    ['1μs', 0.001],
    ['1ns', 0.000001],
    ['+2m', 120_000],
    ['-1s', -1000],
    ['0', 0],
    ['-0', 0],
    ['2562047h47m16.854s', 9_223_372_036_854],
  ])('reads %s as Go does', (text, expected) => {
    expect(parseDuration(text)).toBe(expected)
  })

  it('takes a bare integer as nanoseconds', () => {
    expect(parseDuration('3600')).toBe(0.0036)
    expect(parseDuration('604800000000000')).toBe(168 * HOUR_MS)
    expect(parseDuration('-1000000')).toBe(-1)
  })

  it.each(['', ' ', '7 dayz', '7d', '1h 30m', 's', '.s', '1.5', '--1s', '1h-30m', '1e3s', '∞'])(
    'does not read %j',
    (text) => {
      expect(parseDuration(text)).toBeUndefined()
    },
  )

  it('does not read more than an int64 of nanoseconds, or endless digits', () => {
    expect(parseDuration('2562048h')).toBeUndefined()
    expect(parseDuration('9'.repeat(30))).toBeUndefined()
    expect(parseDuration(`${'0'.repeat(200)}s`)).toBeUndefined()
  })
})

describe('parseAge', () => {
  it.each([
    ['7d', 168 * HOUR_MS],
    ['1d12h', 36 * HOUR_MS],
    ['0d', 0],
    ['90m', 1.5 * HOUR_MS],
    ['0s', 0],
  ])('reads %s', (text, expected) => {
    expect(parseAge(text)).toBe(expected)
  })

  it.each(['', '7', '7days', '1.5d', 'd', '1d-1h', '7d 1h', '1h7d'])('does not read %j', (text) => {
    expect(parseAge(text)).toBeUndefined()
  })
})

describe('formatDuration', () => {
  it.each([
    [168 * HOUR_MS, '168h0m0s'],
    [5_400_000, '1h30m0s'],
    [120_000, '2m0s'],
    [59_999, '59.999s'],
    [1500, '1.5s'],
    [100, '100ms'],
    [0.0036, '3.6µs'],
    [0.000001, '1ns'],
    [-1000, '-1s'],
    [0, '0s'],
  ])('prints %d ms as Go does: %s', (ms, expected) => {
    expect(formatDuration(ms)).toBe(expected)
  })
})
