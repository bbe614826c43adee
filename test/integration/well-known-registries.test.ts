// The ways of the registries that people pull from, each shown by an upstream that has them.

import { describe, expect, it } from 'vitest'
import { buildImage, buildIndex, type TestImage } from '../support/images.ts'
import { startLayover, type Layover, type LayoverOptions } from '../support/layover.ts'
import type { FakeUpstream } from '../support/fake-upstream.ts'

const REPOSITORY = 'org/app'
const BASE = `/v2/${REPOSITORY}`
const IMAGE = buildImage({ layers: [1000, 200_000] })

/** A cache in front of an upstream with an image. */
async function startWith(
  options: LayoverOptions,
): Promise<{ layover: Layover; upstream: FakeUpstream }> {
  const started = await startLayover(options)
  started.upstream.addImage(REPOSITORY, '1', buildIndex([IMAGE]))
  return started
}

/** Everything of the image, as clients ask for it. */
async function pullAll(layover: Layover, { config, layers, manifest }: TestImage): Promise<void> {
  expect((await layover.head(`${BASE}/manifests/1`)).status).toBe(200)
  expect((await layover.get(`${BASE}/manifests/1`)).status).toBe(200)
  const child = await layover.get(`${BASE}/manifests/${manifest.digest}`)
  expect(child.body.equals(manifest.bytes)).toBe(true)
  for (const { bytes, digest } of [config, ...layers]) {
    expect((await layover.head(`${BASE}/blobs/${digest}`)).status).toBe(200)
    expect((await layover.get(`${BASE}/blobs/${digest}`)).body.equals(bytes)).toBe(true)
  }
}

describe('pulling all of an image from a registry', () => {
  it('that gives a token for each repository and sends blobs from another host (Docker Hub, GHCR, Quay)', async () => {
    const { layover, upstream } = await startWith({
      upstream: { auth: 'bearer', redirectBlobs: true },
    })
    await pullAll(layover, IMAGE)
    const sentOn = upstream.requests.filter(({ kind }) => kind === 'cdn')
    expect(sentOn.length).toBeGreaterThan(0)
    expect(sentOn.filter(({ headers }) => headers.authorization !== undefined)).toEqual([])
  })

  it('that has one token for everything, and refuses HEAD for blobs (public.ecr.aws)', async () => {
    const challenge = 'Bearer realm="{tokenUrl}",service="public.ecr.aws",scope="aws"'
    const { layover, upstream } = await startWith({ upstream: { auth: 'bearer', challenge } })
    upstream.fault({ kind: 'blob', method: 'HEAD' }, 'unauthorized')
    await pullAll(layover, IMAGE)
    const scopes = upstream.requests.filter(({ kind }) => kind === 'token')
    expect(new Set(scopes.map(({ reference }) => reference))).toEqual(new Set(['aws']))
  })

  it('that sends manifests and blobs from other hosts (registry.k8s.io)', async () => {
    const { layover, upstream } = await startWith({})
    const kind = ['manifest-tag', 'manifest-digest', 'blob'] as const
    upstream.fault({ kind }, 'redirect-cross-host')
    await pullAll(layover, IMAGE)
    expect(upstream.count({ kind: 'hop' })).toBeGreaterThan(3)
  })

  it('that names the place of a blob without its host (pkg.dev, gcr.io)', async () => {
    const { layover, upstream } = await startWith({ upstream: { auth: 'bearer' } })
    upstream.fault({ kind: 'blob' }, { redirect: { relative: true, status: 302 } })
    await pullAll(layover, IMAGE)
    expect(upstream.count({ kind: 'hop' })).toBeGreaterThan(0)
  })

  it('that wants a name and a password with each request (private ECR)', async () => {
    const credentials = { username: 'AWS', password: 's3cret' }
    const { layover, upstream } = await startWith({
      upstream: { auth: 'basic', credentials, redirectBlobs: true },
      configuration: { proxy: {} },
    })
    expect((await layover.get(`${BASE}/manifests/1`)).status).toBe(404)
    await layover.restart({ proxy: { remoteurl: upstream.url, ...credentials } })
    await pullAll(layover, IMAGE)
  })

  it('that asks nobody who he is, and has no HEAD for manifests (mcr.microsoft.com, old Quay)', async () => {
    const { layover, upstream } = await startWith({ upstream: { redirectBlobs: true } })
    upstream.fault({ method: 'HEAD', kind: ['manifest-tag', 'manifest-digest'] }, 'no-head')
    await pullAll(layover, IMAGE)
    expect(upstream.count({ kind: 'token' })).toBe(0)
  })

  it('that tells no digests (registry.access.redhat.com)', async () => {
    const { layover, upstream } = await startWith({})
    upstream.fault({}, 'digest-header-missing')
    await pullAll(layover, IMAGE)
  })

  it('below a path of its host (Harbor, Artifactory, GitLab)', async () => {
    const { layover } = await startWith({
      upstream: { pathPrefix: '/artifactory/api/docker/hub', auth: 'bearer' },
    })
    await pullAll(layover, IMAGE)
  })
})
