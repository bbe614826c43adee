// State files that are missing, empty, cut short, garbage, from the future, or from another program: it starts,
// serves what it has while the upstream is down, and what cannot be read counts as absent.

import { mkdir, readFile, rm, truncate, writeFile } from 'node:fs/promises'
import { dirname, join } from 'node:path'
import { describe, expect, it } from 'vitest'
import type { Clock } from '../../src/clock.ts'
import { blobFile, impatientClock, startLayover, type Layover } from '../support/layover.ts'
import type { FakeUpstream } from '../support/fake-upstream.ts'
import { buildImage, type TestImage } from '../support/images.ts'
import { FAKE_EPOCH_MS, FakeClock } from '../support/fake-clock.ts'
import { waitFor } from '../support/wait-for.ts'

const NAME = 'library/alpine'
const REPOSITORY = `docker/registry/v2/repositories/${NAME}`
const HOUR_MS = 3_600_000

interface Rig {
  readonly layover: Layover
  readonly upstream: FakeUpstream
  readonly image: TestImage
}

/** A volume with an image in it, and nobody running. */
async function stopped(clock: Clock = impatientClock): Promise<Rig> {
  const { layover, upstream } = await startLayover({ clock })
  const image = buildImage({ layers: [300_000, 100], seed: 'state' })
  upstream.addImage(NAME, '3', image)
  await layover.get(`/v2/${NAME}/manifests/3`)
  for (const { digest } of [image.config, ...image.layers]) {
    await layover.get(`/v2/${NAME}/blobs/${digest}`)
    await layover.stored(digest)
  }
  await waitFor('the scan', async () => {
    if (clock instanceof FakeClock) await clock.advance(1)
    return layover.messages().some((message) => message.startsWith('found '))
  })
  await layover.stop()
  upstream.reset()
  return { layover, upstream, image }
}

async function expectServed({ image, layover }: Rig): Promise<void> {
  const byTag = await layover.get(`/v2/${NAME}/manifests/3`)
  expect(byTag.body.equals(image.manifest.bytes)).toBe(true)
  for (const { bytes, digest } of [image.config, ...image.layers]) {
    const answer = await layover.get(`/v2/${NAME}/blobs/${digest}`)
    expect([answer.status, answer.body.equals(bytes)]).toEqual([200, true])
  }
}

function errors({ layover }: Rig): string[] {
  return layover.log.filter(({ level }) => level === 'error').map(({ msg }) => String(msg))
}

/** As registry:2.8 and registry:3 write it: nanoseconds, and the zone of the machine. */
function registryState({ image }: Rig, expiry: string): string {
  const entries = [image.manifest, image.config, ...image.layers].map(({ digest }, index) => {
    const key = `${NAME}@${digest}`
    return [key, { Key: key, ExpiryData: expiry, EntryType: index === 0 ? 1 : 0 }]
  })
  return JSON.stringify(Object.fromEntries(entries))
}

