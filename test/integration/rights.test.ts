// Bytes are shared by digest, rights are not: what one repository holds is nobody else's to see.

import { describe, expect, it } from 'vitest'
import { startLayover } from '../support/layover.ts'
import { blobOf, buildImage, buildIndex, descriptorOf, manifestFrom } from '../support/images.ts'
import { MEDIA_TYPES } from '../../src/oci/manifest.ts'
import { waitFor } from '../support/wait-for.ts'

const PRIVATE = 'team/private'
const OTHER = 'team/other'
const MIB = 1024 * 1024

/** A manifest of an image that the registry may have as something else, and so has not looked into. */
async function startUnchecked(type: string) {
  const { layover, upstream } = await startLayover()
  const [config, secret] = [blobOf(2, 'config'), blobOf(1000, 'secret')]
  const naming = manifestFrom(type, {
    config: descriptorOf('application/json', config),
    layers: [descriptorOf('application/octet-stream', secret)],
  })
  upstream.addBlob(PRIVATE, secret)
  await layover.get(`/v2/${PRIVATE}/blobs/${secret.digest}`)
  await layover.stored(secret.digest)
  return { layover, upstream, naming, secret }
}

describe('a blob stored through one repository', () => {
  it.each([1000, MIB])('is 404 under another that does not have it (%i bytes)', async (size) => {
    const { layover, upstream } = await startLayover()
    const blob = blobOf(size, 'private')
    upstream.addBlob(PRIVATE, blob)
    upstream.addBlob(OTHER, blobOf(1, 'something else'))
    await layover.get(`/v2/${PRIVATE}/blobs/${blob.digest}`)
    await layover.stored(blob.digest)
    for (const method of ['GET', 'HEAD', 'GET']) {
      const answer = await layover.get(`/v2/${OTHER}/blobs/${blob.digest}`, { method })
      expect(answer.status).toBe(404)
      expect(answer.body.includes(blob.bytes.subarray(0, 64))).toBe(false)
    }
    expect(upstream.count({ repository: OTHER, method: 'HEAD' })).toBe(3)
    expect(upstream.count({ repository: OTHER, method: 'GET' })).toBe(0)
  })

  it('is told to be absent in the same words as what is stored nowhere, though not in the log', async () => {
    const { layover, upstream } = await startLayover()
    const blob = blobOf(1000, 'private')
    const image = buildImage({ seed: 'private' })
    upstream.addBlob(PRIVATE, blob)
    upstream.addImage(PRIVATE, '1', image)
    upstream.addBlob(OTHER, blobOf(1, 'something else'))
    await layover.get(`/v2/${PRIVATE}/blobs/${blob.digest}`)
    await layover.stored(blob.digest)
    await layover.get(`/v2/${PRIVATE}/manifests/${image.manifest.digest}`)
    const nowhere = blobOf(1, 'nowhere').digest
    const told = async (path: string): Promise<string> => {
      const answer = await layover.get(`/v2/${OTHER}/${path}`)
      expect(answer.status).toBe(404)
      return answer.body.toString()
    }
    for (const [kind, digest] of [
      ['blobs', blob.digest],
      ['manifests', image.manifest.digest],
    ] as const) {
      expect(await told(`${kind}/${digest}`)).toBe(await told(`${kind}/${nowhere}`))
    }
    const { error } = await layover.lastAccessLine(6)
    expect(error).toContain('answered 404')
  })

  it.each([1000, MIB])(
    'is served under another after one HEAD under its name (%i bytes)',
    async (size) => {
      const { layover, upstream } = await startLayover()
      const blob = blobOf(size, 'shared')
      upstream.addBlob(PRIVATE, blob)
      upstream.addBlob(OTHER, blob)
      await layover.get(`/v2/${PRIVATE}/blobs/${blob.digest}`)
      await layover.stored(blob.digest)
      for (let round = 0; round < 3; round++) {
        const answer = await layover.get(`/v2/${OTHER}/blobs/${blob.digest}`)
        expect(answer.body.equals(blob.bytes)).toBe(true)
      }
      expect(upstream.count({ repository: OTHER })).toBe(1)
      expect(upstream.count({ repository: OTHER, method: 'HEAD' })).toBe(1)
      expect(upstream.bytesSent(blob.digest)).toBe(size)
    },
  )

  it.each(['at once', 'after a restart'])(
    'is served under another without a question if a manifest of that one names it, %s',
    async (when) => {
      const { layover, upstream } = await startLayover()
      const image = buildImage({ layers: [MIB] })
      const [layer] = image.layers
      if (!layer) throw new Error('an image without a layer')
      upstream.addBlob(PRIVATE, layer)
      upstream.addImage(OTHER, '1', image)
      await layover.get(`/v2/${PRIVATE}/blobs/${layer.digest}`)
      await layover.stored(layer.digest)
      if (when !== 'at once') await layover.restart()
      await layover.get(`/v2/${OTHER}/manifests/1`)
      upstream.reset()
      const answer = await layover.get(`/v2/${OTHER}/blobs/${layer.digest}`)
      expect(answer.body.equals(layer.bytes)).toBe(true)
      expect(upstream.count()).toBe(0)
    },
  )

  it.each([
    ['to be had elsewhere', MEDIA_TYPES.ociManifest, { urls: ['https://layers.example/1'] }],
    [
      'that may not be passed on',
      MEDIA_TYPES.dockerManifest,
      { mediaType: 'application/vnd.docker.image.rootfs.foreign.diff.tar.gzip' },
    ],
    ['of a manifest of a type that registries do not look into', 'application/vnd.x+json', {}],
  ])(
    'is not served under another because that one names a layer %s',
    async (_what, type, extra) => {
      const { layover, upstream } = await startLayover()
      const [config, secret] = [blobOf(2, 'config'), blobOf(1000, 'secret')]
      const naming = manifestFrom(type, {
        config: descriptorOf('application/json', config),
        layers: [{ ...descriptorOf('application/octet-stream', secret), ...extra }],
      })
      upstream.addBlob(PRIVATE, secret)
      upstream.addManifest(OTHER, naming.bytes, type, '1')
      await layover.get(`/v2/${PRIVATE}/blobs/${secret.digest}`)
      await layover.stored(secret.digest)
      expect((await layover.get(`/v2/${OTHER}/manifests/1`)).status).toBe(200)
      expect((await layover.get(`/v2/${OTHER}/blobs/${secret.digest}`)).status).toBe(404)
      expect(upstream.count({ repository: OTHER, kind: 'blob', method: 'HEAD' })).toBe(1)
    },
  )

  it.each([
    ['an index', MEDIA_TYPES.ociIndex, MEDIA_TYPES.ociManifest],
    ['an index', MEDIA_TYPES.dockerList, ''],
    ['something else', 'application/vnd.x+json', MEDIA_TYPES.dockerManifest],
  ])(
    'is not served under another whose manifest names it, but was pushed as %s (%s, is %s)',
    async (_what, servedAs, type) => {
      const { layover, naming, secret, upstream } = await startUnchecked(type)
      upstream.addManifest(OTHER, naming.bytes, servedAs, '1')
      const asked = `/v2/${OTHER}/manifests/${naming.digest}`
      expect((await layover.get(`/v2/${OTHER}/manifests/1`)).status).toBe(200)
      expect((await layover.get(asked)).body.equals(naming.bytes)).toBe(true)
      expect((await layover.get(`/v2/${OTHER}/blobs/${secret.digest}`)).status).toBe(404)
    },
  )

  it('nor if one that was pushed as what it is has the same bytes', async () => {
    const { layover, naming, secret, upstream } = await startUnchecked(MEDIA_TYPES.ociManifest)
    upstream.addManifest(PRIVATE, naming.bytes, MEDIA_TYPES.ociManifest, '1')
    upstream.addManifest(OTHER, naming.bytes, MEDIA_TYPES.ociIndex, '1')
    for (const name of [PRIVATE, OTHER]) {
      expect((await layover.get(`/v2/${name}/manifests/1`)).status).toBe(200)
    }
    expect(upstream.count({ repository: OTHER, method: 'GET' })).toBe(0)
    expect((await layover.get(`/v2/${OTHER}/blobs/${secret.digest}`)).status).toBe(404)
  })

  it('nor after a restart, when nobody knows as what it was pushed', async () => {
    const { layover, naming, secret, upstream } = await startUnchecked('')
    upstream.addManifest(OTHER, naming.bytes, MEDIA_TYPES.ociIndex, '1')
    await layover.get(`/v2/${OTHER}/manifests/1`)
    await layover.restart()
    expect((await layover.get(`/v2/${OTHER}/manifests/1`)).status).toBe(200)
    expect((await layover.get(`/v2/${OTHER}/blobs/${secret.digest}`)).status).toBe(404)
  })

  it('stays out of reach when the upstream cannot be asked', async () => {
    const { layover, upstream } = await startLayover()
    const blob = blobOf(MIB, 'unasked')
    upstream.addBlob(PRIVATE, blob)
    await layover.get(`/v2/${PRIVATE}/blobs/${blob.digest}`)
    await layover.stored(blob.digest)
    upstream.fault({ repository: OTHER }, 'unavailable')
    for (const method of ['GET', 'HEAD']) {
      const answer = await layover.get(`/v2/${OTHER}/blobs/${blob.digest}`, { method })
      expect(answer.status).toBe(503)
    }
    expect((await layover.get(`/v2/${PRIVATE}/blobs/${blob.digest}`)).status).toBe(200)
  })

  it('is served under its own name after a restart, without a question', async () => {
    const { layover, upstream } = await startLayover()
    const blob = blobOf(MIB, 'restart')
    upstream.addBlob(PRIVATE, blob)
    await layover.get(`/v2/${PRIVATE}/blobs/${blob.digest}`)
    await layover.stored(blob.digest)
    await layover.restart()
    upstream.reset()
    expect((await layover.get(`/v2/${PRIVATE}/blobs/${blob.digest}`)).status).toBe(200)
    expect((await layover.get(`/v2/${OTHER}/blobs/${blob.digest}`)).status).toBe(404)
    expect(upstream.count({ repository: PRIVATE })).toBe(0)
  })
})

