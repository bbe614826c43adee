import { describe, expect, it } from 'vitest'
import { formatBytes, formatTable } from '../../../src/cli/table.ts'

describe('a size', () => {
  it.each([
    [0, '0 B'],
    [1023, '1023 B'],
    [1024, '1.00 KiB'],
    [20_971_520, '20.0 MiB'],
    [1_610_612_736, '1.50 GiB'],
    [214_748_364_800, '200 GiB'],
    [5e15, '4547 TiB'],
  ])('of %i is %s', (bytes, text) => {
    expect(formatBytes(bytes)).toBe(text)
  })
})

describe('a table', () => {
  it('has columns as wide as their widest cell, and names at the end', () => {
    expect(
      formatTable([
        ['TOTAL', 'NAME'],
        ['1.00 GiB', 'a'],
      ]),
    ).toBe('   TOTAL  NAME\n1.00 GiB  a\n')
  })
})
