// What an operator names goes, and nothing else; while it goes, clients get what they ask for.

import { mkdir, stat, writeFile } from 'node:fs/promises'
import { dirname, join } from 'node:path'
import { describe, expect, it } from 'vitest'
import { ask, purge, untilKnown } from '../support/admin.ts'
import { FakeClock } from '../support/fake-clock.ts'
import type { FakeUpstream } from '../support/fake-upstream.ts'
import {
  blobOf,
  buildArtifact,
  buildImage,
  buildIndex,
  manifestFrom,
  descriptorOf,
  type TestImage,
} from '../support/images.ts'
import { blobFile, startLayover, type Layover, type LayoverOptions } from '../support/layover.ts'
import { makeTempDirectory } from '../support/temp-directory.ts'
import { waitFor } from '../support/wait-for.ts'

const NAME = 'library/alpine'
const HOUR_MS = 3_600_000
const PINS = { storage: { retention: [{ match: 'library/node:lts', pin: true }] } }

async function start(
  options: LayoverOptions = {},
): Promise<{ layover: Layover; upstream: FakeUpstream; root: string }> {
  const { layover, upstream } = await startLayover(options)
  const root = layover.rootDirectory
  const { clock } = options
  if (clock instanceof FakeClock) await clock.advance(1)
  await untilKnown(root)
  return { layover, upstream, root }
}

/** Makes images at the upstream, and pulls each. */
async function pulled(
  { layover, upstream }: { layover: Layover; upstream: FakeUpstream },
  images: readonly (readonly [name: string, tag: string, image: TestImage])[],
): Promise<void> {
  for (const [name, tag, image] of images) {
    upstream.addImage(name, tag, image)
    await layover.pull(name, tag, image)
  }
}

async function isStored(layover: Layover, { digest }: { digest: string }): Promise<boolean> {
  const file = join(layover.rootDirectory, blobFile(digest))
  return stat(file).then(
    () => true,
    () => false,
  )
}

function partsOf({ config, layers, manifest }: TestImage): { digest: string }[] {
  return [manifest, config, ...layers]
}

/** What is on disk for a digest. */
async function diskBytes(
  layover: Layover,
  digests: readonly { digest: string }[],
): Promise<number> {
  let sum = 0
  for (const { digest } of digests) {
    sum += (await stat(join(layover.rootDirectory, blobFile(digest)))).blocks * 512
  }
  return sum
}

/** An image with its own config and another one's layers. */
function sharing({ layers }: TestImage, seed: string): TestImage {
  const own = buildImage({ seed, layers: [2_000] })
  const all = [...layers, ...own.layers]
  const layerType = 'application/vnd.oci.image.layer.v1.tar+gzip'
  const manifest = manifestFrom('application/vnd.oci.image.manifest.v1+json', {
    config: descriptorOf('application/vnd.oci.image.config.v1+json', own.config),
    layers: all.map((layer) => descriptorOf(layerType, layer)),
  })
  return { manifest, config: own.config, layers: all }
}