describe('a download that is under way', () => {
  it('is not joined by a repository that does not have the blob', async () => {
    const { layover, upstream } = await startLayover()
    const blob = blobOf(2 * MIB, 'running')
    upstream.addBlob(PRIVATE, blob)
    const gate = upstream.gate({ kind: 'blob', method: 'GET' }, { afterBytes: MIB })
    const client = await layover.open(`/v2/${PRIVATE}/blobs/${blob.digest}`)
    await client.read(1000)
    const stranger = await layover.get(`/v2/${OTHER}/blobs/${blob.digest}`)
    expect(stranger.status).toBe(404)
    gate.release()
    expect((await client.finish()).ending).toBe('complete')
    expect(upstream.count({ repository: OTHER, method: 'HEAD' })).toBe(1)
    expect(upstream.count({ method: 'GET' })).toBe(1)
    await layover.stored(blob.digest)
    const links = (await layover.files('docker')).filter((file) => file.includes('_layers'))
    expect(links.every((file) => file.includes(PRIVATE))).toBe(true)
  })

  it('is joined by a repository that has the blob, and linked in both', async () => {
    const { layover, upstream } = await startLayover()
    const blob = blobOf(2 * MIB, 'joined')
    upstream.addBlob(PRIVATE, blob)
    upstream.addBlob(OTHER, blob)
    const gate = upstream.gate({ kind: 'blob', method: 'GET' }, { afterBytes: MIB })
    const one = await layover.open(`/v2/${PRIVATE}/blobs/${blob.digest}`)
    const two = await layover.open(`/v2/${OTHER}/blobs/${blob.digest}`)
    expect([two.status, two.header('cache-status')]).toEqual([
      200,
      'layover; fwd=uri-miss; collapsed',
    ])
    gate.release()
    expect((await one.finish()).body.equals(blob.bytes)).toBe(true)
    expect((await two.finish()).body.equals(blob.bytes)).toBe(true)
    expect(upstream.count({ method: 'GET' })).toBe(1)
    await waitFor('both links', async () => {
      const links = (await layover.files('docker')).filter((file) => file.includes('_layers'))
      return links.length === 2
    })
  })

  it('is joined without a question by one whose manifest names the blob', async () => {
    const { layover, upstream } = await startLayover()
    const image = buildImage({ layers: [2 * MIB] })
    const [layer] = image.layers
    if (!layer) throw new Error('an image without a layer')
    upstream.addBlob(PRIVATE, layer)
    upstream.addImage(OTHER, '1', image)
    await layover.get(`/v2/${OTHER}/manifests/1`)
    const gate = upstream.gate({ kind: 'blob', method: 'GET' }, { afterBytes: MIB })
    const one = await layover.open(`/v2/${PRIVATE}/blobs/${layer.digest}`)
    const two = await layover.open(`/v2/${OTHER}/blobs/${layer.digest}`)
    expect(two.header('cache-status')).toBe('layover; fwd=uri-miss; collapsed')
    gate.release()
    for (const client of [one, two]) expect((await client.finish()).ending).toBe('complete')
    expect(upstream.count({ kind: 'blob' })).toBe(1)
  })

  it('survives that the repository which began it is refused', async () => {
    const { layover, upstream } = await startLayover()
    const blob = blobOf(2 * MIB, 'refused')
    upstream.addBlob(OTHER, blob)
    upstream.fault({ repository: PRIVATE }, 'denied')
    const gate = upstream.gate({ repository: PRIVATE })
    const refused = layover.get(`/v2/${PRIVATE}/blobs/${blob.digest}`)
    await gate.reached
    const right = layover.get(`/v2/${OTHER}/blobs/${blob.digest}`)
    await waitFor('the other to ask', () => upstream.count({ repository: OTHER }) === 1)
    gate.release()
    expect((await refused).status).toBe(404)
    const answer = await right
    expect(answer.status).toBe(200)
    expect(answer.body.equals(blob.bytes)).toBe(true)
  })
})

