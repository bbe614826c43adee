import { describe, expect, it } from 'vitest'
import { matchesNone } from '../../../src/http/range.ts'

const DIGEST = 'sha256:abc'

describe('If-None-Match', () => {
  it('that is absent lets everything through', () => {
    expect(matchesNone(undefined, DIGEST)).toBe(true)
  })

  it.each([`"${DIGEST}"`, DIGEST, `W/"${DIGEST}"`, `"x", "${DIGEST}"`, ` "${DIGEST}" `, '*'])(
    '%s names the content',
    (header) => expect(matchesNone(header, DIGEST)).toBe(false),
  )

  it.each(['', '"x"', `"${DIGEST}d"`, `"${DIGEST.slice(0, -1)}"`, `"a${DIGEST}"`])(
    '%j does not',
    (header) => expect(matchesNone(header, DIGEST)).toBe(true),
  )
})
