import * as fc from 'fast-check'
import { describe, expect, it } from 'vitest'
import { isPublicName, parseRegistryHost } from '../../src/oci/registry-host.ts'

/** What names are made of, and what only looks like it. */
const label = fc.oneof(
  fc.constantFrom(
    'com',
    'io',
    'co.uk',
    'xn--',
    'xn--a',
    'xn--zckzah',
    'XN--P1AI',
    '0x7f',
    '127',
    '1',
  ),
  fc.stringMatching(/^[a-z\d-]{1,5}$/),
  fc.stringMatching(/^xn--[a-z\d-]{0,5}$/),
  fc.nat({ max: 300 }).map(String),
)
const port = fc.oneof(
  fc.constant(''),
  fc.nat({ max: 99_999 }).map((number) => `:${number}`),
)
const name = fc
  .tuple(fc.array(label, { minLength: 1, maxLength: 5 }), port)
  .map(([labels, suffix]) => labels.join('.') + suffix)

describe('a host that is accepted', () => {
  it('stands in a URL as it is', () => {
    fc.assert(
      fc.property(fc.oneof(name, fc.string()), (text) => {
        const host = parseRegistryHost(text)
        if (!host) return
        const url = `https://${host}`
        expect(URL.canParse(url)).toBe(true)
        expect(new URL(url).hostname).toBe(host.replace(/:\d+$/, ''))
        expect(parseRegistryHost(host)).toBe(host)
        if (isPublicName(host)) expect(new URL(url).href).toBe(`${url}/`)
      }),
      { numRuns: 5_000 },
    )
  })
})
