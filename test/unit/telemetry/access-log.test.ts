import { describe, expect, it } from 'vitest'
import { AccessLog, type AccessEntry } from '../../../src/telemetry/access-log.ts'
import { digestOf } from '../../../src/oci/digest.ts'

const DIGEST = digestOf(Buffer.from('content'))

const ENTRY: AccessEntry = {
  timeMs: Date.UTC(2026, 10, 21, 1, 11, 6, 789),
  requestId: 'an-id',
  remoteAddress: '192.0.2.7',
  method: 'GET',
  uri: '/v2/library/alpine/manifests/3',
  httpVersion: '1.1',
  status: 200,
  sentBytes: 1234,
  referer: undefined,
  userAgent: 'docker/28',
  durationMs: 1.2345,
  ttfbMs: 0.06,
  cache: 'hit',
  upstream: 'registry-1.docker.io',
  repository: 'library/alpine',
  reference: '3',
  digest: DIGEST,
  isAborted: false,
  error: undefined,
}

function written(entry: AccessEntry, formatter: 'text' | 'json'): string {
  const lines: string[] = []
  const destination = { write: (line: string): number => lines.push(line) }
  const log = new AccessLog({ destination }, { formatter, fields: { service: 'cache' } })
  log.write(entry)
  return lines.join('')
}

describe('the access log as text', () => {
  it("is the combined format, followed by the cache's own words", () => {
    expect(written(ENTRY, 'text')).toBe(
      '192.0.2.7 - - [21/Nov/2026:01:11:06 +0000] "GET /v2/library/alpine/manifests/3 HTTP/1.1"' +
        ' 200 1234 "" "docker/28" cache=hit upstream=registry-1.docker.io' +
        ` repository=library/alpine digest=${DIGEST} duration=1.2ms ttfb=0.1ms id=an-id\n`,
    )
  })

  it('leaves out what there is not, and the digest where the path has it', () => {
    const line = written(
      {
        ...ENTRY,
        uri: `/v2/library/alpine/blobs/${DIGEST}`,
        cache: undefined,
        upstream: undefined,
        repository: undefined,
        ttfbMs: undefined,
        userAgent: undefined,
      },
      'text',
    )
    expect(line).toMatch(/" 200 1234 "" "" duration=1\.2ms id=an-id\n$/)
  })

  it('says that an answer was not completed, and why', () => {
    const line = written({ ...ENTRY, isAborted: true, error: 'the upstream "broke"' }, 'text')
    expect(line).toContain(' aborted=true error="the upstream \\"broke\\"" id=an-id')
  })

  it.each(['"', '\n', '\r\n', '\u001b[31m', '\u0000', '\\', '\u2028'])(
    'stays one line with the quotes in their places whatever a client sends: %j',
    (text) => {
      const line = written({ ...ENTRY, userAgent: text, referer: text, uri: `/v2/${text}` }, 'text')
      expect(line.match(/[\n\r]/g)).toEqual(['\n'])
      expect(line.replaceAll('\\\\', '').replaceAll('\\"', '').match(/"/g)).toHaveLength(6)
      // oxlint-disable-next-line no-control-regex -- control characters are what must not be there
      expect(line.slice(0, -1)).not.toMatch(/[\u0000-\u001f]/)
    },
  )

  it('tells the second anew when it has changed', () => {
    const lines: string[] = []
    const destination = { write: (line: string): number => lines.push(line) }
    const log = new AccessLog({ destination }, { formatter: 'text', fields: {} })
    for (const ms of [0, 999, 1000, 59_000]) log.write({ ...ENTRY, timeMs: ENTRY.timeMs + ms })
    const times = lines.map((line) => /:(\d\d:\d\d) /.exec(line)?.[1])
    expect(times).toEqual(['11:06', '11:07', '11:07', '12:05'])
  })
})

describe('the access log as JSON', () => {
  it('is one object a line, with the configured fields', () => {
    const line = written(ENTRY, 'json')
    expect(line.endsWith('}\n')).toBe(true)
    expect(JSON.parse(line)).toEqual({
      level: 'info',
      time: '2026-11-21T01:11:06.789Z',
      service: 'cache',
      msg: 'access',
      requestId: 'an-id',
      remoteAddress: '192.0.2.7',
      method: 'GET',
      uri: '/v2/library/alpine/manifests/3',
      httpVersion: '1.1',
      status: 200,
      sentBytes: 1234,
      userAgent: 'docker/28',
      cache: 'hit',
      upstream: 'registry-1.docker.io',
      repository: 'library/alpine',
      reference: '3',
      digest: DIGEST,
      durationMs: 1.2,
      ttfbMs: 0.1,
    })
  })

  it('says that an answer was not completed', () => {
    expect(JSON.parse(written({ ...ENTRY, isAborted: true }, 'json'))).toMatchObject({
      aborted: true,
    })
  })
})
