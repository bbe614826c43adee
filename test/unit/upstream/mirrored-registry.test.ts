import { pino } from 'pino'
import { describe, expect, it } from 'vitest'
import { MirroredRegistry } from '../../../src/upstream/mirrored-registry.ts'
import type { CallOptions, OpenRegistry } from '../../../src/upstream/remote-registry.ts'
import { UpstreamError } from '../../../src/upstream/upstream-error.ts'
import { FakeClock } from '../../support/fake-clock.ts'
import {
  alpine,
  content,
  digest,
  failureOf,
  makeClient,
  startServer,
  type SmallServer,
} from './small-server.ts'

interface Endpoint extends SmallServer {
  /** Of the next answers. */
  status: number
}

async function startEndpoint(status: number): Promise<Endpoint> {
  const state = { status }
  const server = await startServer((_request, response) => {
    response.writeHead(state.status, state.status === 429 ? { 'retry-after': '60' } : {})
    response.end(state.status === 200 ? content : undefined)
  })
  return Object.defineProperty(server, 'status', {
    get: () => state.status,
    set: (next: number) => {
      state.status = next
    },
  }) as Endpoint
}

/** An endpoint without a wire. */
function stub(
  name: string,
  getManifest: (options: CallOptions | undefined) => Promise<never>,
  {
    problems = [],
    reluctance,
  }: { problems?: string[]; reluctance?: UpstreamError | undefined } = {},
): OpenRegistry {
  const part: Partial<OpenRegistry> = {
    name,
    problems,
    reluctance: () => reluctance,
    getManifest: (_repository, _reference, options) => getManifest(options),
  }
  return part as OpenRegistry
}

/** A registry of endpoints that answer so; the last one is the origin. */
async function startMirrored(...statuses: number[]): Promise<{
  registry: MirroredRegistry
  endpoints: Endpoint[]
  clock: FakeClock
  /** Requests to each since the last time. */
  asked: () => number[]
}> {
  const clock = new FakeClock()
  const endpoints = await Promise.all(statuses.map(startEndpoint))
  const registries = endpoints.map(({ url }) => makeClient(url, { callLimitMs: 1 }).client)
  const registry = new MirroredRegistry(
    { clock, logger: pino({ level: 'silent' }) },
    { name: 'docker.io', endpoints: registries },
  )
  const asked = (): number[] => endpoints.map(({ hits }) => hits.splice(0).length)
  return { registry, endpoints, clock, asked }
}

