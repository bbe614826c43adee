// The bad days that users meet most, and what each client makes of them: whether its pull completes
// through the cache, or around it where the client knows another endpoint, or fails, and says what is true.

import { afterAll, beforeAll, describe, expect, it } from 'vitest'
import { waitFor } from '../support/wait-for.ts'
import { Cache } from './support/cache.ts'
import { CLIENTS, ClientSet, type ClientName, type PulledImage } from './support/clients.ts'
import type { CountingProxy } from './support/counting-proxy.ts'
import type { Fault } from './support/faults.ts'
import { CommandError } from './support/processes.ts'
import { SmallDisk } from './support/small-disk.ts'
import { asPushed, nameOf, Upstream, type PushedImage } from './support/upstream.ts'
import { openWorkspace } from './support/workspace.ts'

const DISK_MIB = 96
/** One layer: skopeo asks for one after the other, and here all that belongs to a pull is held at once. */
const LAYER_SIZES_BYTES = [300_000]
const LAYER_MIN_BYTES = 100_000

const THROUGH = 'through the cache'
const AROUND = 'around the cache'

/** Or what the failing client says. */
type Outcome = typeof THROUGH | typeof AROUND | RegExp

type Outcomes = Readonly<Record<'docker' | 'containerd' | 'podman' | 'skopeo', Outcome>>

interface Day {
  readonly name: string
  readonly begin: () => Promise<void> | void
  /** While the pulls run. */
  readonly meanwhile?: () => Promise<void>
  readonly end?: () => Promise<void> | void
  /** Of an image that the cache does not have. */
  readonly unknown?: Outcomes
  /** Of one that it has. */
  readonly cached?: Outcomes
  /** What the cache answers to those who ask for a manifest that it does not have. */
  readonly unknownStatus?: number
  /** Whoever failed has it once the client is told to pull again. */
  readonly isOverSoon?: boolean
  /** Instead of failing. */
  readonly mayGoAround?: boolean
  /** How long any of these pulls may take: several times what it takes, so that only a hang is longer. */
  readonly atMostMs: number
}

const all = (outcome: Outcome): Outcomes => {
  return { docker: outcome, containerd: outcome, podman: outcome, skopeo: outcome }
}

const TOO_MANY: Fault = { kind: 'status', status: 429, retryAfterS: 30 }

/** What a client says depends on what it is waiting for just then: bytes, headers, or a connection. */
const KILLED = /EOF|connection re(set|fused)|broken pipe/

const DAYS: readonly Day[] = [
  {
    name: 'the upstream answers 429',
    begin: () => always(TOO_MANY),
    unknown: all(AROUND),
    cached: all(THROUGH),
    unknownStatus: 503,
    atMostMs: 60_000,
  },
  {
    name: 'the upstream answers 429 for blobs alone',
    begin: () => {
      upstream.counts.faultOf = ({ path }) => (path.includes('/blobs/') ? TOO_MANY : undefined)
    },
    // Podman and skopeo ask for blobs only where they got the manifest.
    unknown: { docker: AROUND, containerd: AROUND, podman: /503/, skopeo: /503/ },
    atMostMs: 90_000,
  },
  {
    name: 'the upstream answers 503',
    begin: () => always({ kind: 'status', status: 503 }),
    unknown: all(AROUND),
    cached: all(THROUGH),
    unknownStatus: 503,
    atMostMs: 60_000,
  },
  {
    name: 'the upstream does not answer',
    begin: () => always({ kind: 'silence' }),
    unknown: all(AROUND),
    cached: all(THROUGH),
    unknownStatus: 503,
    atMostMs: 120_000,
  },
  {
    name: 'the upstream breaks off in each layer',
    begin: () => oncePerLayer({ kind: 'cut', afterBytes: 100_000 }),
    meanwhile: everyLayerAskedForAgain,
    unknown: all(THROUGH),
    atMostMs: 60_000,
  },
  {
    name: 'the upstream sends a wrong byte in each layer, once',
    begin: () => oncePerLayer({ kind: 'wrong-byte' }),
    unknown: {
      docker: THROUGH,
      containerd: /unexpected commit digest/,
      podman: /unexpected EOF/,
      skopeo: /unexpected EOF/,
    },
    isOverSoon: true,
    atMostMs: 60_000,
  },
  {
    name: 'the token server is down',
    begin: () => upstream.tokens.server.stop(),
    end: () => upstream.tokens.server.start(),
    unknown: all(AROUND),
    cached: all(THROUGH),
    unknownStatus: 503,
    atMostMs: 60_000,
  },
  {
    name: 'the upstream is gone',
    begin: () => upstream.goAway(),
    end: () => upstream.comeBack(),
    unknown: all(AROUND),
    cached: all(THROUGH),
    unknownStatus: 503,
    atMostMs: 60_000,
  },
  {
    name: 'the tag was deleted',
    begin: () => cachedImages().forEach((image) => upstream.deleteTag(image)),
    cached: {
      // Docker tells of the last endpoint only: Docker Hub, which it cannot reach here.
      docker: /registry-1\.docker\.io/,
      containerd: /not found/,
      podman: /manifest unknown/,
      skopeo: /manifest unknown/,
    },
    atMostMs: 60_000,
  },
  {
    name: 'the disk is full',
    begin: () => disk.fill(),
    end: () => disk.makeRoom(),
    unknown: all(THROUGH),
    cached: all(THROUGH),
    atMostMs: 60_000,
  },
  {
    name: 'the cache restarts in the middle of the pull',
    begin: holdLayers,
    meanwhile: async () => {
      await everythingUnderWay()
      const restarted = cache.restart()
      // Skopeo asks for the next thing while the others keep the cache from ending.
      held.get('skopeo')?.release()
      await pulls.get('skopeo unknown')
      releaseAll()
      await restarted
    },
    unknown: {
      docker: THROUGH,
      containerd: THROUGH,
      podman: THROUGH,
      skopeo: /connection refused/,
    },
    isOverSoon: true,
    atMostMs: 60_000,
  },
  {
    name: 'the cache is killed in the middle of the pull, and starts again',
    begin: holdLayers,
    meanwhile: async () => {
      await everythingUnderWay()
      await cache.crash()
      // Docker waits for some seconds before it asks again.
      const others = [...pulls].filter(([cell]) => !cell.startsWith('docker'))
      await Promise.all(others.map(([, pull]) => pull))
      releaseAll()
      await cache.start()
    },
    unknown: {
      docker: THROUGH,
      containerd: AROUND,
      podman: KILLED,
      skopeo: KILLED,
    },
    // Whoever has not got the headers of a layer yet takes it for a mirror that is down.
    mayGoAround: true,
    isOverSoon: true,
    atMostMs: 60_000,
  },
]

