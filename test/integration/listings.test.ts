// Lists: tags and referrers as the upstream has them, the catalog as it is here.

import { describe, expect, it } from 'vitest'
import { MEDIA_TYPES } from '../../src/oci/manifest.ts'
import { FakeClock } from '../support/fake-clock.ts'
import type { FaultName } from '../support/fake-upstream-faults.ts'
import type { RawResponse } from '../support/http-client.ts'
import { startLayover } from '../support/layover.ts'
import { buildArtifact, buildImage } from '../support/images.ts'

const NAME = 'library/alpine'
const TAGS = `/v2/${NAME}/tags/list`

function json(answer: RawResponse): unknown {
  return JSON.parse(answer.body.toString())
}

/** The path of the next page. */
function next(answer: RawResponse): string | undefined {
  return /^<([^>]+)>; rel="next"$/.exec(answer.header('link') ?? '')?.[1]
}

function count(answer: RawResponse): number {
  const index = json(answer) as { manifests: readonly unknown[] }
  return index.manifests.length
}

async function withRepositories(): Promise<Awaited<ReturnType<typeof startLayover>>> {
  const running = await startLayover({ configuration: { catalog: { maxentries: 3 } } })
  for (const name of ['b', 'a/b', 'a', 'a-b']) {
    running.upstream.addImage(name, '3', buildImage())
    await running.layover.get(`/v2/${name}/manifests/3`)
  }
  return running
}

describe('tags/list', () => {
  it("is the upstream's, asked for once within tagttl", async () => {
    const clock = new FakeClock()
    const { layover, upstream } = await startLayover({ clock })
    for (const tag of ['b', 'a', 'c']) upstream.addImage(NAME, tag, buildImage())
    const cold = await layover.get(TAGS)
    expect(json(cold)).toEqual({ name: NAME, tags: ['a', 'b', 'c'] })
    expect(cold.header('content-type')).toBe('application/json')
    expect((await layover.get(TAGS)).header('x-cache')).toBe('HIT')
    expect(upstream.count()).toBe(1)
    await clock.advance(60_000)
    await layover.get(TAGS)
    expect(upstream.count()).toBe(2)
  })

  it('leads through its pages by links to this server', async () => {
    const { layover, upstream } = await startLayover()
    const tags = ['1', '2', '3', '4', '5']
    for (const tag of tags) upstream.addImage(NAME, tag, buildImage())
    const seen: unknown[] = []
    for (let path: string | undefined = `${TAGS}?n=2`; path;) {
      const answer: RawResponse = await layover.get(path)
      seen.push(json(answer))
      path = next(answer)
      if (path) expect(path).toMatch(/^\/v2\/library\/alpine\/tags\/list\?last=\d&n=2$/)
    }
    expect(seen).toEqual([
      { name: NAME, tags: ['1', '2'] },
      { name: NAME, tags: ['3', '4'] },
      { name: NAME, tags: ['5'] },
    ])
  })

  it('gives smaller pages than asked for where tags.maxtags says so', async () => {
    const { layover, upstream } = await startLayover({ configuration: { tags: { maxtags: 2 } } })
    for (const tag of ['1', '2', '3']) upstream.addImage(NAME, tag, buildImage())
    const answer = await layover.get(`${TAGS}?n=10000`)
    expect(json(answer)).toEqual({ name: NAME, tags: ['1', '2'] })
    expect(next(answer)).toBe(`${TAGS}?last=2&n=2`)
  })

  it('is empty for n=0, and starts after last', async () => {
    const { layover, upstream } = await startLayover()
    for (const tag of ['a', 'b']) upstream.addImage(NAME, tag, buildImage())
    const none = await layover.get(`${TAGS}?n=0`)
    expect([json(none), next(none)]).toEqual([{ name: NAME, tags: [] }, undefined])
    expect(json(await layover.get(`${TAGS}?last=a`))).toEqual({ name: NAME, tags: ['b'] })
    expect(json(await layover.get(`${TAGS}?last=aa&n=5`))).toEqual({ name: NAME, tags: ['b'] })
  })

  it.each(['-1', 'x', '1e3', '99999999999', '1.5'])('refuses n=%s', async (n) => {
    const { layover } = await startLayover()
    const answer = await layover.get(`${TAGS}?n=${n}`)
    expect(answer.status).toBe(400)
    expect(json(answer)).toMatchObject({ errors: [{ code: 'PAGINATION_NUMBER_INVALID' }] })
  })

  it('is 404 for a repository that the upstream does not have', async () => {
    const { layover } = await startLayover()
    const answer = await layover.get(TAGS)
    expect(answer.status).toBe(404)
    expect(json(answer)).toMatchObject({ errors: [{ code: 'NAME_UNKNOWN' }] })
  })

  it.each(['unavailable', 'rate-limited', 'cut-before-headers', 'garbage'] as FaultName[])(
    'is what is stored here when the upstream fails (%s)',
    async (fault) => {
      const { layover, upstream } = await startLayover()
      for (const tag of ['b', 'a', 'unseen']) upstream.addImage(NAME, tag, buildImage())
      for (const tag of ['b', 'a']) await layover.get(`/v2/${NAME}/manifests/${tag}`)
      upstream.fault({}, fault)
      const answer = await layover.get(TAGS)
      expect(json(answer)).toEqual({ name: NAME, tags: ['a', 'b'] })
      expect(answer.header('x-cache')).toBe('STALE')
      expect(answer.header('warning')).toMatch(/^299 /)
      const page = await layover.get(`${TAGS}?n=1`)
      expect([json(page), next(page)]).toEqual([{ name: NAME, tags: ['a'] }, `${TAGS}?last=a&n=1`])
    },
  )

  it('is 503 when the upstream fails and nothing is stored', async () => {
    const { layover, upstream } = await startLayover()
    upstream.fault({}, 'unavailable')
    expect((await layover.get(TAGS)).status).toBe(503)
  })

  it.each(['link-to-other-host', 'link-upwards', 'link-malformed'] as const)(
    'leads nowhere else, whatever the upstream says (%s)',
    async (fault) => {
      const { layover, upstream } = await startLayover()
      for (const tag of ['a', 'b']) upstream.addImage(NAME, tag, buildImage())
      upstream.fault({ kind: 'tags' }, fault)
      const answer = await layover.get(`${TAGS}?n=1`)
      expect(answer.status).toBe(200)
      const path = next(answer)
      if (path !== undefined) expect(path.startsWith(`${TAGS}?`)).toBe(true)
    },
  )
})

