// The distribution specification, as far as it concerns those who only read. What a registry answers,
// Layover in front of it answers too: once by requests that are written down here, and once by the
// conformance suite of the OCI, where there is one.
//
// @see https://github.com/opencontainers/distribution-spec/blob/main/spec.md

import process from 'node:process'
import { beforeAll, describe, expect, it } from 'vitest'
import { startFakeUpstream } from '../support/fake-upstream.ts'
import { rawGet } from '../support/http-client.ts'
import { waitFor } from '../support/wait-for.ts'
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
let upstream: Upstream
let layer: Buffer
let layerDigest: string
/** Where to ask, by who answers. */
const origins = new Map<string, string>()

beforeAll(async () => {
  upstream = await Upstream.start(workspace)
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

interface Question {
  readonly method?: string
  readonly path: string
  readonly headers?: Readonly<Record<string, string>>
}

/** Both caches have all of it by then, but for what there is not. */
const QUESTIONS: readonly (readonly [what: string, ask: () => Question])[] = [
  ['the base', () => ({ path: '' })],
  ['the base, by HEAD', () => ({ method: 'HEAD', path: '' })],
  ['a manifest by tag', () => ofManifest(image.tag)],
  ['a manifest by tag, by HEAD', () => ({ ...ofManifest(image.tag), method: 'HEAD' })],
  ['a manifest by digest', () => ofManifest(image.top.digest)],
  ['a manifest by digest, by HEAD', () => ({ ...ofManifest(image.top.digest), method: 'HEAD' })],
  ['a manifest that the client has', () => ofManifest(image.tag, `"${image.top.digest}"`)],
  ['a blob', () => ofBlob()],
  ['a blob, by HEAD', () => ({ ...ofBlob(), method: 'HEAD' })],
  ['a part of a blob', () => ofBlob({ Range: 'bytes=500-1499' })],
  ['the end of a blob', () => ofBlob({ Range: 'bytes=-500' })],
  ['several parts of a blob', () => ofBlob({ Range: 'bytes=0-9,20-29' })],
  ['a blob that the client has', () => ofBlob({ 'If-None-Match': `"${layerDigest}"` })],
  ['the tags', () => ({ path: `${NAME}/tags/list` })],
  ['the repositories', () => ({ path: '_catalog' })],
  ['a tag that there is not', () => ofManifest('missing')],
  ['a manifest that there is not', () => ofManifest(MISSING)],
  ['a blob that there is not', () => ({ path: `${NAME}/blobs/${MISSING}` })],
  [
    'a blob that there is not, by HEAD',
    () => ({ method: 'HEAD', path: `${NAME}/blobs/${MISSING}` }),
  ],
  ['to push a blob', () => ({ method: 'POST', path: `${NAME}/blobs/uploads/` })],
  ['to delete a manifest', () => ({ ...ofManifest(image.top.digest), method: 'DELETE' })],
]

/** Ours, of the moment, or HTTP's default said aloud. */
const APART = /^(?:Age|Cache-Status|Connection|Date|Keep-Alive|OCI-Namespace|Via|X-Cache): /

interface Difference {
  readonly why: string
  readonly of: RegExp
  /** The lines that differ: each must be there. */
  readonly theirs?: RegExp
  readonly ours?: RegExp
}

/** All in which the answers differ on purpose. */
const MEANT: readonly Difference[] = [
  {
    why: 'registry:3 sends JSON without a charset, which has none; the specification advises against parameters',
    of: /^the base|^the tags|^the repositories|there is not|^to /,
    theirs: /^Content-Type: application\/json; charset=utf-8$/,
    ours: /^Content-Type: application\/json$/,
  },
  {
    why: 'a 304 has the Etag that 200 has (RFC 9110, 15.4.5), and what else describes the content',
    of: /^a manifest that the client has/,
    ours: /^(?:Content-Type|Docker-Content-Digest|Etag): /,
  },
  {
    why: 'the same',
    of: /^a blob that the client has/,
    ours: /^(?:Accept-Ranges|Content-Type): /,
  },
  {
    why: 'the detail of an error says which upstream lacks it',
    of: /there is not/,
    theirs: /^(?:Content-Length|body): /,
    ours: /^(?:Content-Length|body): /,
  },
  {
    why: 'clients go on after 404, not after 500',
    of: /^a manifest that there is not/,
    theirs: /^status: 500$/,
    ours: /^status: 404$/,
  },
  {
    why: 'several ranges may be answered with the whole (RFC 9110, 14.2); no client of registries asks for them',
    of: /^several parts/,
    theirs: /^(?:status: 206$|(?:Content-Length|Content-Type|body): )/,
    ours: /^(?:status: 200$|(?:Content-Length|Content-Type|body): )/,
  },
  {
    why: '405 has to name what is allowed (RFC 9110, 15.5.6)',
    of: /^to /,
    ours: /^Allow: GET, HEAD$/,
  },
]

describe('what a client of docker-registry sees of a warm cache, header by header', () => {
  let registryUrl: string

  beforeAll(async () => {
    const storage = { filesystem: { rootdirectory: workspace.makeDirectory('registry') } }
    registryUrl = (await Cache.start(workspace, upstream, { storage }, 'registry')).url
    const blobUrl = `${registryUrl}/v2/${ofBlob().path}`
    // It stores behind its client's back, and says less of a blob until it has.
    await waitFor('docker-registry to have stored the blob', async () => {
      return (await rawGet(blobUrl)).header('etag') !== undefined
    })
  })

  it.each(QUESTIONS)('is the same, asked for %s', async (what, ask) => {
    const theirs = await warmAnswer(registryUrl, ask())
    const ours = await warmAnswer(origins.get('Layover') ?? '', ask())
    const meant = MEANT.filter(({ of }) => of.test(what))
    expect(meant.filter((difference) => !isSeen(difference, theirs, ours))).toEqual([])
    const rest = (lines: readonly string[], side: 'ours' | 'theirs'): string[] =>
      lines.filter((line) => !meant.some((difference) => difference[side]?.test(line)))
    expect(rest(ours, 'ours')).toEqual(rest(theirs, 'theirs'))
  })
})

function isSeen({ ours, theirs }: Difference, theirLines: string[], ourLines: string[]): boolean {
  return hasLine(theirLines, theirs) && hasLine(ourLines, ours)
}

function hasLine(lines: string[], expected: RegExp | undefined): boolean {
  return expected === undefined || lines.some((line) => expected.test(line))
}

/** Asks twice. @returns what the second answer says, in lines that can be compared */
async function warmAnswer(url: string, { path, ...options }: Question): Promise<string[]> {
  await rawGet(`${url}/v2/${path}`, options)
  const answer = await rawGet(`${url}/v2/${path}`, options)
  const headers = answer.headers.map(([name, value]) => `${name}: ${value}`)
  return [
    `status: ${answer.status}`,
    ...headers.filter((line) => !APART.test(line)).sort(),
    `body: ${digestOf(answer.body)}`,
  ]
}

function ofManifest(reference: string, known?: string): Question {
  const headers = { Accept: image.top.mediaType, ...(known && { 'If-None-Match': known }) }
  return { path: `${NAME}/manifests/${reference}`, headers }
}

function ofBlob(headers: Readonly<Record<string, string>> = {}): Question {
  return { path: `${NAME}/blobs/${layerDigest}`, headers }
}

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
