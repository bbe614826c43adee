// Clients that are broken, hostile or slow: what they get, and that nobody else notices.

import process from 'node:process'
import { setFlagsFromString } from 'node:v8'
import { runInNewContext } from 'node:vm'
import { describe, expect, it } from 'vitest'
import { startLayover, type Layover } from '../support/layover.ts'
import { blobOf, buildImage, bytesOf } from '../support/images.ts'
import { RawConnection } from '../support/raw-connection.ts'
import { waitFor } from '../support/wait-for.ts'

const NAME = 'library/alpine'
const DIGEST = blobOf(1, 'abuse').digest
const MIB = 1024 * 1024

setFlagsFromString('--expose-gc')
const collectGarbage = runInNewContext('gc') as () => void

/** Nothing that was asked for may have had an effect, or be told as a bug. */
async function expectUnharmed(layover: Layover): Promise<void> {
  expect((await layover.get('/v2/')).status).toBe(200)
  const messages = layover.messages()
  expect(messages).not.toContain('a request failed')
  expect(messages).not.toContain('an error that nobody caught')
  expect(await layover.files('docker')).toEqual([])
}

describe('broken HTTP', () => {
  const target = `/v2/${NAME}/manifests/3`
  /** Each is wrong for a server that is strict; `%` stands for something else in each request. */
  const broken: readonly string[] = [
    '%\r\n\r\n',
    '\r\n\r\n%\r\n\r\n',
    `GET ${target} HTTP/9.%\r\nHost: x\r\n\r\n`,
    `GET ${target} HTTP/1.1\r\n%: no host\r\n\r\n`,
    `GET ${target} HTTP/1.1\r\nHost: x\r\nHost%: y\r\n bad fold\0\r\n\r\n`,
    `GET ${target}% HTTP/1.1\r\nHost: x\r\nno colon\r\n\r\n`,
    `GET ${target} HTTP/1.1\r\nHost: x\r\nX: %\0\r\n\r\n`,
    `GET ${target} HTTP/1.1\r\nHost : x%\r\n\r\n`,
    `GET\t${target}%\tHTTP/1.1\r\nHost: x\r\n\r\n`,
    `GET  ${target} HTTP/1.1 %\r\nHost: x\r\n\r\n`,
    `get ${target}% HTTP/1.1\r\nHost: x\r\n\r\n`,
    `GÉT ${target}% HTTP/1.1\r\nHost: x\r\n\r\n`,
    `GET ${target} HTTP/1.1\rHost: x%\r\r`,
    `POST ${target} HTTP/1.1\r\nHost: x\r\nContent-Length: 5\r\nContent-Length: 6\r\n\r\n%`,
    `POST ${target} HTTP/1.1\r\nHost: x\r\nContent-Length: -%\r\n\r\n`,
    `POST ${target} HTTP/1.1\r\nHost: x\r\nContent-Length: 9\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\nGET /%`,
    `POST ${target} HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked, %\r\n\r\n`,
    `PUT ${target}% HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n`,
    'PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n%',
    '\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03%',
    'SSH-2.0-OpenSSH_9.2p1 %\r\n',
    `CONNECT hub.docker.com:443% HTTP/1.1\r\nHost: x\r\n\r\n`,
    `GET http://[::1%/v2/ HTTP/1.1\r\nHost: x\r\n\r\n`,
    `GET ${target}?%\u0000 HTTP/1.1\r\nHost: x\r\n\r\n`,
  ]
  const REQUESTS = 1_000

  it('a thousand times over is refused, has no effect, and disturbs nobody', async () => {
    const { layover, upstream } = await startLayover()
    const answers: string[] = []
    for (let index = 0; index < REQUESTS; index++) {
      const filler = bytesOf(index % 40, index)
        .toString('latin1')
        .replaceAll(/[\r\n]/g, '.')
      const template = broken[index % broken.length] ?? ''
      const connection = await RawConnection.open(layover.url, template.replaceAll('%', filler))
      connection.finish()
      await connection.ended()
      answers.push(connection.received)
    }

    // No answer at all is one, too.
    const statuses = answers.filter((text) => text !== '').map((text) => text.slice(0, 12))
    expect(statuses.filter((status) => !/^HTTP\/1\.1 4\d\d$/.test(status))).toEqual([])
    expect(statuses.length).toBeGreaterThan(REQUESTS / 2)
    expect(upstream.count()).toBe(0)
    await expectUnharmed(layover)
  })

  it.each([17, 64, 1024])('with %i KiB of headers is refused with 431', async (kib) => {
    const { layover, upstream } = await startLayover()
    const header = `X-Large: ${'a'.repeat(kib * 1024)}\r\n`
    const connection = await RawConnection.open(
      layover.url,
      `GET /v2/${NAME}/manifests/3 HTTP/1.1\r\nHost: x\r\n${header}\r\n`,
    )

    expect(await connection.ended()).toMatch(/^HTTP\/1\.1 431 /)
    expect(upstream.count()).toBe(0)
    await expectUnharmed(layover)
  })

  it('with a body that never ends is refused, and not read for ever', async () => {
    const { layover } = await startLayover()
    const head = `PUT /v2/${NAME}/manifests/3 HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n`
    const connection = await RawConnection.open(layover.url, head)

    expect(await connection.answered()).toMatch(/^HTTP\/1\.1 405 /)
    connection.close()
    await expectUnharmed(layover)
  })
})

