// A volume changes hands: docker-registry fills it, Layover goes on with it, and docker-registry again, with the same
// file at the same address. The volumes are those that the real program writes.

import {
  cpSync,
  existsSync,
  mkdirSync,
  readFileSync,
  rmSync,
  truncateSync,
  utimesSync,
  writeFileSync,
} from 'node:fs'
import { dirname, join } from 'node:path'
import { beforeAll, beforeEach, describe, expect, it } from 'vitest'
import { waitFor } from '../support/wait-for.ts'
import { Cache, IS_COMPARISON } from './support/cache.ts'
import { freePort } from './support/loopback-server.ts'
import { Daemon } from './support/processes.ts'
import { Upstream, type PushedImage, type PushOptions } from './support/upstream.ts'
import { orphansOf, readVolume, wrongBlobs } from './support/volume.ts'
import { pullWhole, type PulledObject } from './support/whole-pull.ts'
import { openWorkspace } from './support/workspace.ts'

const HOUR_MS = 3_600_000
const DAY_MS = 24 * HOUR_MS
/** What registry:2 always has, whatever its file says. */
const TTL_MS = 7 * DAY_MS
const REGISTRY = 'docker/registry/v2'

interface Entry {
  readonly Key: string
  readonly ExpiryData: string
  readonly EntryType: number
}

const workspace = openWorkspace()
let upstream: Upstream
/** One image for one platform, and one for two. */
let images: PushedImage[]
/** docker-registry, and what it has filled. */
let mirror: Cache
let mirrorRoot: string
/** A copy of that. */
let pristine: string

beforeAll(async () => {
  upstream = await Upstream.start(workspace)
  images = [
    await push({ repository: 'library/single', layerSizesBytes: [20_000, 900_000] }),
    await push({ repository: 'library/multi', kind: 'oci', isMultiPlatform: true }),
  ]
  ;({ cache: mirror, root: mirrorRoot } = await startFilled())
  pristine = workspace.path('pristine')
  cpSync(mirrorRoot, pristine, { recursive: true })
})

beforeEach(async () => {
  await upstream.comeBack()
  upstream.counts.reset()
})

/** Nothing in common with others: while registry stores a blob for one repository, it stores it for no other. */
const push = (options: PushOptions): Promise<PushedImage> =>
  upstream.push({ ...options, isRunnable: false })
const hexOf = (digest: string): string => digest.slice('sha256:'.length)
const blobDirectory = (root: string, digest: string): string =>
  join(root, REGISTRY, 'blobs/sha256', hexOf(digest).slice(0, 2), hexOf(digest))
const repositoryDirectory = (root: string, name: string): string =>
  join(root, REGISTRY, 'repositories', name)
const entriesOf = (some: readonly PushedImage[]): string[] =>
  some.flatMap(({ objects, repository }) => [...objects.keys()].map((d) => `${repository}@${d}`))

function write(path: string, content: string): void {
  mkdirSync(dirname(path), { recursive: true })
  writeFileSync(path, content)
}

/** Nothing while it is missing, or being written. */
function readState(root: string): Record<string, Entry> {
  try {
    return JSON.parse(readFileSync(join(root, 'scheduler-state.json'), 'utf8'))
  } catch {
    return {}
  }
}

const expiryOf = ({ ExpiryData }: Entry): number => Date.parse(ExpiryData)

/** Asks for everything by digest. */
async function pullByDigest(cache: Cache, some = images): Promise<PulledObject[]> {
  const pulls = some.map(({ repository, top }) => pullWhole(cache.url, repository, top.digest))
  return (await Promise.all(pulls)).flat()
}

/** @returns what the cache says of each tag */
async function pullByTag(cache: Cache, some = images): Promise<(string | undefined)[]> {
  const pulls = some.map(async ({ repository, tag, top }) => {
    const [manifest] = await pullWhole(cache.url, repository, tag)
    expect(manifest?.digest).toBe(top.digest)
    return manifest?.cache
  })
  return Promise.all(pulls)
}

/** docker-registry in proxy mode on a new volume, with all images pulled through it and written down. */
async function startFilled(): Promise<{ cache: Cache; root: string }> {
  const root = workspace.makeDirectory('mirror')
  const storage = { filesystem: { rootdirectory: root }, delete: { enabled: true } }
  const cache = await Cache.start(workspace, upstream, { storage }, 'registry')
  await pullByTag(cache)
  // What has an entry is stored; the file is written every five seconds, in place.
  await waitFor(
    'registry to have written down all that it has',
    () => {
      const noted = new Set(Object.keys(readState(root)))
      return entriesOf(images).every((entry) => noted.has(entry))
    },
    { deadlineMs: 30_000 },
  )
  return { cache, root }
}

const summaryOf = (cache: Cache): Promise<string> =>
  waitFor('the summary of the volume', () => {
    return cache.logLines().find(({ msg }) => msg.startsWith('found '))?.msg
  })

/** Manifests and blobs that were asked for, by whatever method. */
const objectRequests = (): string[] =>
  upstream.counts.requests.flatMap(({ method, path, reference, status }) => {
    return reference === undefined || status === 401 ? [] : [`${method} ${path}`]
  })