describe('purging one image', () => {
  it('removes its tag, manifest, config and layers, and frees what they took', async () => {
    const all = await start()
    const { layover, root, upstream } = all
    const [image, other] = [buildImage({ layers: [300_000, 100] }), buildImage({ seed: 'other' })]
    await pulled(all, [
      [NAME, '3', image],
      [NAME, '4', other],
    ])
    const bytes = await diskBytes(layover, partsOf(image))
    const { items, summary } = await purge(root, { image: 'library/alpine:3' })
    expect(summary).toMatchObject({ removed: 4, unlinked: 0, inUse: 0 })
    // With links and the tag.
    expect(summary.freedBytes).toBeGreaterThan(bytes)
    expect(items[0]).toMatchObject({ kind: 'manifest', repository: NAME, tags: ['3'] })
    for (const part of partsOf(image)) expect(await isStored(layover, part)).toBe(false)
    for (const part of partsOf(other)) expect(await isStored(layover, part)).toBe(true)
    expect((await layover.files('docker')).filter((file) => file.includes('/tags/3/'))).toEqual([])
    expect(await layover.metric('layover_purged_blobs_total')).toBe(4)
    upstream.reset()
    expect(
      (await layover.pull(NAME, '3', image))[0]?.equals(image.layers[0]?.bytes ?? Buffer.alloc(0)),
    ).toBe(true)
    expect(upstream.count({ method: 'GET' })).toBe(4)
    await layover.pull(NAME, '4', other)
    expect(upstream.count({ method: 'GET' })).toBe(4)
  })

  it('tells in a dry run exactly what it then removes, and removes nothing', async () => {
    const all = await start()
    const { layover, root } = all
    await pulled(all, [[NAME, '3', buildImage({ layers: [300_000] })]])
    const files = await layover.files('docker')
    const dry = await purge(root, { image: `${NAME}:3`, dryRun: true })
    expect(dry.summary.isDryRun).toBe(true)
    expect(await layover.files('docker')).toEqual(files)
    const real = await purge(root, { image: `${NAME}:3` })
    expect(real.items).toEqual(dry.items)
    expect(real.summary).toEqual({ ...dry.summary, isDryRun: false })
    expect(await layover.files('docker')).toEqual([])
  })

  it('leaves the layers that another image of the repository has too', async () => {
    const all = await start()
    const { layover, root } = all
    const base = buildImage({ layers: [300_000] })
    const derived = sharing(base, 'derived')
    await pulled(all, [
      [NAME, 'base', base],
      [NAME, 'derived', derived],
    ])
    const { summary } = await purge(root, { image: `${NAME}:derived` })
    expect(summary.removed).toBe(3)
    for (const part of partsOf(base)) expect(await isStored(layover, part)).toBe(true)
    expect(await isStored(layover, derived.config)).toBe(false)
  })

  it('leaves the bytes that another repository holds, and takes the right to them away here', async () => {
    const all = await start()
    const { layover, root, upstream } = all
    const image = buildImage({ layers: [300_000] })
    await pulled(all, [
      ['library/one', '1', image],
      ['library/two', '2', image],
    ])
    const { summary } = await purge(root, { image: 'library/one:1' })
    expect(summary).toMatchObject({ removed: 0, unlinked: 3 })
    // Links and the tag.
    expect(summary.freedBytes).toBeGreaterThan(0)
    for (const part of partsOf(image)) expect(await isStored(layover, part)).toBe(true)
    const names = (await layover.files('docker')).filter((file) => file.includes('library/one'))
    expect(names).toEqual([])
    upstream.deleteContent('library/one', image.layers[0]?.digest ?? '')
    const gone = await layover.get(`/v2/library/one/blobs/${image.layers[0]?.digest}`)
    expect(gone.status).toBe(404)
    upstream.reset()
    await layover.pull('library/two', '2', image)
    expect(upstream.count({ method: 'GET' })).toBe(0)
  })

  it('removes only the tag while another tag has the same image', async () => {
    const all = await start()
    const { layover, root } = all
    const image = buildImage()
    await pulled(all, [
      [NAME, '3', image],
      [NAME, 'latest', image],
    ])
    const { items, summary } = await purge(root, { image: `${NAME}:3` })
    expect(summary).toMatchObject({ removed: 0, untagged: 1 })
    expect(items).toMatchObject([{ outcome: 'untagged', tags: ['3'] }])
    expect(await isStored(layover, image.manifest)).toBe(true)
    const tags = (await layover.files('docker')).filter((file) => file.includes('/tags/'))
    expect(tags.every((file) => file.includes('/latest/'))).toBe(true)
  })

  it('takes an index along with its images and its signature, by digest too', async () => {
    for (const isByDigest of [false, true]) {
      const all = await start()
      const { layover, root, upstream } = all
      const images = [buildImage({ seed: 1 }), buildImage({ seed: 2, architecture: 'arm64' })]
      const index = buildIndex(images)
      upstream.addImage(NAME, '3', index)
      await layover.get(`/v2/${NAME}/manifests/3`)
      for (const image of images) await layover.pull(NAME, image.manifest.digest, image)
      const signature = buildArtifact(index.manifest)
      const signatureTag = `${index.manifest.digest.replace(':', '-')}.sig`
      await pulled(all, [[NAME, signatureTag, signature]])
      const image = isByDigest ? `${NAME}@${index.manifest.digest}` : `${NAME}:3`
      await purge(root, { image })
      expect(await layover.files('docker')).toEqual([])
    }
  })

  it('leaves an image that an index has too', async () => {
    const all = await start()
    const { layover, root, upstream } = all
    const images = [buildImage({ seed: 1 }), buildImage({ seed: 2 })]
    const [first] = images
    upstream.addImage(NAME, 'all', buildIndex(images))
    await layover.get(`/v2/${NAME}/manifests/all`)
    if (first) await pulled(all, [[NAME, 'one', first]])
    const { summary } = await purge(root, { image: `${NAME}:one` })
    expect(summary).toMatchObject({ removed: 0, untagged: 1 })
    if (first) expect(await isStored(layover, first.manifest)).toBe(true)
  })

  it('says nothing matches for what is not there', async () => {
    const { root } = await start()
    const { items, summary } = await purge(root, { image: 'library/none:1' })
    expect(items).toEqual([])
    expect(summary).toMatchObject({ removed: 0, unlinked: 0, untagged: 0, inUse: 0, pinned: 0 })
  })
})

