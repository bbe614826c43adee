// What operators ask of a server that runs: who may ask, and what is answered.

import { stat, symlink, writeFile } from 'node:fs/promises'
import { join } from 'node:path'
import { describe, expect, it } from 'vitest'
import type { Status } from '../../src/cache/upkeep/administration.ts'
import type { UsageReport } from '../../src/cache/upkeep/usage-report.ts'
import { askAdmin } from '../../src/http/admin-client.ts'
import { adminSocketOf, ask, askAt, purge, untilKnown } from '../support/admin.ts'
import { FakeClock } from '../support/fake-clock.ts'
import { blobOf, buildImage } from '../support/images.ts'
import { blobFile, startLayover, type Layover, type LayoverOptions } from '../support/layover.ts'
import { plantBlob } from '../support/planted-volume.ts'
import { RawConnection } from '../support/raw-connection.ts'
import { makeTempDirectory } from '../support/temp-directory.ts'
import { nextTurn, waitFor } from '../support/wait-for.ts'

const NAME = 'library/alpine'
const HOUR_MS = 3_600_000
const JSON_TYPE = { 'Content-Type': 'application/json' }

async function start(
  options: LayoverOptions = {},
): Promise<Awaited<ReturnType<typeof startLayover>> & { root: string }> {
  const { layover, upstream } = await startLayover(options)
  if (options.clock instanceof FakeClock) await options.clock.advance(1)
  await untilKnown(layover.rootDirectory)
  return { layover, upstream, root: layover.rootDirectory }
}

async function usageOf(root: string): Promise<UsageReport> {
  return (await ask(root, '/admin/usage')).json as UsageReport
}

async function blocksOf(layover: Layover, digest: string): Promise<number> {
  return (await stat(join(layover.rootDirectory, blobFile(digest)))).blocks * 512
}

describe('the admin API', () => {
  it('tells what the server is, on the socket and on the debug listener, and not where clients pull', async () => {
    const { layover, root } = await start()
    const here = (await ask(root, '/admin/status')).json as Status
    expect(here).toMatchObject({ server: 'layover/test', pid: process.pid, rootDirectory: root })
    expect((await askAt(`${layover.debugUrl}/admin/status`)).json).toMatchObject({
      startedAt: here.startedAt,
    })
    for (const path of ['/admin/status', '/admin/usage', '/v2/admin/status']) {
      expect((await layover.get(path)).status).toBe(404)
    }
    expect((await askAt(`${layover.url}/admin/purge`, { method: 'POST' })).status).toBe(404)
    expect((await ask(root, '/admin/nothing')).status).toBe(404)
  })

  it('serves nothing but itself on the socket', async () => {
    const { root } = await start()
    for (const path of ['/metrics', '/v2/', '/livez'])
      expect((await ask(root, path)).status).toBe(404)
  })

  it.each([
    ['a page of another site', { Origin: 'https://evil.example' }],
    ['a page of its own address', { Origin: 'http://127.0.0.1:5001' }],
    ['a browser', { 'Sec-Fetch-Site': 'none' }],
    ['a name that leads here (DNS rebinding)', { Host: 'evil.example:5001' }],
  ])('is closed to %s', async (_, headers) => {
    const { layover, root, upstream } = await start()
    const image = buildImage()
    upstream.addImage(NAME, '3', image)
    await layover.pull(NAME, '3', image)
    const url = layover.debugUrl
    expect((await askAt(`${url}/admin/usage`, { headers })).status).toBe(403)
    const body = JSON.stringify({ repository: NAME })
    const all = { ...JSON_TYPE, ...headers }
    const answer = await askAt(`${url}/admin/purge`, { method: 'POST', headers: all, body })
    expect(answer.status).toBe(403)
    expect((await usageOf(root)).blobs).toBe(3)
  })

  it('is closed to a name that leads here also when the first line has it', async () => {
    const { layover } = await start()
    const line = 'GET http://evil.example:5001/admin/usage HTTP/1.1'
    const text = `${line}\r\nHost: localhost\r\nConnection: close\r\n\r\n`
    const answer = await (await RawConnection.open(layover.debugUrl, text)).ended()
    expect(answer).toMatch(/^HTTP\/1\.1 403 /)
  })

  it.each(['127.0.0.1:1', '[::1]:5001', 'localhost:5001', 'layover:5001', 'x.localhost'])(
    'is open to who calls it %s',
    async (host) => {
      const { layover } = await start()
      const { status } = await askAt(`${layover.debugUrl}/admin/status`, {
        headers: { Host: host },
      })
      expect(status).toBe(200)
    },
  )

  it('takes JSON only, which no form can send', async () => {
    const { layover } = await start()
    const url = `${layover.debugUrl}/admin/purge`
    const body = JSON.stringify({ repository: '**' })
    for (const type of ['text/plain', 'application/x-www-form-urlencoded', 'application/jsonp']) {
      const headers = { 'Content-Type': type }
      expect((await askAt(url, { method: 'POST', headers, body })).status).toBe(400)
    }
    expect((await askAt(url, { method: 'POST', body })).status).toBe(400)
    const headers = { 'Content-Type': 'Application/JSON; charset=utf-8' }
    expect((await askAt(url, { method: 'POST', headers, body })).status).toBe(200)
  })

  it.each<[string, number, string]>([
    ['{"image": "alpine", "dryrun": true}', 400, 'dryrun: unknown key'],
    ['{"image": "alpine", "dryRun": "yes"}', 400, 'dryRun: expected true or false'],
    ['{"image": 3}', 400, 'image: expected text'],
    ['{"unusedFor": "soon"}', 400, 'expected a duration such as 7d'],
    ['{"unusedFor": "-1h"}', 400, 'expected a duration such as 7d'],
    ['{"repository": "No Name"}', 400, 'is no name of a repository'],
    ['{}', 400, 'nothing selected'],
    ['[]', 400, 'expected a JSON object'],
    ['{"image":', 400, 'expected a JSON object'],
  ])('refuses %s with %i', async (body, status, message) => {
    const { layover, upstream, root } = await start()
    const image = buildImage()
    upstream.addImage(NAME, '3', image)
    await layover.pull(NAME, '3', image)
    const url = `${layover.debugUrl}/admin/purge`
    const answer = await askAt(url, { method: 'POST', headers: JSON_TYPE, body })
    expect(answer.status).toBe(status)
    expect(answer.text).toContain(message)
    expect((await usageOf(root)).blobs).toBe(3)
  })

  it('reads no more of a request than one can need', async () => {
    const { layover } = await start()
    const body = JSON.stringify({ image: 'a'.repeat(20_000) })
    const url = `${layover.debugUrl}/admin/purge`
    const answer = await askAt(url, { method: 'POST', headers: JSON_TYPE, body })
    expect(answer.status).toBe(413)
    expect(answer.text).toContain('at most')
  })

  it('is not there without http.debug.addr, and the socket still is', async () => {
    const configuration = { http: { debug: {} } }
    const { root } = await start({ configuration })
    expect((await ask(root, '/admin/status')).status).toBe(200)
  })
})