describe('a hostile path', () => {
  /** Raw, as they come in a request line. What stands for a slash, a dot or nothing must not become one. */
  const hostile: readonly string[] = [
    '..',
    '.',
    '%2e%2e',
    '%2E.',
    '..%2f..%2f..%2fetc%2fpasswd',
    '%2f',
    '%2Fetc%2Fpasswd',
    '%252e%252e%252f',
    '..\\..\\windows',
    '%5c..%5c',
    'a%00b',
    '%00',
    'a%0d%0aX-Injected:%20yes',
    'a b'.replace(' ', '%20'),
    '~root',
    '$(id)',
    '`id`',
    ';id',
    '{a,b}',
    '*',
    "'--",
    'a'.repeat(256),
    'a'.repeat(4_000),
    '%C3%A4pfel',
    '%E2%80%AE',
    '%EF%BC%8F',
    '%C0%AE%C0%AE',
    '%FF%FE',
    '%F0%9F%90%B3',
    'e%CC%81',
    '%',
    '%zz',
    'CON',
    '.hidden',
    '-rf',
    '_catalogs',
    '__proto__',
    'constructor%00',
    'sha256:',
    `sha256:${'a'.repeat(63)}`,
    `sha256:${'g'.repeat(64)}`,
    `sha256:..%2f${'a'.repeat(60)}`,
    `SHA256:${'a'.repeat(64)}`,
  ]
  const places: readonly [string, (part: string) => string][] = [
    ['the first part of a name', (part) => `/v2/${part}/alpine/manifests/3`],
    ['a middle part of a name', (part) => `/v2/library/${part}/alpine/blobs/${DIGEST}`],
    ['the last part of a name', (part) => `/v2/library/${part}/tags/list`],
    ['all of a name', (part) => `/v2/${part}/referrers/${DIGEST}`],
    ['a blob', (part) => `/v2/${NAME}/blobs/${part}`],
    ['a subject', (part) => `/v2/${NAME}/referrers/${part}`],
    ['what comes after the base', (part) => `/v2/${part}`],
    ['what is asked of a name', (part) => `/v2/${NAME}/${part}/3`],
    ['a page of ours', (part) => `/x${part}`],
  ]

  it.each(places)('is refused, and reaches neither disk nor upstream: %s', async (_, pathOf) => {
    const { layover, upstream } = await startLayover()
    for (const part of hostile) {
      const answer = await ask(layover, pathOf(part))
      expect(answer, part).toMatch(/^HTTP\/1\.1 40[04] /i)
      expect(upstream.count(), part).toBe(0)
      expect(answer.toLowerCase()).not.toContain('\r\nx-injected')
    }
    await expectUnharmed(layover)
  })

  it('may be a tag that is none, and is refused', async () => {
    const { layover, upstream } = await startLayover()
    // These are tags, however odd.
    const tags = new Set(['_catalogs', '__proto__', 'CON'])
    for (const part of hostile) {
      const answer = await ask(layover, `/v2/${NAME}/manifests/${part}`)
      expect(answer, part).toMatch(tags.has(part) ? /^HTTP\/1\.1 404 / : /^HTTP\/1\.1 40[04] /)
    }
    expect(upstream.requests.every(({ reference }) => tags.has(reference ?? ''))).toBe(true)
    await expectUnharmed(layover)
  })

  it.each(['ns', 'n', 'last', 'artifactType', 'page', '__proto__'])(
    'may be the value of a parameter, and is data there: %s',
    async (parameter) => {
      const { layover, upstream } = await startLayover()
      upstream.addImage(NAME, '3', buildImage())
      for (const part of hostile) {
        for (const path of [`${NAME}/tags/list`, `${NAME}/referrers/${DIGEST}`, '_catalog']) {
          const answer = await ask(layover, `/v2/${path}?${parameter}=${part}`)
          expect(answer, `${path} ${part}`).toMatch(/^HTTP\/1\.1 (200|400|404) /)
          expect(answer.toLowerCase()).not.toContain('\r\nx-injected')
        }
      }
      expect(new Set(upstream.requests.map(({ kind }) => kind))).not.toContain('other')
      await expectUnharmed(layover)
    },
  )
})

