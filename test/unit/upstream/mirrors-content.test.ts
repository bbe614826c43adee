// Mirrors whose answers are good until one looks at what they have sent.

import type { ServerResponse } from 'node:http'
import { describe, expect, it } from 'vitest'
import { digestOf } from '../../../src/oci/digest.ts'
import { MirroredRegistry } from '../../../src/upstream/mirrored-registry.ts'
import type { UpstreamBlob } from '../../../src/upstream/remote-registry.ts'
import { drop, type JsonObject } from '../../../src/upstream/response-body.ts'
import { UpstreamError } from '../../../src/upstream/upstream-error.ts'
import { FakeClock } from '../../support/fake-clock.ts'
import { waitFor } from '../../support/wait-for.ts'
import {
  alpine,
  failureOf,
  loggerInto,
  makeClient,
  startServer,
  type Handler,
  type SmallServer,
} from './small-server.ts'

const manifest = Buffer.from(JSON.stringify({ schemaVersion: 2, layers: [] }))
const digest = digestOf(manifest)
const page = Buffer.from('<html>sign in</html>')

/** Sends this whatever is asked for. */
function sends(body: Buffer | object, headers: Record<string, string> = {}): Handler {
  const bytes = Buffer.isBuffer(body) ? body : Buffer.from(JSON.stringify(body))
  return (_request, response) =>
    void response.writeHead(200, { 'content-length': bytes.length, ...headers }).end(bytes)
}

interface Mirrored {
  readonly registry: MirroredRegistry
  readonly clock: FakeClock
  readonly log: JsonObject[]
  readonly servers: SmallServer[]
  /** Manifests that were wrong. */
  readonly wrong: number
  /** Requests to each since the last time. */
  readonly asked: () => number[]
}

/** @param handlers of the endpoints; the last one is the origin */
async function startMirrored(...handlers: Handler[]): Promise<Mirrored> {
  const clock = new FakeClock()
  const log: JsonObject[] = []
  const servers = await Promise.all(handlers.map((handler) => startServer(handler)))
  let wrong = 0
  const registry = new MirroredRegistry(
    { clock, logger: loggerInto(log), onWrongManifest: () => void wrong++ },
    {
      name: 'docker.io',
      endpoints: servers.map(({ url }) => makeClient(url, { callLimitMs: 1 }).client),
    },
  )
  return {
    registry,
    clock,
    log,
    servers,
    get wrong() {
      return wrong
    },
    asked: () => servers.map(({ hits }) => hits.splice(0).length),
  }
}

const down: Handler = (_request, response) => void response.writeHead(503).end()

const announcing = { 'docker-content-digest': digest }

describe('a manifest of a mirror', () => {
  it.each([
    ['by digest, other bytes', digest, sends(Buffer.concat([manifest, Buffer.from(' ')]))],
    ['by digest, a web page', digest, sends(page)],
    ['by tag, bytes of another digest than announced', 'latest', sends(page, announcing)],
  ])('that is wrong (%s) comes from the next one', async (_what, reference, bad) => {
    const mirrored = await startMirrored(bad, sends(manifest))
    const { asked, clock, log, registry, servers } = mirrored
    expect((await registry.getManifest(alpine, reference)).bytes).toEqual(manifest)
    expect([asked(), mirrored.wrong]).toEqual([[1, 1], 1])
    // However well it answers meanwhile, and whoever else is out of order.
    await registry.headManifest(alpine, reference)
    await clock.advance(299_999)
    expect((await registry.getManifest(alpine, reference)).sentBy).toBe(servers[1]?.host)
    expect(asked()).toEqual([0, 2])
    expect(log).toEqual([
      expect.objectContaining({
        mirror: servers[0]?.host,
        msg: 'a mirror is passed over for 300 s',
        reason: `${servers[0]?.host} sent a manifest for library/alpine@${digest} that does not match`,
      }),
    ])
    await clock.advance(1)
    await registry.getManifest(alpine, reference)
    expect(asked()).toEqual([1, 1])
  })

  it.each([
    ['a web page', sends(page)],
    ['schema 1, which its origin may have too', sends({ schemaVersion: 1 })],
  ])('that is none (%s) comes from the next one, and the mirror is asked again', async (_, bad) => {
    const { asked, registry } = await startMirrored(bad, sends(manifest))
    for (let i = 0; i < 2; i++) {
      expect((await registry.getManifest(alpine, 'latest')).bytes).toEqual(manifest)
    }
    expect(asked()).toEqual([2, 2])
  })

  it('is not looked at when it is the origin that sends it: the caller verifies', async () => {
    const { registry } = await startMirrored(sends(page), sends(page))
    expect((await registry.getManifest(alpine, digest)).bytes).toEqual(page)
  })

  it('that was wrong is tried again when the origin is out of order, and is not believed', async () => {
    const { asked, registry, servers } = await startMirrored(sends(page), down)
    const host = servers[1]?.host
    for (let i = 0; i < 2; i++) {
      const { kind, message } = await failureOf(registry.getManifest(alpine, digest))
      expect([kind, message]).toEqual(['unavailable', expect.stringContaining(host ?? '')])
      expect(asked()).toEqual([1, 1])
    }
  })
})

