import { describe, expect, it } from 'vitest'
import { waitFor } from '../../support/wait-for.ts'
import { alpine, failureOf, kindOf, pour, startClient } from './small-server.ts'

describe('rate limits', () => {
  it.each([
    ['7', 7_000],
    [undefined, undefined],
    ['soon', undefined],
  ])('tell how long to wait (Retry-After: %s)', async (retryAfter, retryAfterMs) => {
    const { client } = await startClient((_request, response) => {
      if (retryAfter) response.setHeader('retry-after', retryAfter)
      response.writeHead(429, { 'content-type': 'text/plain' }).end('Too Many Requests\n')
    })
    const error = await failureOf(client.getManifest(alpine, 'a'))
    expect(error).toMatchObject({ kind: 'rate-limited', status: 429, retryAfterMs })
    expect(error.message).toMatch(/^127\.0\.0\.1:\d+ answered 429 Too Many Requests: Too Many/)
  })
})

/** What follows the status in the message. */
async function messageFor(body: string, contentType = 'application/json'): Promise<string> {
  const { client } = await startClient((_request, response) => {
    response.writeHead(403, { 'content-type': contentType }).end(body)
  })
  const { message } = await failureOf(client.getManifest(alpine, 'a'))
  return message.replace(/^\S+ answered 403 Forbidden/, '')
}

describe('reasons', () => {
  it('are taken from what registries send', async () => {
    expect(await messageFor('{"errors":[{"code":"DENIED","message":"no\\n access"}]}')).toBe(
      ': no access',
    )
    expect(await messageFor('{"errors":[{"code":"DENIED"}]}')).toBe(': DENIED')
    expect(await messageFor('{"details":"incorrect username or password"}')).toBe(
      ': incorrect username or password',
    )
    expect(await messageFor('nope', 'text/plain')).toBe(': nope')
  })

  it('are left out when they are none', async () => {
    expect(await messageFor('<html>blocked</html>', 'text/html')).toBe('')
    expect(await messageFor('{"errors":[]}')).toBe('')
    expect(await messageFor('{"errors":{}}', 'text/plain')).toBe('')
    expect(await messageFor('')).toBe('')
  })

  it('are short and hold no secrets', async () => {
    const message = await messageFor(
      `see https://x.test/a?X-Amz-Signature=secret&b=c now; Bearer eyJhbGciOi.secret ${'x'.repeat(400)}`,
      'text/plain',
    )
    expect(message).not.toContain('secret')
    expect(message.length).toBeLessThanOrEqual(302)
  })

  it('are not waited for', async () => {
    const { client, clock, server } = await startClient((_request, response) => {
      response.writeHead(403, { 'content-type': 'text/plain' }).write('because')
    })
    const failure = failureOf(client.getManifest(alpine, 'a'))
    await waitFor('the answer', () => clock.nextTimerMs === 5_000)
    await clock.advance(5_000)
    expect(await failure).toMatchObject({ kind: 'denied' })
    await waitFor('the connection to end', () => server.sockets.every((it) => it.destroyed))
  })

  it('without end are cut', async () => {
    const { client, server } = await startClient((_request, response) => {
      pour(response.writeHead(403))
    })
    expect(await kindOf(client.getManifest(alpine, 'a'))).toBe('denied')
    await waitFor('the connection to end', () => server.sockets.every((it) => it.destroyed))
  })
})
