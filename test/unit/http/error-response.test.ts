import { describe, expect, it } from 'vitest'
import { errorResponse } from '../../../src/http/error-response.ts'
import { ERROR_KINDS, RegistryError, type ErrorCode } from '../../../src/oci/registry-error.ts'
import { byName } from '../../support/header-list.ts'

describe('an error response', () => {
  it.each(Object.entries(ERROR_KINDS))(
    'of %s has the status and message of the table',
    (code, kind) => {
      const { body, isExpected, status } = errorResponse(new RegistryError(code as ErrorCode), {
        rateLimitStatus: 429,
      })
      expect(status).toBe(kind.status)
      expect(body).toEqual({ errors: [{ code, message: kind.message }] })
      expect(isExpected).toBe(true)
    },
  )

  it('tells of an upstream that is asked too often as 503, unless it is to say so', () => {
    const error = new RegistryError('TOOMANYREQUESTS', { retryAfterMs: 7_000 })
    const { body, headers, status } = errorResponse(error)
    expect([status, body.errors[0]?.code, byName(headers)['Retry-After']]).toEqual([
      503,
      'UNAVAILABLE',
      '7',
    ])
    expect(errorResponse(error, { rateLimitStatus: 429 }).status).toBe(429)
  })

  it.each([
    new Error('secret detail'),
    new TypeError('x is not a function'),
    'thrown text',
    undefined,
  ])('of a bug of ours is 503, and says nothing of it (%s)', (error) => {
    const { body, isExpected, status } = errorResponse(error)
    expect(status).toBe(503)
    expect(body).toEqual({
      errors: [{ code: 'UNAVAILABLE', message: ERROR_KINDS.UNAVAILABLE.message }],
    })
    expect(isExpected).toBe(false)
  })

  it('says when to come back in whole seconds, rounded up', () => {
    const error = new RegistryError('UNAVAILABLE', { retryAfterMs: 1_001 })
    expect(errorResponse(error).headers).toEqual(['Retry-After', '2'])
  })

  it('of a method that is not allowed names those that are', () => {
    expect(errorResponse(new RegistryError('UNSUPPORTED')).headers).toEqual(['Allow', 'GET, HEAD'])
  })
})