const { length: sizeBytes } = manifest

/** A blob of the mirror, of which nobody wants more. */
async function refusable(
  { registry }: Mirrored,
  expectedSizeBytes = sizeBytes,
): Promise<UpstreamBlob> {
  const blob = await registry.getBlob(alpine, digest, { expectedSizeBytes })
  drop(blob.body)
  return blob
}

const broken = new UpstreamError('unreachable', 'broke off')
const wrong = new UpstreamError('bad-response', 'wrong bytes')

describe('a blob of a mirror', () => {
  it('that broke off makes the next one be asked for a while, and for no longer if many did', async () => {
    const mirrored = await startMirrored(sends(manifest), sends(manifest))
    const { asked, clock } = mirrored
    const blobs = [await refusable(mirrored), await refusable(mirrored)]
    expect(blobs.map((blob) => blob.refuse?.(broken))).toEqual([true, true])
    expect((await refusable(mirrored)).refuse).toBeUndefined()
    expect(asked()).toEqual([2, 1])
    await clock.advance(10_000)
    await refusable(mirrored)
    expect(asked()).toEqual([1, 0])
  })

  it('is no answer any more that ends a pause, if it was asked for before', async () => {
    const heads: ServerResponse[] = []
    const hold: Handler = (request, response, hits) => {
      if (request.method === 'HEAD') heads.push(response)
      else sends(manifest)(request, response, hits)
    }
    const mirrored = await startMirrored(hold, sends(manifest))
    const first = await refusable(mirrored)
    const late = mirrored.registry.headManifest(alpine, digest)
    const head = await waitFor('the HEAD to arrive', () => heads[0])
    first.refuse?.(broken)
    head.end()
    await late
    expect((await refusable(mirrored)).sentBy).toBe(mirrored.servers[1]?.host)
  })

  it('that was wrong makes the next one be asked for long, whatever else is refused', async () => {
    const mirrored = await startMirrored(sends(manifest), sends(manifest))
    const { asked, clock, log } = mirrored
    const blobs = [await refusable(mirrored), await refusable(mirrored)]
    expect(blobs.map((blob) => blob.refuse?.(wrong))).toEqual([true, true])
    await clock.advance(299_999)
    await refusable(mirrored)
    expect(asked()).toEqual([2, 1])
    expect(log).toHaveLength(1)
  })

  it('tells when nobody else is left who could send it', async () => {
    const mirrored = await startMirrored(sends(manifest), down)
    expect((await refusable(mirrored)).refuse?.(wrong)).toBe(true)
    expect((await refusable(mirrored)).refuse?.(wrong)).toBe(false)
  })

  it('of another size than is known comes from the next one, and the mirror is asked again', async () => {
    const mirrored = await startMirrored(sends(manifest), sends(page))
    for (let i = 0; i < 2; i++) {
      expect((await refusable(mirrored, page.length)).sizeBytes).toBe(page.length)
    }
    expect(mirrored.asked()).toEqual([2, 2])
    // Whose word it is in the end.
    expect((await refusable(mirrored, 1)).sizeBytes).toBe(page.length)
  })
})

const tags = (...names: string[]): Handler => sends({ name: 'library/alpine', tags: names })
const referrers = (...digests: string[]): Handler =>
  sends({ schemaVersion: 2, manifests: digests.map((each) => ({ digest: each })) })

describe('a list of a mirror', () => {
  it('that is empty says nothing: the next one is asked', async () => {
    const byTags = await startMirrored(tags(), tags('1'))
    expect((await byTags.registry.listTags(alpine)).tags).toEqual(['1'])
    const byReferrers = await startMirrored(referrers(), referrers(digest))
    const { bytes } = await byReferrers.registry.getReferrers(alpine, digest)
    expect(bytes.toString()).toContain(digest)
  })

  it('is believed if there is something in it, and so is an empty one of the origin', async () => {
    const full = await startMirrored(referrers(digest), referrers())
    expect((await full.registry.getReferrers(alpine, digest)).bytes.toString()).toContain(digest)
    expect(full.asked()).toEqual([1, 0])
    const empty = await startMirrored(tags(), tags())
    expect((await empty.registry.listTags(alpine)).tags).toEqual([])
  })
})
