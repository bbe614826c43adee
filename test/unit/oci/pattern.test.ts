import { describe, expect, it } from 'vitest'
import { parsePattern, weightOf } from '../../../src/oci/pattern.ts'

describe('a pattern of repositories', () => {
  it.each([
    ['library/alpine', ['library/alpine'], ['library/alpine2', 'x/library/alpine']],
    ['team-*/**', ['team-a/x', 'team-b/x/y'], ['team-a', 'team/x', 'x/team-a/y']],
    ['*', ['a'], ['a/b']],
    ['**', ['a', 'a/b/c'], []],
    ['**/internal-*', ['internal-x', 'a/internal-x', 'a/b/internal-x'], ['a/internal-x/y']],
    ['a.b', ['a.b'], ['aXb']],
    ['v?', ['v1'], ['v', 'v12', 'v/']],
  ])('%s', (pattern, matching, others) => {
    const matches = parsePattern(pattern)
    expect(matching.filter((name) => !matches?.(name))).toEqual([])
    expect(others.filter((name) => matches?.(name))).toEqual([])
  })

  it.each(['', 'a b', 'a[b]', 'a$', 'x'.repeat(513)])('is not %j', (text) => {
    expect(parsePattern(text)).toBeUndefined()
  })

  it('weighs as much as it says: of two, the one without a wildcard more', () => {
    const patterns = ['v1.2*', '*', 'v1.2', 'v*', '?']
    expect(patterns.sort((a, b) => weightOf(b) - weightOf(a)).slice(0, 3)).toEqual([
      'v1.2',
      'v1.2*',
      'v*',
    ])
  })
})