describe.skipIf(IS_COMPARISON)('a volume that registry:2 has filled as a mirror', () => {
  let added: PushedImage

  it('is all hits from the first request, and the upstream is asked for nothing', async () => {
    await mirror.handOverTo('layover')

    const pulled = await pullByDigest(mirror)

    expect(pulled.filter((object) => object.cache !== 'HIT')).toEqual([])
    expect(objectRequests()).toEqual([])
  })

  it('has the tags too: one question each, and no content', async () => {
    expect(await pullByTag(mirror)).not.toContain('MISS')

    const asked = objectRequests().sort()
    expect(asked).toEqual(
      images.map(({ repository, tag }) => `HEAD /v2/${repository}/manifests/${tag}`).sort(),
    )
  })

  it('is told of in one line', async () => {
    const objects = new Set(images.flatMap((image) => [...image.objects.keys()]))
    const links = entriesOf(images).length

    const pattern = `^found ${objects.size} blobs \\(0\\.0 GiB\\) and ${links} links in 2 repositories in the volume$`
    expect(await summaryOf(mirror)).toMatch(new RegExp(pattern))
  })

  it('goes back with what was added to it, and registry needs no upstream for any of it', async () => {
    added = await push({ repository: 'library/added', layerSizesBytes: [50_000, 600_000] })
    await pullByTag(mirror, [added])
    const all = [...images, added]
    await waitFor('what is new to be stored', () => {
      const { links } = readVolume(mirrorRoot)
      return entriesOf([added]).every((entry) => links.has(entry))
    })

    await mirror.handOverTo('registry')
    await upstream.goAway()

    await pullByDigest(mirror, all)
    await pullByTag(mirror, all)
    expect(Object.keys(readState(mirrorRoot)).sort()).toEqual(entriesOf(all).sort())
    expect(wrongBlobs(mirrorRoot)).toEqual([])
    expect(orphansOf(readVolume(mirrorRoot))).toEqual([])
  })

  it('comes again, after that', async () => {
    await mirror.handOverTo('layover')
    await upstream.goAway()
    const all = [...images, added]

    expect((await pullByDigest(mirror, all)).filter((object) => object.cache !== 'HIT')).toEqual([])
    expect(await pullByTag(mirror, all)).toEqual(all.map(() => 'STALE'))
  })
})

/** What the file that registry leaves may say, and when what it says lies. */
const STATE_FILES: readonly [string, (state: Record<string, Entry>) => string | undefined][] = [
  ['says that all of it is overdue', (state) => stateOf(state, () => -DAY_MS)],
  [
    'has lost half, as when registry:2 fails to expire it, and is late for the rest',
    (state) => stateOf(halfOf(state), () => -DAY_MS),
  ],
  ['is missing', () => undefined],
  ['is empty', () => ''],
  ['is torn', (state) => JSON.stringify(state).slice(0, -100)],
  [
    'is of registry:3, with nanoseconds and a zone, hours before the end',
    (state) => stateOf(state, () => HOUR_MS, '123456+02:00'),
  ],
]

/** @param zone ends the time, behind its milliseconds */
function stateOf(
  state: Record<string, Entry>,
  leftMs: (key: string) => number,
  zone = 'Z',
): string {
  const offsetMs = zone === 'Z' ? 0 : 2 * HOUR_MS
  const entries = Object.values(state).map((entry) => {
    const atMs = Date.now() + leftMs(entry.Key) + offsetMs
    const text = new Date(atMs).toISOString().replace('Z', zone)
    return [entry.Key, { ...entry, ExpiryData: text }] as const
  })
  return JSON.stringify(Object.fromEntries(entries))
}

function halfOf(state: Record<string, Entry>): Record<string, Entry> {
  return Object.fromEntries(Object.entries(state).filter((_, at) => at % 2 === 0))
}

describe.skipIf(IS_COMPARISON)('a volume whose scheduler-state.json', () => {
  it.each(STATE_FILES)('%s loses nothing, and nothing on the first day', async (_, fileOf) => {
    const root = copyOf(pristine)
    const file = join(root, 'scheduler-state.json')
    const content = fileOf(readState(pristine))
    if (content === undefined) rmSync(file)
    else writeFileSync(file, content)

    await upstream.goAway()
    const cache = await startOn(root)
    await summaryOf(cache)
    await pullByDigest(cache, images.slice(0, 1))
    await cache.stop()

    const expected = entriesOf(images).sort()
    expect(Object.keys(readState(root)).sort()).toEqual(expected)
    const left = Object.values(readState(root)).map((entry) => expiryOf(entry) - Date.now())
    // Not all at once either.
    expect(Math.min(...left)).toBeGreaterThan(TTL_MS / 2 - HOUR_MS)
    expect(Math.max(...left)).toBeLessThanOrEqual(TTL_MS)
    expect(new Set(left.map((leftMs) => Math.round(leftMs / HOUR_MS))).size).toBeGreaterThan(1)
    expect([...readVolume(root).links].sort()).toEqual(expected)
  })
})

