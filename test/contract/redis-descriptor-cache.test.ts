import { once } from 'node:events'
import { writeFile } from 'node:fs/promises'
import { connect, createServer, type AddressInfo, type Socket } from 'node:net'
import { join } from 'node:path'
import { rootCertificates } from 'node:tls'
import type { Redis } from 'ioredis'
import { pino } from 'pino'
import { describe, expect, it, onTestFinished } from 'vitest'
import { FakeClock } from '../support/fake-clock.ts'
import { rawGet } from '../support/http-client.ts'
import { blobOf } from '../support/images.ts'
import { configurationFile, Program, upstreamFor } from '../support/program.ts'
import { freePort, hasRedisServer, RedisServer } from '../support/redis-server.ts'
import { makeTempDirectory } from '../support/temp-directory.ts'
import { TLS_CERTIFICATE } from '../support/tls-certificate.ts'
import { waitFor, within } from '../support/wait-for.ts'
import type { Digest } from '../../src/oci/digest.ts'
import {
  RedisDescriptorCache,
  type RedisOptionsPlain,
} from '../../src/storage/redis-descriptor-cache.ts'

// Where everything has to run, descriptor-cache.test.ts fails without a server.
const suite = hasRedisServer ? describe : describe.skip
const where = hasRedisServer ? 'Redis' : 'Redis (not tested: there is no redis-server)'

const { digest } = blobOf(8, 'some blob')
const keyOf = (of: Digest): string => `blobs::${of}`

interface Rig {
  readonly cache: RedisDescriptorCache
  readonly clock: FakeClock
  /** Messages and reasons of what was logged at `level`. */
  logged(level: 'info' | 'warn'): string[]
}

function makeCache(port: number, options: Partial<RedisOptionsPlain> = {}): Rig {
  const lines: { level: number; msg: string; err?: { message: string } }[] = []
  const write = (line: string): void => void lines.push(JSON.parse(line) as (typeof lines)[number])
  const clock = new FakeClock()
  const cache = new RedisDescriptorCache(
    { clock, logger: pino({ level: 'info' }, { write }) },
    { addresses: [{ host: '127.0.0.1', port }], database: 0, ...options },
  )
  onTestFinished(() => cache.close())
  return {
    cache,
    clock,
    logged: (level) =>
      lines
        .filter((line) => line.level === pino.levels.values[level])
        .map(({ err, msg }) => (err ? `${msg}: ${err.message}` : msg)),
  }
}

/** How many connections it has taken, this one included. */
async function connectionsOf(redis: Redis): Promise<number> {
  const info = await redis.info('stats')
  return Number(/total_connections_received:(\d+)/.exec(info)?.[1])
}

/** Another port of the same server, which counts those who try: Redis counts whom it lets in. */
async function doorTo(port: number): Promise<{ port: number; attempts: () => number }> {
  const sockets: Socket[] = []
  const door = createServer((inside) => {
    const outside = connect(port, '127.0.0.1')
    sockets.push(inside, outside)
    for (const socket of [inside, outside]) socket.on('error', () => undefined)
    inside.pipe(outside).pipe(inside)
  })
  onTestFinished(() => {
    door.close()
    for (const socket of sockets) socket.destroy()
  })
  await once(door.listen(0, '127.0.0.1'), 'listening')
  const { port: ownPort } = door.address() as AddressInfo
  return { port: ownPort, attempts: () => sockets.length / 2 }
}

/** Waits until what is set can be got. */
async function working({ cache }: Rig, sizeBytes = 1): Promise<void> {
  await waitFor('redis to be used', async () => {
    cache.set(digest, { sizeBytes })
    return (await cache.get(digest))?.sizeBytes === sizeBytes
  })
}

suite(`what is kept in ${where}`, () => {
  it('stands under the keys that registry:2 and registry:3 use', async () => {
    const server = await RedisServer.start()
    await working(makeCache(server.port), 123)
    const stored = await server.ask((redis) => redis.hgetall(keyOf(digest)))
    expect(stored).toMatchObject({ digest, size: '123' })
    expect(Object.keys(stored).sort()).toEqual(['digest', 'mediatype', 'size'])
  })

  it('may have been written by a registry', async () => {
    const server = await RedisServer.start()
    const rig = makeCache(server.port)
    await working(rig)
    const other = blobOf(8, 'other').digest
    const fields = { digest: other, size: '77', mediatype: 'application/octet-stream' }
    await server.ask((redis) => redis.hset(keyOf(other), fields))
    expect(await rig.cache.get(other)).toEqual({ sizeBytes: 77 })
  })

  it('is not believed when it says anything but a number as a registry writes it', async () => {
    const server = await RedisServer.start()
    const rig = makeCache(server.port)
    await working(rig)
    const odd = ['', ' ', 'abc', '-1', '1.5', '1e400', '99999999999999999999']
    for (const size of [...odd, '1e3', '0x10', '0b1', ' 5', '5\n', '+5', '5.0', '٥']) {
      await server.ask((redis) => redis.hset(keyOf(digest), { size }))
      expect([size, await rig.cache.get(digest)]).toEqual([size, undefined])
    }
  })

  it('may be something else entirely, which is logged once', async () => {
    const server = await RedisServer.start()
    const rig = makeCache(server.port)
    await working(rig)
    await server.ask((redis) => redis.multi().del(keyOf(digest)).set(keyOf(digest), 'x').exec())
    for (let time = 0; time < 3; time++) expect(await rig.cache.get(digest)).toBeUndefined()
    expect(rig.logged('warn')).toEqual([expect.stringContaining('WRONGTYPE')])
  })

  it('stands in the database that is configured', async () => {
    const server = await RedisServer.start()
    await working(makeCache(server.port, { database: 3 }))
    expect(await server.ask((redis) => redis.exists(keyOf(digest)))).toBe(0)
    expect(await server.ask((redis) => redis.select(3).then(() => redis.dbsize()))).toBe(1)
  })
})