describe('a purge whose client leaves', () => {
  it('ends, and the next one may begin', async () => {
    // More lines than what is on its way can hold.
    const count = 1_000
    const rootDirectory = await makeTempDirectory()
    for (let i = 0; i < count; i++) await plantBlob(rootDirectory, 'library/many', blobOf(10, i))
    const { layover, root } = await start({ rootDirectory })
    const answer = await askAdmin(adminSocketOf(root), {
      method: 'POST',
      path: '/admin/purge',
      body: { repository: 'library/many' },
    })
    await new Promise((resolve) => answer.once('data', resolve))
    answer.destroy()
    await waitFor('the purge to end', () =>
      layover.messages().some((msg) => msg.startsWith('purged ')),
    )
    const left = (await usageOf(root)).blobs
    expect(left).toBeGreaterThan(0)
    expect(left).toBeLessThan(count)
    expect((await purge(root, { repository: 'library/many' })).summary.removed).toBe(left)
  })

  it('leaves the way free also when it left before the answer began', async () => {
    const { root } = await start()
    for (let round = 0; round < 20; round++) {
      const gone = new AbortController()
      const question = { method: 'POST', path: '/admin/purge', body: { repository: '**' } } as const
      const asking = askAdmin(adminSocketOf(root), { ...question, signal: gone.signal })
      const ended = asking.then(
        (answer) => answer.destroy(),
        () => undefined,
      )
      for (let turn = 0; turn < round; turn++) await nextTurn()
      gone.abort()
      await ended
    }
    await waitFor('a purge to be let in', async () => {
      const { status } = await ask(root, '/admin/purge', { repository: '**' })
      return status === 200
    })
  })
})