/** Asks for a path as it is written here. */
async function ask(layover: Layover, path: string): Promise<string> {
  const request = `GET ${path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n`
  return (await RawConnection.open(layover.url, request)).ended()
}

describe('names that nobody has', () => {
  const NAMES = 1_500

  it('are remembered without the long queries that they came with', async () => {
    // Its lines would be kept here, for tests to read.
    const configuration = { log: { accesslog: { disabled: true } } }
    const { layover } = await startLayover({ configuration })
    const query = 'x'.repeat(12_000)
    const ask = (index: number): Promise<unknown> =>
      layover.head(`/v2/library/a-name-that-nobody-has-${index}/manifests/3?q=${query}`)
    await ask(NAMES)
    const beforeBytes = heapBytes()
    for (let index = 0; index < NAMES; index++) await ask(index)

    // The fake upstream notes each request, too.
    const perNameBytes = (heapBytes() - beforeBytes) / NAMES
    expect(perNameBytes).toBeLessThan(query.length - 2_000)
  })
})

function heapBytes(): number {
  collectGarbage()
  return process.memoryUsage().heapUsed
}

describe('slow clients', () => {
  it('a hundred of them, each at another place of a running download, disturb nobody', async () => {
    const { layover, upstream } = await startLayover()
    const blob = blobOf(48 * MIB, 'slow clients')
    upstream.addBlob(NAME, blob)
    const path = `/v2/${NAME}/blobs/${blob.digest}`
    const gate = upstream.gate({ kind: 'blob' }, { afterBytes: MIB })
    const offsets = Array.from({ length: 100 }, (_, index) => index * 400_000)
    const slow = await Promise.all(
      offsets.map((offset) => layover.open(path, { headers: { Range: `bytes=${offset}-` } })),
    )
    const quick = layover.get(path)
    gate.release()

    expect((await quick).body.equals(blob.bytes)).toBe(true)
    await layover.stored(blob.digest)
    for (const [index, exchange] of slow.entries()) {
      const start = offsets[index] ?? 0
      const part = await exchange.read(1000)
      expect(part.equals(blob.bytes.subarray(start, start + 1000))).toBe(true)
      exchange.leave()
    }
    await waitFor('all answers to be over', async () => {
      return (await layover.metric('registry_http_in_flight_requests')) === 0
    })
    expect(upstream.count({ kind: 'blob' })).toBe(1)
  })
})