describe('a manifest stored through one repository', () => {
  it('is 404 by digest under another that does not have it', async () => {
    const { layover, upstream } = await startLayover()
    const image = buildImage()
    upstream.addImage(PRIVATE, '1', image)
    await layover.get(`/v2/${PRIVATE}/manifests/1`)
    const path = `/v2/${OTHER}/manifests/${image.manifest.digest}`
    for (const method of ['GET', 'HEAD']) {
      expect((await layover.get(path, { method })).status).toBe(404)
    }
    expect(upstream.count({ repository: OTHER, status: 200 })).toBe(0)
  })

  it('is served under another after one HEAD under its name', async () => {
    const { layover, upstream } = await startLayover()
    const image = buildImage()
    upstream.addImage(PRIVATE, '1', image)
    upstream.addImage(OTHER, undefined, image)
    await layover.get(`/v2/${PRIVATE}/manifests/1`)
    const path = `/v2/${OTHER}/manifests/${image.manifest.digest}`
    for (let round = 0; round < 2; round++) {
      expect((await layover.get(path)).body.equals(image.manifest.bytes)).toBe(true)
    }
    const asked = upstream.requests.filter(({ repository }) => repository === OTHER)
    expect(asked.map(({ method }) => method)).toEqual(['HEAD'])
  })

  it('is served under another also where the upstream refuses HEAD', async () => {
    const { layover, upstream } = await startLayover()
    const image = buildImage()
    upstream.addImage(PRIVATE, '1', image)
    upstream.addImage(OTHER, undefined, image)
    upstream.fault({ method: 'HEAD' }, 'no-head')
    await layover.get(`/v2/${PRIVATE}/manifests/1`)
    const answer = await layover.get(`/v2/${OTHER}/manifests/${image.manifest.digest}`)
    expect(answer.status).toBe(200)
    expect(answer.body.equals(image.manifest.bytes)).toBe(true)
  })

  it('is not served under another because an index of that one names it', async () => {
    // Registries take an index whoever has its images: naming one would be the way to get at it.
    const { layover, upstream } = await startLayover()
    const image = buildImage()
    upstream.addImage(PRIVATE, '1', image)
    const { manifest } = buildIndex([image])
    upstream.addManifest(OTHER, manifest.bytes, manifest.mediaType, '1')
    await layover.get(`/v2/${PRIVATE}/manifests/1`)
    await layover.get(`/v2/${OTHER}/manifests/1`)
    const answer = await layover.get(`/v2/${OTHER}/manifests/${image.manifest.digest}`)
    expect(answer.status).toBe(404)
    expect(answer.body.includes(image.config.digest)).toBe(false)
  })

  it('is no blob of that repository, nor is one of its blobs a manifest', async () => {
    const { layover, upstream } = await startLayover()
    const image = buildImage()
    upstream.addImage(PRIVATE, '1', image)
    await layover.get(`/v2/${PRIVATE}/manifests/1`)
    await layover.get(`/v2/${PRIVATE}/blobs/${image.config.digest}`)
    await layover.stored(image.config.digest)
    const asBlob = await layover.get(`/v2/${PRIVATE}/blobs/${image.manifest.digest}`)
    const asManifest = await layover.get(`/v2/${PRIVATE}/manifests/${image.config.digest}`)
    expect([asBlob.status, asManifest.status]).toEqual([404, 404])
  })

  it('cannot be had by a blob that looks like a manifest', async () => {
    const { layover, upstream } = await startLayover()
    // Stored as a blob under a name that anybody may write to; its bytes are a manifest.
    const secret = blobOf(1000, 'secret layer')
    const fake = manifestFrom(MEDIA_TYPES.ociManifest, {
      config: descriptorOf('application/json', blobOf(2, 'config')),
      layers: [descriptorOf('application/octet-stream', secret)],
    })
    upstream.addBlob(PRIVATE, secret)
    upstream.addBlob(OTHER, fake)
    await layover.get(`/v2/${PRIVATE}/blobs/${secret.digest}`)
    await layover.get(`/v2/${OTHER}/blobs/${fake.digest}`)
    await layover.stored(secret.digest)
    await layover.stored(fake.digest)
    expect((await layover.get(`/v2/${OTHER}/manifests/${fake.digest}`)).status).toBe(404)
    expect((await layover.get(`/v2/${OTHER}/blobs/${secret.digest}`)).status).toBe(404)
  })
})