describe('the usage', () => {
  it('counts what is shared once in the sums, and for each holder in the rows', async () => {
    const { layover, upstream, root } = await start()
    const [shared, own] = [blobOf(300_000, 'shared'), blobOf(100_000, 'own')]
    for (const [name, blob] of [
      ['library/one', shared],
      ['library/two', shared],
      ['library/two', own],
      ['ghcr.io/org/app', shared],
    ] as const) {
      upstream.addBlob(name, blob)
      await layover.get(`/v2/${name}/blobs/${blob.digest}`)
      await layover.stored(blob.digest)
    }
    const sharedBytes = await blocksOf(layover, shared.digest)
    const ownBytes = await blocksOf(layover, own.digest)
    const usage = await usageOf(root)
    expect(usage).toMatchObject({
      blobs: 2,
      contentBytes: sharedBytes + ownBytes,
      unlinkedBytes: 0,
    })
    expect(usage.usedBytes).toBeGreaterThan(usage.contentBytes)
    expect(usage.repositories).toEqual([
      { name: 'library/two', blobs: 2, totalBytes: sharedBytes + ownBytes, ownBytes },
      { name: 'ghcr.io/org/app', blobs: 1, totalBytes: sharedBytes, ownBytes: 0 },
      { name: 'library/one', blobs: 1, totalBytes: sharedBytes, ownBytes: 0 },
    ])
    expect(usage.upstreams).toEqual([
      {
        name: new URL(upstream.url).host,
        blobs: 2,
        totalBytes: sharedBytes + ownBytes,
        // The shared one is ghcr.io's too.
        ownBytes,
      },
      { name: 'ghcr.io', blobs: 1, totalBytes: sharedBytes, ownBytes: 0 },
    ])
  })

  it('tells ages from the last use', async () => {
    const clock = new FakeClock()
    const { layover, upstream, root } = await start({ clock })
    const [old, used] = [buildImage({ seed: 'old' }), buildImage({ seed: 'used' })]
    upstream.addImage(NAME, 'old', old)
    upstream.addImage(NAME, 'used', used)
    await layover.pull(NAME, 'old', old)
    await layover.pull(NAME, 'used', used)
    clock.jump(48 * HOUR_MS)
    await layover.pull(NAME, 'used', used)
    const ages = Object.fromEntries(
      (await usageOf(root)).ages.map(({ blobs, name }) => [name, blobs]),
    )
    expect(ages).toMatchObject({ 'under an hour': 3, 'under 7 days': 3, 'under a day': 0 })
  })

  it('is refused while the volume is not known', async () => {
    const { layover } = await startLayover({ clock: new FakeClock() })
    expect((await ask(layover.rootDirectory, '/admin/usage')).status).toBe(409)
  })
})

describe('scrubbing', () => {
  it('finds a damaged blob, and the next client gets the right one from the upstream', async () => {
    const { layover, upstream, root } = await start()
    const blob = blobOf(300_000, 'rotten')
    upstream.addBlob(NAME, blob)
    const path = `/v2/${NAME}/blobs/${blob.digest}`
    await layover.get(path)
    await layover.stored(blob.digest)
    const wrong = Buffer.from(blob.bytes)
    wrong[1_000] = (wrong[1_000] ?? 0) ^ 1
    await writeFile(join(root, blobFile(blob.digest)), wrong)
    const answer = await ask(root, '/admin/scrub', {})
    expect(answer.status).toBe(202)
    await waitFor('the scrub to end', async () => {
      const { scrub } = (await ask(root, '/admin/status')).json as Status
      return !scrub.isRunning && scrub.damaged === 1
    })
    expect(await layover.files('layover/quarantine')).toHaveLength(1)
    expect(await layover.metric('layover_digest_mismatches_total{type="blob"}')).toBe(1)
    expect(await layover.metric('layover_scrubbed_bytes_total')).toBe(300_000)
    upstream.reset()
    expect((await layover.get(path)).body.equals(blob.bytes)).toBe(true)
    expect(upstream.count({ method: 'GET' })).toBe(1)
    await layover.stored(blob.digest)
  })

  it('happens by itself when storage.scrub says how often', async () => {
    const clock = new FakeClock()
    const configuration = { storage: { scrub: { interval: '24h', rate: '100MB' } } }
    const { layover, upstream, root } = await start({ clock, configuration })
    const blob = blobOf(300_000, 'read again')
    upstream.addBlob(NAME, blob)
    await layover.get(`/v2/${NAME}/blobs/${blob.digest}`)
    await layover.stored(blob.digest)
    await waitFor('a pass', async () => {
      await clock.advance(10_000)
      const { scrub } = (await ask(root, '/admin/status')).json as Status
      return scrub.blobs === 1
    })
    expect(await layover.metric('layover_scrubbed_bytes_total')).toBe(300_000)
  })
})

describe('the root directory', () => {
  it('may be a symbolic link', async () => {
    const directory = await makeTempDirectory()
    const root = join(await makeTempDirectory(), 'link')
    await symlink(directory, root)
    const { layover, upstream } = await start({ rootDirectory: root })
    const image = buildImage({ layers: [300_000] })
    upstream.addImage(NAME, '3', image)
    await layover.pull(NAME, '3', image)
    await layover.restart()
    upstream.reset()
    await layover.pull(NAME, '3', image)
    expect(upstream.count({ method: 'GET' })).toBe(0)
    await untilKnown(root)
    expect((await purge(root, { repository: NAME })).summary.removed).toBe(3)
  })
})
