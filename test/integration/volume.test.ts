// The volume: registry:2 finds in it what it would have written, and we find in it what registry:2 wrote.

import { mkdir, readFile, rm, truncate, writeFile } from 'node:fs/promises'
import { dirname, join } from 'node:path'
import { describe, expect, it } from 'vitest'
import { blobFile, startLayover } from '../support/layover.ts'
import { blobOf, buildImage } from '../support/images.ts'
import { startFakeUpstream } from '../support/fake-upstream.ts'
import { makeTempDirectory } from '../support/temp-directory.ts'
import { waitFor } from '../support/wait-for.ts'

const NAME = 'library/alpine'
const REPOSITORY = `docker/registry/v2/repositories/${NAME}`

function hex(digest: string): string {
  return digest.slice(digest.indexOf(':') + 1)
}

describe('the volume', () => {
  it('has the files of registry:2, and no others beside our own', async () => {
    const { layover, upstream } = await startLayover()
    const image = buildImage({ layers: [300_000] })
    upstream.addImage(NAME, '3', image)
    await layover.get(`/v2/${NAME}/manifests/3`)
    const blobs = [image.config, ...image.layers]
    for (const { digest } of blobs) {
      await layover.get(`/v2/${NAME}/blobs/${digest}`)
      await layover.stored(digest)
    }
    const { manifest } = image
    const links = [
      ...blobs.map(({ digest }) => [`_layers/sha256/${hex(digest)}/link`, digest] as const),
      [`_manifests/revisions/sha256/${hex(manifest.digest)}/link`, manifest.digest] as const,
      [`_manifests/tags/3/current/link`, manifest.digest] as const,
      [`_manifests/tags/3/index/sha256/${hex(manifest.digest)}/link`, manifest.digest] as const,
    ]
    const expected = [
      ...[manifest, ...blobs].map(({ digest }) => blobFile(digest)),
      ...links.map(([path]) => `${REPOSITORY}/${path}`),
    ]
    await waitFor('all files', async () => (await layover.files('docker')).length === 8)
    const files = (await layover.files()).filter((path) => path.startsWith('docker/'))
    expect(files).toEqual(expected.sort())
    for (const [path, digest] of links) {
      const file = join(layover.rootDirectory, REPOSITORY, path)
      expect(await readFile(file, 'utf8')).toBe(digest)
    }
    for (const { bytes, digest } of [manifest, ...blobs]) {
      const stored = await readFile(join(layover.rootDirectory, blobFile(digest)))
      expect(stored.equals(bytes)).toBe(true)
    }
  })

  it('of registry:2 is served as it is, while the upstream is down', async () => {
    const rootDirectory = await makeTempDirectory()
    const image = buildImage({ kind: 'docker', layers: [300_000] })
    const { manifest } = image
    const put = async (path: string, content: Buffer | string): Promise<void> => {
      const file = join(rootDirectory, path)
      await mkdir(dirname(file), { recursive: true })
      await writeFile(file, content)
    }
    for (const { bytes, digest } of [manifest, image.config, ...image.layers]) {
      await put(blobFile(digest), bytes)
    }
    for (const { digest } of [image.config, ...image.layers]) {
      await put(`${REPOSITORY}/_layers/sha256/${hex(digest)}/link`, digest)
    }
    const own = `${REPOSITORY}/_manifests`
    await put(`${own}/revisions/sha256/${hex(manifest.digest)}/link`, manifest.digest)
    await put(`${own}/tags/3/current/link`, manifest.digest)
    await put(`${own}/tags/3/index/sha256/${hex(manifest.digest)}/link`, manifest.digest)
    await mkdir(join(rootDirectory, REPOSITORY, '_uploads'))
    await put('scheduler-state.json', '{"not what": "is expected"')

    const upstream = await startFakeUpstream()
    await upstream.down()
    const { layover } = await startLayover({ rootDirectory, upstream })
    const byTag = await layover.get(`/v2/${NAME}/manifests/3`)
    expect([byTag.status, byTag.header('x-cache')]).toEqual([200, 'STALE'])
    expect(byTag.body.equals(manifest.bytes)).toBe(true)
    expect(byTag.header('content-type')).toBe(manifest.mediaType)
    for (const { bytes, digest } of [image.config, ...image.layers]) {
      const blob = await layover.get(`/v2/${NAME}/blobs/${digest}`)
      expect(blob.body.equals(bytes)).toBe(true)
    }
    expect(JSON.parse((await layover.get('/v2/_catalog')).body.toString())).toEqual({
      repositories: [NAME],
    })
  })

  it('from which a file vanishes is mended by the next request, which sees nothing of it', async () => {
    const { layover, upstream } = await startLayover()
    const blob = blobOf(300_000, 'vanishing')
    upstream.addBlob(NAME, blob)
    const path = `/v2/${NAME}/blobs/${blob.digest}`
    await layover.get(path)
    await layover.stored(blob.digest)
    await rm(join(layover.rootDirectory, 'docker'), { recursive: true })
    const answer = await layover.get(path)
    expect([answer.status, answer.header('x-cache')]).toEqual([200, 'MISS'])
    expect(answer.body.equals(blob.bytes)).toBe(true)
    await layover.stored(blob.digest)
  })

  it('in which a layer was cut short fetches it again, and does not serve what is left', async () => {
    const { layover, upstream } = await startLayover()
    const image = buildImage({ layers: [300_000], seed: 'cut' })
    upstream.addImage(NAME, 'latest', image)
    const layer = image.layers[0] ?? blobOf(0, 'none')
    const path = `/v2/${NAME}/blobs/${layer.digest}`
    await layover.get(`/v2/${NAME}/manifests/latest`)
    await layover.get(path)
    await layover.stored(layer.digest)
    await truncate(join(layover.rootDirectory, blobFile(layer.digest)), 100_000)

    const answer = await layover.get(path)

    expect(answer.body.equals(layer.bytes)).toBe(true)
    expect(upstream.count({ kind: 'blob', reference: layer.digest })).toBe(2)
  })

  it('is linked once: what a manifest names after a restart is a hit, and nothing new', async () => {
    const { layover, upstream } = await startLayover()
    const image = buildImage({ layers: [300_000], seed: 'linked' })
    upstream.addImage(NAME, 'latest', image)
    const path = `/v2/${NAME}/blobs/${image.layers[0]?.digest}`
    const pull = async (): Promise<void> => {
      await layover.get(`/v2/${NAME}/manifests/latest`)
      await layover.get(path)
    }
    await pull()
    await layover.stored(image.layers[0]?.digest ?? '')
    const added = (): number =>
      layover.messages().filter((message) => message.startsWith('Adding new scheduler entry'))
        .length
    const before = added()

    await layover.restart()
    await pull()

    expect(added()).toBe(before)
  })

  it('has a file for what is being read, though it is removed meanwhile', async () => {
    const { layover, upstream } = await startLayover()
    const blob = blobOf(24_000_000, 'read while removed')
    upstream.addBlob(NAME, blob)
    const path = `/v2/${NAME}/blobs/${blob.digest}`
    await layover.get(path)
    await layover.stored(blob.digest)
    const client = await layover.open(path)
    await client.read(1000)
    await rm(join(layover.rootDirectory, 'docker'), { recursive: true })
    const rest = await client.finish()
    expect(rest.ending).toBe('complete')
    expect(rest.body.equals(blob.bytes.subarray(1000))).toBe(true)
  })
})