suite(`over TLS ${where}`, () => {
  it('is used when its certificate is that of an authority in rootcas', async () => {
    const server = await RedisServer.start({ tls: true })
    const rig = makeCache(server.port, { tls: { rootCas: [TLS_CERTIFICATE.cert] } })
    await working(rig, 5)
    expect(await server.ask((redis) => redis.hget(keyOf(digest), 'size'))).toBe('5')
    expect(rig.logged('warn')).toEqual([])
  })

  it('is not, when the authority is another one: one line says so, and nothing else happens', async () => {
    const server = await RedisServer.start({ tls: true })
    const door = await doorTo(server.port)
    const rig = makeCache(door.port, { tls: { rootCas: rootCertificates.slice(0, 1) } })
    await waitFor('further attempts', async () => {
      rig.cache.set(digest, { sizeBytes: 1 })
      expect(await rig.cache.get(digest)).toBeUndefined()
      return door.attempts() >= 4
    })
    expect(rig.logged('warn')).toEqual([expect.stringContaining('self-signed certificate')])
    expect(rig.logged('info')).toEqual([])
    expect(await server.ask((redis) => redis.dbsize())).toBe(0)
  })

  // A process of its own: Node reads the variable once, at its start.
  it('is used without rootcas when Node trusts the authority', async () => {
    const server = await RedisServer.start({ tls: true })
    const authority = join(await makeTempDirectory(), 'authority.pem')
    await writeFile(authority, TLS_CERTIFICATE.cert)
    const upstream = await upstreamFor()
    const blob = blobOf(100, 'over TLS')
    upstream.addBlob('library/alpine', blob)
    const more = `redis: {addr: "127.0.0.1:${server.port}", tls: {enabled: true}}`
    const program = new Program(['serve', await configurationFile(upstream.url, { more })], {
      NODE_EXTRA_CA_CERTS: authority,
      REGISTRY_STORAGE_CACHE_BLOBDESCRIPTOR: 'redis',
    })
    const path = `/v2/library/alpine/blobs/${blob.digest}`
    const url = (await program.url()) + path
    await waitFor('the size to be in redis', async () => {
      expect((await rawGet(url)).status).toBe(200)
      return (await server.ask((redis) => redis.hget(keyOf(blob.digest), 'size'))) === '100'
    })
    expect(program.stderr).not.toContain('redis does not answer')
  })
})

suite(`behind a sentinel ${where}`, () => {
  it('is found by its name, and asked, each with its own password', async () => {
    const master = await RedisServer.start({ password: 'of-the-master' })
    const password = 'of-the-sentinel'
    const sentinel = await RedisServer.start({ password, watches: { name: 'cache', master } })
    const options = { masterName: 'cache', password: master.password, sentinelPassword: password }
    const rig = makeCache(sentinel.port, options)
    await working(rig, 5)
    expect(await master.ask((redis) => redis.hget(keyOf(digest), 'size'))).toBe('5')
    expect(await rig.cache.get(digest)).toEqual({ sizeBytes: 5 })
    expect(rig.logged('warn')).toEqual([])
  })
})

