// The distribution specification, as far as it concerns those who only read. What a registry answers,
// Layover in front of it answers too: once by requests that are written down here, and once by the
// conformance suite of the OCI, where there is one.
//
// @see https://github.com/opencontainers/distribution-spec/blob/main/spec.md

import process from 'node:process'
import { beforeAll, describe, expect, it } from 'vitest'
import { startFakeUpstream } from '../support/fake-upstream.ts'
import { buildArtifact, buildImage } from '../support/images.ts'
import { Cache } from './support/cache.ts'
import {
  runSuite,
  SUITE_PATH,
  type ReadOnlyContent,
  type SuiteResult,
} from './support/conformance-suite.ts'
import { digestOf } from './support/images.ts'
import { Upstream, type PushedImage } from './support/upstream.ts'
import { openWorkspace } from './support/workspace.ts'

const NAME = 'library/conformance'
const LAYER_BYTES = 10_000

/** Of bytes that no registry has. */
const MISSING = `sha256:${'ab'.repeat(32)}`

const workspace = openWorkspace()
let image: PushedImage
let artifact: PushedImage
let layer: Buffer
let layerDigest: string
/** Where to ask, by who answers. */
const origins = new Map<string, string>()

beforeAll(async () => {
  const upstream = await Upstream.start(workspace)
  image = await upstream.push({
    repository: NAME,
    kind: 'oci',
    isMultiPlatform: true,
    isRunnable: false,
    layerSizesBytes: [LAYER_BYTES],
  })
  artifact = await upstream.pushArtifact(image)
  const openDoor = await upstream.openDoor()
  const cache = await Cache.start(workspace, upstream)
  origins.set('the upstream itself', openDoor.server.url)
  origins.set('Layover', cache.url)
  origins.set('Layover, asked again', cache.url)
  layerDigest = [...image.objects].find(([, sizeBytes]) => sizeBytes > LAYER_BYTES)?.[0] ?? ''
  const answer = await fetch(`${openDoor.server.url}/v2/${NAME}/blobs/${layerDigest}`)
  layer = Buffer.from(await answer.arrayBuffer())
})

interface Answer {
  readonly status: number
  readonly header: (name: string) => string | null
  readonly body: Buffer
}

describe.each(['the upstream itself', 'Layover', 'Layover, asked again'])('%s', (who) => {
  async function ask(
    method: 'GET' | 'HEAD',
    path: string,
    headers: Readonly<Record<string, string>> = {},
  ): Promise<Answer> {
    const response = await fetch(`${origins.get(who)}/v2/${path}`, { method, headers })
    const body = Buffer.from(await response.arrayBuffer())
    return { status: response.status, header: (name) => response.headers.get(name), body }
  }

  it('answers /v2/', async () => {
    expect((await ask('GET', '')).status).toBe(200)
  })

  it.each(['tag', 'digest'] as const)('has the index, by its %s', async (by) => {
    const { mediaType, digest, bytes } = image.top
    const path = `${NAME}/manifests/${by === 'tag' ? image.tag : digest}`
    for (const method of ['HEAD', 'GET'] as const) {
      const answer = await ask(method, path, { Accept: mediaType })
      expect(answer.status).toBe(200)
      expect(answer.header('content-type')).toBe(mediaType)
      expect(answer.header('content-length')).toBe(`${bytes.length}`)
      expect(answer.header('docker-content-digest')).toBe(digest)
      expect(answer.body.equals(method === 'GET' ? bytes : Buffer.alloc(0))).toBe(true)
    }
  })

  it('has everything that the index leads to', async () => {
    const { manifests }: IndexJson = JSON.parse(image.top.bytes.toString())
    for (const { digest, mediaType, size } of manifests) {
      const manifest = await ask('GET', `${NAME}/manifests/${digest}`, { Accept: mediaType })
      expect([manifest.status, manifest.body.length]).toEqual([200, size])
      expect(digestOf(manifest.body)).toBe(digest)
      const { config, layers }: ManifestJson = JSON.parse(manifest.body.toString())
      for (const blob of [config, ...layers]) {
        const head = await ask('HEAD', `${NAME}/blobs/${blob.digest}`)
        expect([head.status, head.header('content-length')]).toEqual([200, `${blob.size}`])
        const get = await ask('GET', `${NAME}/blobs/${blob.digest}`)
        expect([get.status, digestOf(get.body)]).toEqual([200, blob.digest])
      }
    }
  })

  // The cases of the OCI's suite, which asks for them only where it may push.
  it.each([
    ['bytes=500-1499', 500, 1500],
    ['bytes=500-', 500, Infinity],
    ['bytes=-500', -500, Infinity],
    ['bytes=2000-5000', 2000, 5001],
    ['bytes=9000-90000', 9000, Infinity],
  ])('sends %s of a blob', async (range, start, end) => {
    const part = layer.subarray(start, end)
    const first = layer.indexOf(part)
    const answer = await ask('GET', `${NAME}/blobs/${layerDigest}`, { Range: range })
    expect(answer.status).toBe(206)
    const contentRange = `bytes ${first}-${first + part.length - 1}/${layer.length}`
    expect(answer.header('content-range')).toBe(contentRange)
    expect(answer.header('content-length')).toBe(`${part.length}`)
    expect(answer.body.equals(part)).toBe(true)
  })

  it('refuses a range past the end of a blob', async () => {
    const headers = { Range: `bytes=${layer.length}-${layer.length + 500}` }
    const url = `${origins.get(who)}/v2/${NAME}/blobs/${layerDigest}`
    const response = await fetch(url, { headers })
    // docker-registry announces more of a body than it sends.
    await response.body?.cancel()
    expect(response.status).toBe(416)
  })

  it.each([
    ['a manifest, by tag', `${NAME}/manifests/missing`, 'MANIFEST_UNKNOWN'],
    ['a manifest, by digest', `${NAME}/manifests/${MISSING}`, 'MANIFEST_UNKNOWN'],
    ['a blob', `${NAME}/blobs/${MISSING}`, 'BLOB_UNKNOWN'],
  ])('says that it has no such thing: %s', async (_what, path, code) => {
    expect((await ask('HEAD', path)).status).toBe(404)
    const answer = await ask('GET', path)
    expect(answer.status).toBe(404)
    expect(JSON.parse(answer.body.toString())).toMatchObject({ errors: [{ code }] })
  })

  it('lists tags', async () => {
    const answer = await ask('GET', `${NAME}/tags/list`)
    expect(answer.status).toBe(200)
    const { name, tags }: TagsJson = JSON.parse(answer.body.toString())
    expect([name, tags.sort()]).toEqual([NAME, [image.tag, artifact.tag].sort()])
  })

  it('lists no tags of a repository that there is not', async () => {
    expect((await ask('GET', 'library/none/tags/list')).status).toBe(404)
  })
})

