import { describe, expect, it } from 'vitest'
import { parseChallenges } from '../../../../src/upstream/login/challenge.ts'

function parsed(header: string | readonly string[]): unknown[] {
  return parseChallenges(header).map(({ scheme, params }) => [scheme, Object.fromEntries(params)])
}

describe('parseChallenges', () => {
  it('reads the challenge of Docker Hub', () => {
    const header =
      'Bearer realm="https://auth.docker.io/token",service="registry.docker.io",scope="repository:library/x:pull"'
    expect(parsed(header)).toEqual([
      [
        'bearer',
        {
          realm: 'https://auth.docker.io/token',
          service: 'registry.docker.io',
          scope: 'repository:library/x:pull',
        },
      ],
    ])
  })

  it('tells challenges from parameters, in one header or in several', () => {
    const expected = [
      ['basic', { realm: 'a, b' }],
      ['bearer', { realm: 'https://t', service: 's' }],
    ]
    expect(parsed('Basic realm="a, b", Bearer realm="https://t", service="s"')).toEqual(expected)
    expect(parsed(['Basic realm="a, b"', 'Bearer realm="https://t",service=s'])).toEqual(expected)
  })

  it('takes any case, spaces around equal signs, and values without quotes', () => {
    expect(parsed('BEARER Realm = https://t/token?x=1 ,SERVICE= "S"')).toEqual([
      ['bearer', { realm: 'https://t/token?x=1', service: 'S' }],
    ])
  })

  it('unescapes quoted strings', () => {
    expect(parsed(String.raw`Bearer realm="a\"b\\c,d"`)).toEqual([
      ['bearer', { realm: String.raw`a"b\c,d` }],
    ])
  })

  it('passes over token68 challenges and those without parameters', () => {
    expect(parsed('Negotiate YWJj==, NTLM, Basic, Bearer realm=r')).toEqual([
      ['negotiate', {}],
      ['ntlm', {}],
      ['basic', {}],
      ['bearer', { realm: 'r' }],
    ])
  })

  it('takes the first of equal parameters', () => {
    expect(parsed('Bearer realm=a, realm=b')).toEqual([['bearer', { realm: 'a' }]])
  })

  it('returns what it understood of a malformed header', () => {
    expect(parsed('')).toEqual([])
    expect(parsed('=,;"')).toEqual([])
    expect(parsed('Bearer realm="never closed')).toEqual([['bearer', {}]])
    expect(parseChallenges(undefined)).toEqual([])
  })

  it('survives headers made to be slow', () => {
    for (const part of ['"', '\\', 'a ', 'a=', 'a="', ', ', ' ', 'a']) {
      expect(parseChallenges(`Bearer ${part.repeat(16_000)}`).length).toBeLessThan(20_000)
    }
  })
})