describe('scheduler-state.json', () => {
  it.each<[string, (rig: Rig, file: string) => Promise<void>]>([
    ['is missing', (_rig, file) => rm(file)],
    ['is empty', (_rig, file) => truncate(file, 0)],
    ['is cut short', (_rig, file) => truncate(file, 100)],
    ['is garbage', (_rig, file) => writeFile(file, Buffer.alloc(1000, 0xfe))],
    ['is a list', (_rig, file) => writeFile(file, '[1, null, "x"]')],
    ['is null', (_rig, file) => writeFile(file, 'null')],
    [
      'has entries of another kind',
      (_rig, file) => writeFile(file, '{"a": 1, "b": null, "c": []}'),
    ],
    [
      'is that of registry, with everything overdue',
      (rig, file) => writeFile(file, registryState(rig, '2020-02-29T23:59:59.123456789+02:00')),
    ],
    [
      'is that of registry, with everything far in the future',
      (rig, file) => writeFile(file, registryState(rig, '2999-12-31T00:00:00.000000001Z')),
    ],
    ['has impossible times', (rig, file) => writeFile(file, registryState(rig, '+275761-01-01'))],
    [
      'is a directory',
      async (_rig, file) => {
        await rm(file)
        await mkdir(file)
      },
    ],
  ])('that %s costs nothing: all is served, and expires when it should', async (_what, injure) => {
    const clock = new FakeClock()
    const rig = await stopped(clock)
    const { layover, upstream } = rig
    await injure(rig, join(layover.rootDirectory, 'scheduler-state.json'))
    // Without the index, the file is all that tells of times.
    await rm(join(layover.rootDirectory, 'layover'), { recursive: true })
    await layover.start()
    await waitFor('the scan', async () => {
      await clock.advance(1)
      return layover.messages().some((line) => line.startsWith('found 4 blobs'))
    })
    await clock.advance(HOUR_MS)
    await expectServed(rig)
    expect(upstream.count({ method: 'GET' })).toBe(0)
    let passedMs = 0
    await waitFor('everything to be gone', async () => {
      await clock.advance(12 * HOUR_MS)
      passedMs += 12 * HOUR_MS
      return (await layover.files('docker')).length === 0
    })
    // Used now, and due a week later.
    expect(passedMs).toBeGreaterThan(6 * 24 * HOUR_MS)
  })

  it('is valid for registry after a stop, whatever it was before', async () => {
    const clock = new FakeClock()
    const rig = await stopped(clock)
    const { image, layover } = rig
    const file = join(layover.rootDirectory, 'scheduler-state.json')
    await writeFile(file, '{"broken')
    await layover.start()
    await expectServed(rig)
    await layover.stop()
    const state = JSON.parse(await readFile(file, 'utf8')) as Record<string, unknown>
    const digests = [image.manifest, image.config, ...image.layers].map(({ digest }) => digest)
    expect(Object.keys(state).sort()).toEqual(digests.map((digest) => `${NAME}@${digest}`).sort())
    for (const [key, entry] of Object.entries(state)) {
      const expiry = new Date(FAKE_EPOCH_MS + clock.monotonic() + 168 * HOUR_MS).toISOString()
      expect(entry).toMatchObject({ Key: key, ExpiryData: expiry })
    }
    expect(errors(rig)).toEqual([])
  })
})

const hexOf = (digest: string): string => digest.slice('sha256:'.length)

describe.each<[string, (file: string) => Promise<void>]>([
  ['missing', (file) => rm(file)],
  ['empty', (file) => truncate(file, 0)],
  ['cut short', (file) => truncate(file, 20)],
  ['garbage', (file) => writeFile(file, Buffer.alloc(71, 0xfe))],
  ['of another digest', (file) => writeFile(file, `sha256:${'0'.repeat(64)}`)],
  ['of a digest that nobody knows yet', (file) => writeFile(file, `blake9:${'0'.repeat(64)}`)],
])('a file that is %s', (_what, injure) => {
  const files: [string, (image: TestImage) => string][] = [
    ['the tag', () => `${REPOSITORY}/_manifests/tags/3/current/link`],
    [
      "the manifest's link",
      ({ manifest }) => `${REPOSITORY}/_manifests/revisions/sha256/${hexOf(manifest.digest)}/link`,
    ],
    [
      "a layer's link",
      ({ layers }) => `${REPOSITORY}/_layers/sha256/${hexOf(layers[0]?.digest ?? '')}/link`,
    ],
    ["the manifest's bytes", ({ manifest }) => blobFile(manifest.digest)],
    ["the config's bytes", ({ config }) => blobFile(config.digest)],
  ]

  it.each(files)('in place of %s is mended by the next pull', async (_name, fileOf) => {
    const rig = await stopped()
    const { image, layover, upstream } = rig
    const file = join(layover.rootDirectory, fileOf(image))
    const right = await readFile(file)
    await injure(file)
    await layover.start()
    await expectServed(rig)
    await waitFor('the file to be right', async () => {
      const bytes = await readFile(file).catch(() => undefined)
      return bytes?.equals(right) === true
    })
    await layover.restart()
    await upstream.down()
    await expectServed(rig)
  })

  it('with its whole directory costs nothing either', async () => {
    const rig = await stopped()
    const { layover } = rig
    const file = join(layover.rootDirectory, REPOSITORY, '_manifests/tags/3/current/link')
    await injure(file)
    await rm(dirname(dirname(file)), { recursive: true })
    await layover.start()
    await expectServed(rig)
  })
})