describe('purging a repository', () => {
  it('removes all that it has, links without bytes and tags without a manifest included', async () => {
    const all = await start()
    const { layover, root, upstream } = all
    const [gone, kept] = [buildImage({ layers: [300_000] }), buildImage({ seed: 'kept' })]
    const single = blobOf(70_000, 'single')
    upstream.addBlob(NAME, single)
    await layover.get(`/v2/${NAME}/blobs/${single.digest}`)
    await layover.stored(single.digest)
    await pulled(all, [
      [NAME, '3', gone],
      ['library/kept', '1', kept],
    ])
    // What a crash of registry:2 leaves.
    const { digest } = blobOf(1, 'never stored')
    const part = join(root, 'docker/registry/v2/repositories', NAME)
    for (const path of [`_layers/${digest.replace(':', '/')}`, '_manifests/tags/torn/current']) {
      await mkdir(join(part, path), { recursive: true })
      await writeFile(join(part, path, 'link'), digest)
    }
    const { items, summary } = await purge(root, { repository: NAME })
    expect(summary).toMatchObject({ removed: 4, unlinked: 1, untagged: 1, inUse: 0 })
    expect(items.at(-1)).toMatchObject({ outcome: 'untagged', tags: ['torn'] })
    const left = await layover.files('docker')
    expect(left.filter((file) => file.includes(NAME))).toEqual([])
    for (const part of partsOf(kept)) expect(await isStored(layover, part)).toBe(true)
    upstream.reset()
    expect((await layover.get(`/v2/${NAME}/manifests/3`)).status).toBe(200)
    expect(upstream.count({ kind: 'manifest-digest', method: 'GET' })).toBe(1)
  })

  it('counts what several of them share once, by pattern, dry or not', async () => {
    const all = await start()
    const { layover, root } = all
    const image = buildImage({ layers: [300_000] })
    const names = ['ci/one', 'ci/two', 'ci/three'] as const
    await pulled(
      all,
      names.map((name) => [name, '1', image] as const),
    )
    const bytes = await diskBytes(layover, partsOf(image))
    const dry = await purge(root, { repository: 'ci/*', dryRun: true })
    expect(dry.summary).toMatchObject({ removed: 3, unlinked: 0 })
    expect(dry.summary.freedBytes).toBeGreaterThan(bytes)
    const real = await purge(root, { image: 'ci/*' })
    expect(real.summary).toEqual({ ...dry.summary, isDryRun: false })
    expect(await layover.files('docker')).toEqual([])
  })

  it('leaves the layers that an image elsewhere names whose client had them already', async () => {
    const all = await start()
    const { layover, root, upstream } = all
    const image = buildImage({ layers: [300_000] })
    await pulled(all, [['library/one', '1', image]])
    upstream.addImage('library/two', '2', image)
    expect((await layover.get('/v2/library/two/manifests/2')).status).toBe(200)
    const dry = await purge(root, { repository: 'library/one', dryRun: true })
    const { items, summary } = await purge(root, { repository: 'library/one' })
    expect(items).toEqual(dry.items)
    expect(summary).toMatchObject({ removed: 0, unlinked: 1, kept: 2 })
    const tags = (await layover.files('docker')).filter((file) => file.includes('/tags/'))
    expect(tags.filter((file) => file.includes('library/one'))).toEqual([])
    upstream.reset()
    await layover.pull('library/two', '2', image)
    expect(upstream.count({ method: 'GET' })).toBe(0)
    await purge(root, { repository: 'library/*' })
    expect(await layover.files('docker')).toEqual([])
  })

  it('removes what came from one upstream, and nothing of the others', async () => {
    const all = await start()
    const { layover, root, upstream } = all
    const images = ['one', 'two', 'three'].map((seed) => buildImage({ seed }))
    const [one, two, three] = images
    if (!one || !two || !three) throw new Error('three were built')
    await pulled(all, [
      ['ghcr.io/org/app', '1', one],
      ['registry.corp_5000/app', '1', two],
      ['library/app', '1', three],
    ])
    expect((await purge(root, { upstream: 'ghcr.io' })).summary.removed).toBe(3)
    expect(await isStored(layover, one.manifest)).toBe(false)
    expect((await purge(root, { upstream: 'registry.corp:5000' })).summary.removed).toBe(3)
    expect(await isStored(layover, two.manifest)).toBe(false)
    expect((await purge(root, { upstream: 'quay.io' })).summary.removed).toBe(0)
    expect(await isStored(layover, three.manifest)).toBe(true)
    expect((await purge(root, { upstream: new URL(upstream.url).host })).summary.removed).toBe(3)
    expect(await layover.files('docker')).toEqual([])
  })
})