interface IndexJson {
  readonly manifests: readonly { digest: string; platform: { architecture: string } }[]
}

/** A manifest of an image for several platforms. */
function childOf({ top }: PushedImage, architecture: string): string {
  const { manifests }: IndexJson = JSON.parse(top.bytes.toString())
  return manifests.find(({ platform }) => platform.architecture === architecture)?.digest ?? ''
}

describe.skipIf(IS_COMPARISON)('a damaged volume', () => {
  it('is mended, and told of in one line', async () => {
    const root = copyOf(pristine)
    const [single, multi] = images
    if (!single || !multi) throw new Error('no images')
    const uploads = join(repositoryDirectory(root, multi.repository), '_uploads')
    const tags = join(repositoryDirectory(root, multi.repository), '_manifests/tags')
    const missing = childOf(multi, 'arm64')
    const amd64 = childOf(multi, 'amd64')
    const { layers }: { layers: { digest: string }[] } = JSON.parse(
      readFileSync(join(blobDirectory(root, amd64), 'data'), 'utf8'),
    )
    const cut = layers[0]?.digest ?? ''
    const unknown = `sha256:${'0'.repeat(64)}`
    // The tag of an image whose manifest is torn dangles too.
    truncateSync(join(blobDirectory(root, single.top.digest), 'data'), 100)
    truncateSync(join(blobDirectory(root, cut), 'data'), 1000)
    rmSync(blobDirectory(root, missing), { recursive: true })
    mkdirSync(blobDirectory(root, unknown), { recursive: true })
    write(join(tags, 'gone/current/link'), unknown)
    for (const [upload, ageMs] of [
      ['old', 8 * DAY_MS],
      ['new', HOUR_MS],
    ] as const) {
      write(join(uploads, upload, 'startedat'), new Date(Date.now() - ageMs).toISOString())
      write(join(uploads, upload, 'data'), 'some bytes of a layer')
      const atSeconds = (Date.now() - ageMs) / 1000
      utimesSync(join(uploads, upload), atSeconds, atSeconds)
    }

    const cache = await startOn(root)

    const told = (await summaryOf(cache)).split('; ')[1]
    expect(told).toBe(
      [
        '2 damaged blobs set aside',
        '1 images without all of their layers',
        '1 indexes without all of their platforms',
        '2 tags without a manifest',
        '1 links without bytes',
        '1 empty blob directories removed',
        '1 unfinished uploads removed: all of it is fetched again when asked for',
      ].join(', '),
    )
    expect(existsSync(join(uploads, 'old'))).toBe(false)
    expect(existsSync(join(uploads, 'new'))).toBe(true)
    expect(existsSync(blobDirectory(root, unknown))).toBe(false)

    await pullByTag(cache)
    const gets = [...upstream.counts.objectGets().keys()].sort()
    expect(gets).toEqual([single.top.digest, missing, cut].sort())
    const gone = await fetch(`${cache.url}/v2/${multi.repository}/manifests/gone`)
    expect(gone.status).toBe(404)
    await waitFor('what was fetched again to be stored', () => {
      const { blobs } = readVolume(root)
      return gets.every((digest) => blobs.has(digest))
    })
    expect(wrongBlobs(root)).toEqual([])
    expect(orphansOf(readVolume(root))).toEqual([])
  })
})

describe.skipIf(IS_COMPARISON)("a plain registry's volume", () => {
  it('is all hits for Layover, and goes back with what was added to it', async () => {
    const root = copyOf(workspace.path('upstream'))
    const added = await push({ repository: 'library/later', layerSizesBytes: [70_000] })
    const cache = await startOn(root)

    expect((await pullByDigest(cache)).filter((object) => object.cache !== 'HIT')).toEqual([])
    expect(objectRequests()).toEqual([])
    await upstream.goAway()
    expect(await pullByTag(cache)).toEqual(images.map(() => 'STALE'))
    await upstream.comeBack()
    await pullByTag(cache, [added])
    await cache.stop()

    const url = await startPlainRegistry(root)
    for (const { repository, tag, top } of [...images, added]) {
      const [manifest] = await pullWhole(url, repository, tag)
      expect(manifest?.digest).toBe(top.digest)
    }
  })
})

let copies = 0
function copyOf(volume: string): string {
  const root = workspace.path(`copy-${copies++}`)
  cpSync(volume, root, { recursive: true, preserveTimestamps: true })
  return root
}

/** Layover on a volume of the test's own making. */
function startOn(root: string): Promise<Cache> {
  const storage = { filesystem: { rootdirectory: root } }
  return Cache.start(workspace, upstream, { storage }, 'layover')
}

/** No mirror of anything. @returns its URL */
async function startPlainRegistry(root: string): Promise<string> {
  const address = `127.0.0.1:${await freePort()}`
  const config = workspace.writeFile('plain.yml', {
    version: 0.1,
    storage: { filesystem: { rootdirectory: root } },
    http: { addr: address },
  })
  await Daemon.start(workspace, {
    name: 'plain',
    command: 'docker-registry',
    args: ['serve', config],
    isReady: () => fetch(`http://${address}/v2/`),
  })
  return `http://${address}`
}