if (SUITE_PATH !== undefined) {
  describe("the OCI's suite finds nothing wrong that it does not find in the upstream", () => {
    it('in front of docker-registry', async () => {
      await expectNothingLost(addressOf('the upstream itself'), addressOf('Layover'), {
        repository: NAME,
        tags: [image.tag, artifact.tag],
        manifest: image.top.digest,
        blob: layerDigest,
      })
    })

    it('in front of a registry with the referrers API, and pages', async () => {
      const fake = await startFakeUpstream()
      workspace.onClose(() => fake.close())
      const subject = buildImage()
      for (const tag of ['1', '2']) fake.addImage(NAME, tag, subject)
      fake.addImage(NAME, undefined, buildArtifact(subject.manifest))
      const rootdirectory = workspace.makeDirectory('cache-with-referrers')
      const cache = await Cache.start(workspace, fake, {
        storage: { filesystem: { rootdirectory } },
      })
      await expectNothingLost(new URL(fake.url).host, cache.address, {
        repository: NAME,
        tags: ['1', '2'],
        manifest: subject.manifest.digest,
        blob: subject.config.digest,
      })
    })
  })
}

/** Runs the suite on the upstream, and twice on the cache: cold and warm. Prints what came of it. */
async function expectNothingLost(
  upstreamAddress: string,
  cacheAddress: string,
  content: ReadOnlyContent,
): Promise<void> {
  const direct = await runSuite(workspace, upstreamAddress, content)
  const cold = await runSuite(workspace, cacheAddress, content)
  const warm = await runSuite(workspace, cacheAddress, content)
  process.stderr.write(
    tableOf({ 'the upstream itself': direct, 'Layover, cold': cold, 'Layover, warm': warm }),
  )
  for (const { passed } of [cold, warm]) {
    expect([...direct.passed].filter((test) => !passed.has(test))).toEqual([])
  }
}

function tableOf(results: Readonly<Record<string, SuiteResult>>): string {
  return Object.entries(results)
    .map(([who, { passed, failed }]) => {
      const names = failed.size === 0 ? '' : `: ${[...failed].join(', ')}`
      return `${who.padEnd(20)} ${passed.size} passed, ${failed.size} failed${names}\n`
    })
    .join('')
}

function addressOf(who: string): string {
  return new URL(origins.get(who) ?? '').host
}

interface Descriptor {
  readonly mediaType: string
  readonly digest: string
  readonly size: number
}

interface IndexJson {
  readonly manifests: readonly Descriptor[]
}

interface ManifestJson {
  readonly config: Descriptor
  readonly layers: readonly Descriptor[]
}

interface TagsJson {
  readonly name: string
  readonly tags: string[]
}