describe('purging what was not used', () => {
  it('leaves what was, and takes bytes along that no repository holds', async () => {
    const clock = new FakeClock()
    const rootDirectory = await makeTempDirectory()
    const unlinked = blobOf(5_000, 'nobody holds it')
    const file = join(rootDirectory, blobFile(unlinked.digest))
    await mkdir(dirname(file), { recursive: true })
    await writeFile(file, unlinked.bytes)
    const all = await start({ clock, rootDirectory, configuration: { proxy: { ttl: '0' } } })
    const { layover, root } = all
    const [old, used] = [buildImage({ layers: [300_000] }), buildImage({ seed: 'used' })]
    await pulled(all, [
      [NAME, 'old', old],
      ['library/used', '1', used],
    ])
    await clock.advance(49 * HOUR_MS)
    await layover.pull('library/used', '1', used)
    const { items, summary } = await purge(root, { unusedFor: '1d' })
    expect(summary).toMatchObject({ removed: 4, inUse: 0 })
    expect(items.at(-1)).toMatchObject({ digest: unlinked.digest, kind: 'blob' })
    expect(await isStored(layover, unlinked)).toBe(false)
    for (const part of partsOf(old)) expect(await isStored(layover, part)).toBe(false)
    for (const part of partsOf(used)) expect(await isStored(layover, part)).toBe(true)
  })

  it('may be limited to some repositories', async () => {
    const clock = new FakeClock()
    const all = await start({ clock })
    const { layover, root } = all
    const [one, two] = [buildImage({ seed: 1 }), buildImage({ seed: 2 })]
    await pulled(all, [
      ['ci/one', '1', one],
      ['library/two', '1', two],
    ])
    await clock.advance(30 * HOUR_MS)
    await purge(root, { unusedFor: '24h', repository: 'ci/**' })
    expect(await isStored(layover, one.manifest)).toBe(false)
    expect(await isStored(layover, two.manifest)).toBe(true)
  })
})

describe('what is pinned', () => {
  it('stays with all of its layers when a pattern matches it, and goes by force', async () => {
    const all = await start({ configuration: PINS })
    const { layover, root } = all
    const [lts, edge] = [
      buildImage({ seed: 'lts', layers: [90_000] }),
      buildImage({ seed: 'edge' }),
    ]
    await pulled(all, [
      ['library/node', 'lts', lts],
      ['library/node', 'edge', edge],
    ])
    const kept = await purge(root, { repository: 'library/*' })
    expect(kept.summary).toMatchObject({ removed: 3, pinned: 3 })
    for (const part of partsOf(lts)) expect(await isStored(layover, part)).toBe(true)
    expect(await isStored(layover, edge.manifest)).toBe(false)
    expect((await purge(root, { image: 'library/node:l*' })).summary).toMatchObject({ pinned: 1 })
    expect(await isStored(layover, lts.manifest)).toBe(true)
    const forced = await purge(root, { repository: 'library/*', force: true })
    expect(forced.summary).toMatchObject({ removed: 3, pinned: 0 })
    expect(await layover.files('docker')).toEqual([])
  })

  it('goes when it is named in full', async () => {
    const all = await start({ configuration: PINS })
    await pulled(all, [['library/node', 'lts', buildImage()]])
    expect((await purge(all.root, { image: 'library/node:lts' })).summary.removed).toBe(3)
    expect(await all.layover.files('docker')).toEqual([])
  })

  it('stays as a whole where the repository is pinned', async () => {
    const configuration = { storage: { retention: [{ match: 'library/node', pin: true }] } }
    const all = await start({ configuration })
    await pulled(all, [['library/node', 'lts', buildImage()]])
    const { items } = await purge(all.root, { repository: 'library/**' })
    expect(items).toMatchObject([{ outcome: 'pinned', kind: 'repository' }])
  })
})