const STATES = ['unknown', 'cached'] as const
type State = (typeof STATES)[number]

interface Pull {
  readonly outcome: typeof THROUGH | typeof AROUND | 'failed'
  readonly pulled?: PulledImage
  readonly output?: string
  readonly tookMs: number
}

const workspace = openWorkspace()
const names = CLIENTS.filter((name) => name !== 'buildah')
let upstream: Upstream
let openDoor: CountingProxy
let disk: SmallDisk
let cache: Cache
let clients: ClientSet

/** What the clients pull on the day that is being tested, by client and state. */
const images = new Map<string, PushedImage>()
const pulls = new Map<string, Promise<Pull>>()
/** Layers that wait, by the client whose they are. */
const held = new Map<ClientName, { readonly until: Promise<void>; readonly release: () => void }>()

beforeAll(async () => {
  disk = new SmallDisk(workspace, DISK_MIB)
  upstream = await Upstream.start(workspace)
  openDoor = await upstream.openDoor()
  cache = await Cache.start(workspace, upstream, {
    storage: { filesystem: { rootdirectory: `${disk.directory}/data` } },
    proxy: { tagttl: 0 },
  })
  clients = new ClientSet(workspace, { mirror: cache.address, fallback: openDoor.server.address })
  await Promise.all(names.map((name) => clients.get(name)))
})

describe.each(DAYS.map((day) => [day.name, day] as const))('when %s', (_name, day) => {
  const cells = names.flatMap((name) => {
    return STATES.flatMap((state) => {
      const expected = day[state]?.[name]
      return expected === undefined ? [] : [[name, state, expected] as const]
    })
  })

  beforeAll(async () => {
    // What the last day has taught it is forgotten: that the upstream is not worth asking, for example.
    await cache.restart()
    images.clear()
    pulls.clear()
    for (const [name, state] of cells) {
      const repository = `library/${DAYS.indexOf(day)}-${state}-${name}`
      const options = { repository, layerSizesBytes: LAYER_SIZES_BYTES, isRunnable: false }
      images.set(`${name} ${state}`, await upstream.push(options))
    }
    const cached = cells.filter(([, state]) => state === 'cached')
    await Promise.all(cached.map(([name]) => pullAndForget(name)))
    openDoor.reset()
    upstream.counts.reset()
    await day.begin()
    for (const [name, state] of cells) pulls.set(`${name} ${state}`, pull(name, state))
    await day.meanwhile?.()
  })

  afterAll(async () => {
    releaseAll()
    await Promise.all(pulls.values())
    upstream.counts.faultOf = () => undefined
    await day.end?.()
  })

  it.each(cells)('%s pulls what is %s: %s', async (name, state, expected) => {
    const done = await pulls.get(`${name} ${state}`)
    const hasGoneAround = day.mayGoAround === true && done?.outcome === AROUND
    if (hasGoneAround) {
      expect(done.pulled).toEqual(asPushed(imageOf(name, state)))
    } else if (expected instanceof RegExp) {
      expect(done?.outcome).toBe('failed')
      expect(done?.output).toMatch(expected)
    } else {
      expect(done).toMatchObject({ outcome: expected, pulled: asPushed(imageOf(name, state)) })
    }
    expect(done?.tookMs).toBeLessThan(day.atMostMs)
  })

  if (day.unknownStatus !== undefined) {
    it(`tells those who ask for what it lacks ${day.unknownStatus}`, async () => {
      await Promise.all(pulls.values())
      for (const name of names) {
        const path = `/v2/${imageOf(name, 'unknown').repository}/manifests/`
        const statuses = await waitFor(`access lines of ${path}`, () => {
          const lines = cache.accessLines().filter(({ uri }) => uri.startsWith(path))
          return lines.length > 0 && lines.map(({ status }) => status)
        })
        expect(new Set(statuses)).toEqual(new Set([day.unknownStatus]))
      }
    })
  }

  const failing = cells.filter(([, , expected]) => expected instanceof RegExp)
  if (day.isOverSoon === true && failing.length > 0) {
    it('serves those who failed when they ask again', async () => {
      for (const [name, state] of failing) {
        if ((await pulls.get(`${name} ${state}`))?.outcome !== 'failed') continue
        const done = await pull(name, state)
        expect(done).toMatchObject({ outcome: THROUGH, pulled: asPushed(imageOf(name, state)) })
      }
    })
  }
})

