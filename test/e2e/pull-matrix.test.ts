// Every client pulls every kind of image through one cache, cold and warm, and then with the upstream
// gone. The tests build on one another: they run in the order in which they stand here.

import { beforeAll, describe, expect, it } from 'vitest'
import { Cache } from './support/cache.ts'
import { CLIENTS, ClientSet, type ClientName, type PulledImage } from './support/clients.ts'
import { asPushed, nameOf, Upstream, type PushedImage } from './support/upstream.ts'
import { openWorkspace } from './support/workspace.ts'

const KINDS = {
  'a schema 2 image': { kind: 'docker' },
  'an OCI index': { kind: 'oci', isMultiPlatform: true },
  'a Docker manifest list': { kind: 'docker', isMultiPlatform: true },
} as const

const KIND_NAMES = ['a schema 2 image', 'an OCI index', 'a Docker manifest list'] as const

/** About 500 MB in 8 layers. */
const BIG_LAYERS_BYTES = Array.from({ length: 8 }, () => 62_500_000)

const workspace = openWorkspace()
let upstream: Upstream
let cache: Cache
let clients: ClientSet
let big: PushedImage
/** Each client has images of its own, so that each one meets a cache that lacks them. */
const images = new Map<string, PushedImage>()
const pushed: PushedImage[] = []

beforeAll(async () => {
  upstream = await Upstream.start(workspace)
  for (const client of CLIENTS) {
    for (const [i, kind] of KIND_NAMES.entries()) {
      const image = await upstream.push({ repository: `library/${client}-${i}`, ...KINDS[kind] })
      images.set(`${client}: ${kind}`, image)
      pushed.push(image)
    }
  }
  big = await upstream.push({
    repository: 'library/big',
    layerSizesBytes: BIG_LAYERS_BYTES,
    isRunnable: false,
  })
  pushed.push(big)
  cache = await Cache.start(workspace, upstream)
  clients = new ClientSet(workspace, { mirror: cache.address })
})

describe.each(CLIENTS)('%s', (client) => {
  it.each(KIND_NAMES)('pulls %s, cold and then warm, as it was pushed', async (kind) => {
    const image = imageOf(client, kind)
    expect(await pullAnew(client, image)).toEqual(asPushed(image))
    const sent = upstream.counts.objectGets()
    expect(await pullAnew(client, image)).toEqual(asPushed(image))
    expect(upstream.counts.objectGets()).toEqual(sent)
  })

  it('pulls an image of 500 MB', async () => {
    expect(await pullAnew(client, big)).toEqual(asPushed(big))
  })
})

it.each(CLIENTS.filter((name) => name === 'docker' || name === 'podman'))(
  '%s runs a container of an image that came through the cache',
  async (name) => {
    const client = await clients.get(name)
    const image = nameOf(imageOf(name, 'an OCI index'))
    expect(await client.run?.(image, ['echo', 'hello'])).toBe('hello\n')
  },
)

describe('an artifact that refers to an image', () => {
  let subject: PushedImage
  let artifact: PushedImage

  beforeAll(async () => {
    subject = await upstream.push({
      repository: 'library/signed',
      kind: 'oci',
      isMultiPlatform: true,
    })
    artifact = await upstream.pushArtifact(subject)
    pushed.push(artifact)
  })

  it('is announced as on the upstream, which lacks the referrers API', async () => {
    const path = `/v2/${subject.repository}/referrers/${subject.top.digest}`
    expect((await fetch(`${cache.url}${path}`)).status).toBe(404)
  })

  it.runIf(CLIENTS.includes('skopeo'))('is found by its tag and copied by skopeo', async () => {
    const skopeo = await clients.get('skopeo')
    expect(await skopeo.manifest(nameOf(artifact))).toBe(artifact.top.bytes.toString())
    const { manifests } = JSON.parse(artifact.top.bytes.toString())
    const { digest } = await skopeo.pull(`${artifact.repository}@${manifests[0].digest}`)
    expect(digest).toBe(manifests[0].digest)
  })

  it.runIf(CLIENTS.includes('containerd'))('is found by its tag and fetched by ctr', async () => {
    const containerd = await clients.get('containerd')
    await containerd.fetch(nameOf(artifact))
    const digests = await containerd.contentDigests()
    expect(digests).toEqual(expect.arrayContaining([...artifact.objects.keys()]))
  })
})

describe('the upstream, after all these pulls', () => {
  it('has sent each manifest and each blob exactly once', () => {
    const sent = upstream.counts.objectGets()
    expect([...sent.values()].filter(({ length }) => length > 1)).toEqual([])
    expect([...big.objects.keys()].filter((digest) => !sent.has(digest))).toEqual([])
  })

  it('was never asked for a manifest by its tag with GET, which Docker Hub counts', () => {
    const references = [...upstream.counts.objectGets().keys()]
    expect(references.filter((reference) => !reference.startsWith('sha256:'))).toEqual([])
  })
})

describe('with the upstream gone', () => {
  beforeAll(async () => {
    // Nobody waits for a tag to grow stale: a cache that starts anew has no fresh ones.
    await upstream.goAway()
    await cache.restart()
  })

  it.each(CLIENTS)('%s pulls again what it had removed', async (name) => {
    for (const kind of KIND_NAMES) {
      const image = imageOf(name, kind)
      expect(await pullAnew(name, image)).toEqual(asPushed(image))
    }
    expect(await pullAnew(name, big)).toEqual(asPushed(big))
  })

  it('lists the repositories that it has', async () => {
    const { repositories } = await getJson('/v2/_catalog?n=1000')
    const expected = pushed.map(({ repository }) => repository)
    expect(repositories).toEqual([...new Set(expected)].sort())
  })

  it('lists the tags that it has', async () => {
    expect(await getJson('/v2/library/big/tags/list')).toEqual({
      name: 'library/big',
      tags: ['latest'],
    })
  })
})

function imageOf(client: ClientName, kind: keyof typeof KINDS): PushedImage {
  const image = images.get(`${client}: ${kind}`)
  if (!image) throw new Error(`nothing was pushed for ${client}`)
  return image
}

/** Pulls what the client does not have, or has no longer. */
async function pullAnew(name: ClientName, image: PushedImage): Promise<PulledImage> {
  const client = await clients.get(name)
  const pulled = await client.pull(nameOf(image))
  await client.remove(nameOf(image))
  return pulled
}

async function getJson(path: string): Promise<Record<string, unknown>> {
  const response = await fetch(`${cache.url}${path}`)
  expect(response.status).toBe(200)
  return JSON.parse(await response.text())
}