describe('a registry of several mirrors', () => {
  it('asks the first one alone as long as that has what is wanted', async () => {
    const { asked, registry } = await startMirrored(200, 200, 200)
    expect((await registry.getManifest(alpine, digest)).bytes).toEqual(content)
    expect(asked()).toEqual([1, 0, 0])
  })

  it.each([404, 403, 418, 429, 503])(
    'asks the next one when a mirror answers %i',
    async (status) => {
      const { asked, registry } = await startMirrored(status, 200)
      expect((await registry.getManifest(alpine, digest)).bytes).toEqual(content)
      expect(asked()).toEqual([1, 1])
    },
  )

  it('asks the next one when a mirror is gone', async () => {
    const { asked, endpoints, registry } = await startMirrored(200, 200)
    await endpoints[0]?.close()
    expect((await registry.getManifest(alpine, 'a')).bytes).toEqual(content)
    expect(asked()).toEqual([0, 1])
  })

  it.each([
    ['lacks it', 404, 'not-found'],
    ['refuses it', 403, 'denied'],
    ['is out of order', 503, 'unavailable'],
  ])('takes the word of the origin alone, which %s', async (_what, status, kind) => {
    const { registry } = await startMirrored(kind === 'unavailable' ? 404 : 503, status)
    expect((await failureOf(registry.getManifest(alpine, digest))).kind).toBe(kind)
  })

  it('passes a mirror over that is out of order, longer each time, and comes back to it', async () => {
    const { asked, clock, endpoints, registry } = await startMirrored(503, 200)
    const pull = async (): Promise<number[]> => {
      await registry.getManifest(alpine, digest)
      return asked()
    }
    expect(await pull()).toEqual([1, 1])
    expect(await pull()).toEqual([0, 1])
    await clock.advance(10_000)
    expect(await pull()).toEqual([1, 1])
    await clock.advance(19_999)
    expect(await pull()).toEqual([0, 1])
    await clock.advance(1)
    const [mirror] = endpoints
    if (mirror) mirror.status = 200
    expect(await pull()).toEqual([1, 0])
    expect(await pull()).toEqual([1, 0])
  })

  it('leaves a mirror alone for as long as it wants', async () => {
    const { asked, clock, registry } = await startMirrored(429, 200)
    await registry.getManifest(alpine, digest)
    await clock.advance(59_999)
    await registry.getManifest(alpine, digest)
    expect(asked()).toEqual([1, 2])
  })

  it('does not pass a mirror over for what it lacks', async () => {
    const { asked, registry } = await startMirrored(404, 200)
    await registry.getManifest(alpine, digest)
    await registry.getManifest(alpine, digest)
    expect(asked()).toEqual([2, 2])
  })

  it('comes back early to a mirror that it passed over when the origin is out of order too', async () => {
    const { asked, endpoints, registry } = await startMirrored(503, 503)
    await failureOf(registry.getManifest(alpine, digest))
    const [mirror] = endpoints
    if (mirror) mirror.status = 200
    asked()
    expect((await registry.getManifest(alpine, digest)).bytes).toEqual(content)
    expect(asked()).toEqual([1, 1])
  })

  it('passes on that the caller has left, and asks nobody else', async () => {
    const { asked, registry } = await startMirrored(200, 200)
    const left = new Error('left')
    const call = registry.getBlob(alpine, digest, { signal: AbortSignal.abort(left) })
    await expect(call).rejects.toBe(left)
    expect(asked()).toEqual([0, 0])
  })

  it('leaves the origin a share of the time that a client still waits', async () => {
    const { asked, clock, registry } = await startMirrored(200, 200)
    const spent = registry.getManifest(alpine, digest, { deadlineMs: clock.monotonic() })
    expect((await failureOf(spent)).kind).toBe('timeout')
    const seen: (number | undefined)[] = []
    const endpoints = ['a', 'b', 'origin'].map((name) =>
      stub(name, (options) => {
        seen.push(options?.deadlineMs)
        return Promise.reject(new UpstreamError('timeout', 'too late'))
      }),
    )
    const shared = new MirroredRegistry(
      { clock, logger: pino({ level: 'silent' }) },
      { name: 'docker.io', endpoints },
    )
    const deadlineMs = clock.monotonic() + 24_000
    await failureOf(shared.getManifest(alpine, digest, { deadlineMs }))
    expect(seen.map((at) => (at ?? 0) - clock.monotonic())).toEqual([8_000, 12_000, 24_000])
    expect(asked()).toEqual([0, 0])
  })

  it('saves pulls only when nobody else may be asked, and tells what each endpoint suffers from', () => {
    const few = new UpstreamError('rate-limited', 'few pulls are left')
    const [willing, unwilling] = [undefined, few].map((reluctance) =>
      stub('mirror', () => Promise.reject(few), { reluctance }),
    )
    const origin = stub('origin', () => Promise.reject(few), {
      reluctance: few,
      problems: ['it hurts'],
    })
    const [eager, careful] = [willing, unwilling].map(
      (mirror) =>
        new MirroredRegistry(
          { clock: new FakeClock(), logger: pino({ level: 'silent' }) },
          { name: 'docker.io', endpoints: [mirror ?? origin, origin] },
        ),
    )
    expect(eager?.reluctance('HEAD')).toBeUndefined()
    expect(careful?.reluctance('HEAD')).toBe(few)
    expect(careful?.problems).toEqual(['origin: it hurts'])
  })
})