async function pull(name: ClientName, state: State): Promise<Pull> {
  const client = await clients.get(name)
  const image = imageOf(name, state)
  const startMs = performance.now()
  const tookMs = (): number => performance.now() - startMs
  try {
    const pulled = await client.pull(nameOf(image))
    const wentAround = [...openDoor.objectGets().values()]
      .flat()
      .some((path) => path.includes(`/${image.repository}/`))
    return { outcome: wentAround ? AROUND : THROUGH, pulled, tookMs: tookMs() }
  } catch (error) {
    const output = error instanceof CommandError ? error.output : String(error)
    return { outcome: 'failed', output, tookMs: tookMs() }
  }
}

async function pullAndForget(name: ClientName): Promise<void> {
  const client = await clients.get(name)
  const image = nameOf(imageOf(name, 'cached'))
  await client.pull(image)
  await client.remove(image)
}

function imageOf(name: ClientName, state: State): PushedImage {
  const image = images.get(`${name} ${state}`)
  if (!image) throw new Error(`nothing was pushed for ${name}`)
  return image
}

function layersOf({ objects }: PushedImage): string[] {
  return [...objects]
    .filter(([, sizeBytes]) => sizeBytes > LAYER_MIN_BYTES)
    .map(([digest]) => digest)
}

function always(fault: Fault): void {
  upstream.counts.faultOf = () => fault
}

/** The second request for a layer, and all further ones, are answered well. */
function oncePerLayer(fault: Fault): void {
  const layers = new Set([...images.values()].flatMap(layersOf))
  upstream.counts.faultOf = ({ method, path }) => {
    const isFirst = method === 'GET' && layers.delete(path.split('/').at(-1) ?? '')
    return isFirst ? fault : undefined
  }
}

/** From where it broke off, or from the start: a reset may take with it all that was sent. */
async function everyLayerAskedForAgain(): Promise<void> {
  const layers = [...images.values()].flatMap(layersOf)
  await waitFor(
    'every layer to be asked for again',
    () => {
      const asked = upstream.counts.objectGets()
      return layers.every((digest) => (asked.get(digest)?.length ?? 0) > 1)
    },
    { deadlineMs: 30_000 },
  )
}

/** Layers begin to arrive, and wait. */
function holdLayers(): void {
  const owners = new Map<string, ClientName>()
  for (const name of names) {
    let resolveUntil: (() => void) | undefined
    const until = new Promise<void>((resolve) => (resolveUntil = resolve))
    held.set(name, { until, release: () => resolveUntil?.() })
    for (const digest of layersOf(imageOf(name, 'unknown'))) owners.set(digest, name)
  }
  upstream.counts.faultOf = ({ path }) => {
    const owner = held.get(owners.get(path.split('/').at(-1) ?? '') ?? 'buildah')
    return owner && { kind: 'wait', until: owner.until }
  }
}

function releaseAll(): void {
  for (const { release } of held.values()) release()
  held.clear()
}

/** Podman and skopeo ask for the configuration last: all else has been asked for. */
async function everythingUnderWay(): Promise<void> {
  const awaited = names.flatMap((name) => {
    const { objects, configDigest } = imageOf(name, 'unknown')
    const isLast = name === 'podman' || name === 'skopeo'
    return [...objects.keys()].filter((digest) => !(isLast && digest === configDigest))
  })
  await waitFor(
    'every layer to be under way',
    () => {
      const asked = upstream.counts.objectGets()
      return awaited.every((digest) => asked.has(digest))
    },
    { deadlineMs: 30_000 },
  )
}

function cachedImages(): PushedImage[] {
  return [...images].filter(([cell]) => cell.endsWith(' cached')).map(([, image]) => image)
}