describe('_catalog', () => {
  it('lists what is stored, page by page, without asking anybody', async () => {
    const { layover, upstream } = await withRepositories()
    await upstream.down()
    const first = await layover.get('/v2/_catalog')
    expect(json(first)).toEqual({ repositories: ['a', 'a/b', 'a-b'] })
    expect(next(first)).toBe('/v2/_catalog?last=a-b&n=3')
    const second = await layover.get(next(first) ?? '')
    expect([json(second), next(second)]).toEqual([{ repositories: ['b'] }, undefined])
  })

  it('starts after last, which need not exist', async () => {
    const { layover } = await withRepositories()
    expect(json(await layover.get('/v2/_catalog?last=a/b&n=1'))).toEqual({
      repositories: ['a-b'],
    })
    expect(json(await layover.get('/v2/_catalog?last=zzz'))).toEqual({ repositories: [] })
  })

  it('refuses more than catalog.maxentries, and what is no number', async () => {
    const { layover } = await withRepositories()
    for (const n of ['4', '-1', 'x']) {
      expect((await layover.get(`/v2/_catalog?n=${n}`)).status).toBe(400)
    }
    expect(json(await layover.get('/v2/_catalog?n=0'))).toEqual({ repositories: [] })
  })

  it('is empty at first', async () => {
    const { layover } = await startLayover()
    expect(json(await layover.get('/v2/_catalog'))).toEqual({ repositories: [] })
  })
})

describe('referrers', () => {
  const image = buildImage()
  const path = `/v2/${NAME}/referrers/${image.manifest.digest}`
  const signature = 'application/vnd.example.signature'

  async function withReferrers(
    options: { referrersPerPage?: number; referrers?: boolean } = {},
  ): Promise<Awaited<ReturnType<typeof startLayover>>> {
    const running = await startLayover({ upstream: { referrersPerPage: 100, ...options } })
    running.upstream.addImage(NAME, '3', image)
    for (const [seed, artifactType] of [
      [1, 'application/vnd.example.sbom'],
      [2, signature],
      [3, signature],
    ] as const) {
      running.upstream.addImage(
        NAME,
        undefined,
        buildArtifact(image.manifest, { artifactType, seed }),
      )
    }
    return running
  }

  it("are the upstream's, asked for once within tagttl", async () => {
    const { layover, upstream } = await withReferrers()
    const cold = await layover.get(path)
    expect(cold.header('content-type')).toBe(MEDIA_TYPES.ociIndex)
    expect(count(cold)).toBe(3)
    expect((await layover.get(path)).header('x-cache')).toBe('HIT')
    expect(upstream.count()).toBe(1)
  })

  it('are filtered by the upstream, which says so', async () => {
    const { layover } = await withReferrers()
    const answer = await layover.get(`${path}?artifactType=${encodeURIComponent(signature)}`)
    expect(count(answer)).toBe(2)
    expect(answer.header('oci-filters-applied')).toBe('artifactType')
  })

  it('come in pages that lead to this server', async () => {
    const { layover } = await withReferrers({ referrersPerPage: 2 })
    const first = await layover.get(path)
    expect(count(first)).toBe(2)
    const link = next(first)
    expect(link?.startsWith(`${path}?page=`)).toBe(true)
    const second = await layover.get(link ?? '')
    expect([count(second), next(second)]).toEqual([1, undefined])
  })

  it.each(['not-found', 'html-404'] as const)(
    'are 404 where the upstream has no such API (%s), so that clients use the tag',
    async (fault) => {
      const { layover, upstream } = await withReferrers({ referrers: false })
      upstream.fault({ kind: 'referrers' }, fault)
      expect((await layover.get(path)).status).toBe(404)
    },
  )

  it('are those that were seen last when the upstream fails', async () => {
    const clock = new FakeClock()
    const { layover, upstream } = await startLayover({ clock, upstream: { referrersPerPage: 100 } })
    upstream.addImage(NAME, '3', image)
    upstream.addImage(NAME, undefined, buildArtifact(image.manifest))
    await layover.get(path)
    await clock.advance(60_000)
    upstream.fault({}, 'rate-limited')
    const answer = await layover.get(path)
    expect([count(answer), answer.header('x-cache')]).toEqual([1, 'STALE'])
    const other = `/v2/${NAME}/referrers/${buildImage({ seed: 9 }).manifest.digest}`
    expect((await layover.get(other)).status).toBe(503)
  })
})