describe('under load', () => {
  it('leaves what is being read, says so, and the reader gets all of it', async () => {
    const all = await start()
    const { layover, root } = all
    const image = buildImage({ layers: [16_000_000] })
    const [layer] = image.layers
    await pulled(all, [[NAME, '3', image]])
    const reader = await layover.open(`/v2/${NAME}/blobs/${layer?.digest}`)
    await reader.read(1_000)
    const { items, summary } = await purge(root, { image: `${NAME}:3` })
    expect(summary).toMatchObject({ removed: 2, inUse: 1 })
    expect(items.find(({ outcome }) => outcome === 'in-use')).toMatchObject({
      digest: layer?.digest,
    })
    const { body, ending } = await reader.finish()
    expect(ending).toBe('complete')
    expect(body.equals(layer?.bytes.subarray(1_000) ?? Buffer.alloc(0))).toBe(true)
  })

  it('gives every client the right bytes, whatever goes meanwhile', async () => {
    const all = await start()
    const { layover, root, upstream } = all
    const images = Array.from({ length: 4 }, (_, seed) =>
      buildImage({ seed, layers: [200_000, 70_000, 500] }),
    )
    for (const [tag, image] of images.entries()) upstream.addImage(NAME, `${tag}`, image)
    const load = { isOver: false, purged: 0 }
    const pulls = images.map(async (image, tag) => {
      // What is in use when a purge looks at it stays: how often that is depends on the machine.
      for (let round = 0; round < 10 || load.purged === 0; round++) {
        const manifest = await layover.get(`/v2/${NAME}/manifests/${tag}`)
        expect(manifest.body.equals(image.manifest.bytes)).toBe(true)
        for (const { bytes, digest } of [image.config, ...image.layers]) {
          const { body, ending, status } = await layover.get(`/v2/${NAME}/blobs/${digest}`)
          expect([status, ending, body.equals(bytes)]).toEqual([200, 'complete', true])
        }
      }
    })
    const purges = (async () => {
      while (!load.isOver) {
        for (const request of [{ repository: NAME }, { image: `${NAME}:1` }, { unusedFor: '0s' }]) {
          load.purged += (await purge(root, request)).summary.removed
        }
      }
    })()
    await Promise.all(pulls).finally(() => (load.isOver = true))
    await purges
    // What is left is consistent: all of it goes, and nothing is counted that is not there.
    await waitFor('the downloads to be over', async () => {
      return (await layover.metric('layover_fills_running')) === 0
    })
    await purge(root, { unusedFor: '0s' })
    expect(await layover.files('docker')).toEqual([])
    const usage = (await ask(root, '/admin/usage')).json
    expect(usage).toMatchObject({ contentBytes: 0, blobs: 0, repositories: [] })
  })

  it('runs one at a time', async () => {
    const all = await start()
    const { root } = all
    await pulled(all, [[NAME, '3', buildImage()]])
    const answers = await Promise.all(
      Array.from({ length: 3 }, () =>
        ask(root, '/admin/purge', { repository: '**', dryRun: true }),
      ),
    )
    const statuses = answers.map(({ status }) => status)
    expect(statuses).toContain(200)
    expect(statuses.every((status) => [200, 409].includes(status))).toBe(true)
    expect((await ask(root, '/admin/purge', { repository: '**', dryRun: true })).status).toBe(200)
  })
})

describe('before the volume is known', () => {
  it('is refused, and says what to wait for', async () => {
    const { layover } = await startLayover({ clock: new FakeClock() })
    const { json, status } = await ask(layover.rootDirectory, '/admin/purge', { image: 'a/b' })
    expect(status).toBe(409)
    expect(JSON.stringify(json)).toContain('still being looked through')
  })
})