suite(`when ${where} fails`, () => {
  it('at the start, everything is unknown, one line says so, and it is used once it is there', async () => {
    const port = await freePort()
    const rig = makeCache(port)
    rig.cache.set(digest, { sizeBytes: 1 })
    rig.cache.delete(digest)
    expect(await within('an answer', rig.cache.get(digest))).toBeUndefined()
    await waitFor('the log', () => rig.logged('warn').length > 0)
    const server = await RedisServer.start({ port })
    await working(rig)
    expect(rig.logged('warn')).toEqual([expect.stringContaining('ECONNREFUSED')])
    expect(rig.logged('info')).toEqual([expect.stringContaining('redis is back')])
    expect(await server.ask((redis) => redis.dbsize())).toBe(1)
  })

  it('in between, everything is unknown until it is back', async () => {
    const server = await RedisServer.start()
    const rig = makeCache(server.port)
    await working(rig)
    const asked = Array.from({ length: 20 }, () => rig.cache.get(digest))
    await server.stop()
    await within('answers to what was asked before', Promise.all(asked))
    await waitFor('the log', () => rig.logged('warn').length > 0)
    for (let time = 0; time < 20; time++) {
      rig.cache.set(digest, { sizeBytes: 2 })
      rig.cache.delete(digest)
      expect(await within('an answer', rig.cache.get(digest))).toBeUndefined()
    }
    await RedisServer.start({ port: server.port })
    await working(rig, 3)
    // One line for each reason: the connection that broke, and that no other could be made.
    const warnings = rig.logged('warn')
    expect(new Set(warnings).size).toBe(warnings.length)
    expect(rig.logged('info')).toEqual([expect.stringContaining('redis is back')])
  })

  it('by hanging, answers come within 100 ms, and at once when it goes on hanging', async () => {
    const server = await RedisServer.start()
    const rig = makeCache(server.port)
    await working(rig)
    server.hang()
    const asked = Array.from({ length: 10 }, () => rig.cache.get(digest))
    expect(rig.clock.nextTimerMs).toBe(100)
    await rig.clock.advance(100)
    expect(new Set(await within('answers', Promise.all(asked)))).toEqual(new Set([undefined]))
    await waitFor('the connection to be given up', () => rig.logged('warn').length > 0)
    for (let time = 0; time < 10; time++) {
      rig.cache.set(digest, { sizeBytes: 1 })
      expect(await within('an answer', rig.cache.get(digest))).toBeUndefined()
    }
    expect(rig.clock.pendingTimers).toBe(0)
    server.goOn()
    await working(rig, 2)
    expect(rig.logged('info')).toEqual([expect.stringContaining('redis is back')])
  })

  it('by being slow, an answer that is late is no answer, and the connection stays', async () => {
    const server = await RedisServer.start()
    const rig = makeCache(server.port)
    await working(rig)
    await server.ask((redis) => redis.client('PAUSE', 300, 'ALL'))
    const asked = rig.cache.get(digest)
    expect(rig.clock.nextTimerMs).toBe(100)
    await rig.clock.advance(100)
    expect(await within('an answer', asked)).toBeUndefined()
    await working(rig, 2)
    expect(rig.logged('warn')).toEqual([])
  })

  it('by being full, what it has is known, what it lacks is not, and one line says so', async () => {
    const server = await RedisServer.start()
    const rig = makeCache(server.port)
    await working(rig, 5)
    const other = blobOf(8, 'no room').digest
    await server.ask((redis) => redis.config('SET', 'maxmemory', '1'))
    await waitFor('the log', () => {
      rig.cache.set(other, { sizeBytes: 6 })
      return rig.logged('warn').length > 0
    })
    expect(await rig.cache.get(digest)).toEqual({ sizeBytes: 5 })
    expect(await rig.cache.get(other)).toBeUndefined()
    expect(rig.logged('warn')).toEqual([expect.stringContaining('OOM')])
    await server.ask((redis) => redis.config('SET', 'maxmemory', '0'))
    await waitFor('room', async () => {
      rig.cache.set(other, { sizeBytes: 6 })
      return (await rig.cache.get(other))?.sizeBytes === 6
    })
  })

  it('by being flushed, everything is unknown until it is told again', async () => {
    const server = await RedisServer.start()
    const rig = makeCache(server.port)
    await working(rig)
    await server.ask((redis) => redis.flushall())
    expect(await rig.cache.get(digest)).toBeUndefined()
    await working(rig, 2)
    expect(rig.logged('warn')).toEqual([])
  })

  it('leaves no timer behind when it answers', async () => {
    const server = await RedisServer.start()
    const rig = makeCache(server.port)
    await working(rig)
    expect(rig.clock.pendingTimers).toBe(0)
  })

  it.each([
    ['a wrong password', { password: 'wrong' }, 'WRONGPASS'],
    ['no password', {}, 'NOAUTH'],
    ['a user whom it does not know', { username: 'nobody', password: 'right' }, 'WRONGPASS'],
  ])(
    'because of %s, the log says so once, however often it is tried',
    async (_what, options, reason) => {
      const server = await RedisServer.start({ password: 'right' })
      const connections = (): Promise<number> => server.ask(connectionsOf)
      const rig = makeCache(server.port, options)
      await waitFor('the log', () => rig.logged('warn').length > 0)
      const before = await connections()
      let questions = 1
      await waitFor('further attempts', async () => {
        expect(await rig.cache.get(digest)).toBeUndefined()
        return (await connections()) - before - questions++ >= 3
      })
      expect(rig.logged('warn')).toEqual([expect.stringContaining(reason)])
      const advice = 'redis refused the password: check redis.password'
      expect(rig.logged('warn').join()).toContain(advice)
      expect(rig.logged('warn').join()).not.toContain('right')
    },
  )
})
