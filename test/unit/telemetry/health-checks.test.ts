import { describe, expect, it } from 'vitest'
import { httpCheck } from '../../../src/telemetry/health-checks.ts'
import { startServer } from '../upstream/small-server.ts'

describe('a check of a URL', () => {
  it('asks for all of it, and shows none of its secrets', async () => {
    const server = await startServer((_request, response) => response.writeHead(204).end())
    const check = httpCheck({
      url: `http://bob:hunter2@${server.host}/x?token=hunter2`,
      headers: {},
      expectedStatus: 200,
      timeoutMs: undefined,
      intervalMs: 1,
      threshold: 1,
    })
    expect(check.name).toBe(`http_http://${server.host}/x?***`)
    const message = `http://${server.host}/x?*** answered 204, expected 200`
    await expect(check.run()).rejects.toThrow(message)
    expect(server.hits[0]?.path).toBe('/x?token=hunter2')
  })
})
