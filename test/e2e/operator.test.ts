// What an operator tries by hand, with curl: does it run, what does it have, what does it refuse.

import { beforeAll, describe, expect, it } from 'vitest'
import { waitFor } from '../support/wait-for.ts'
import { Cache, type AccessLine } from './support/cache.ts'
import { CLIENTS, ClientSet } from './support/clients.ts'
import { run } from './support/processes.ts'
import { nameOf, Upstream, type PushedImage } from './support/upstream.ts'
import { openWorkspace } from './support/workspace.ts'

const workspace = openWorkspace()
let upstream: Upstream
let cache: Cache
let clients: ClientSet
let image: PushedImage

beforeAll(async () => {
  upstream = await Upstream.start(workspace)
  image = await upstream.push({ repository: 'library/tools', layerSizesBytes: [100_000] })
  cache = await Cache.start(workspace, upstream)
  clients = new ClientSet(workspace, { mirror: cache.address })
})

describe('curl', () => {
  it('sees with -I /v2/ that a registry answers', async () => {
    const answer = await curl('--head', '/v2/')
    expect(answer).toMatch(/^HTTP\/1\.1 200 /)
    expect(answer).toContain('Docker-Distribution-Api-Version: registry/2.0')
  })

  it("reads a manifest's digest from the header as Docker writes it", async () => {
    const manifest = `/v2/${image.repository}/manifests/${image.tag}`
    const accept = ['--header', `Accept: ${image.top.mediaType}`]
    const answer = await curl('--head', ...accept, manifest)
    expect(answer).toMatch(/^HTTP\/1\.1 200 /)
    expect(answer).toContain(`Docker-Content-Digest: ${image.top.digest}`)
    expect(answer).toContain(`Content-Type: ${image.top.mediaType}`)
    expect(answer).toContain(`Content-Length: ${image.top.bytes.length}`)
    expect(await curl(...accept, manifest)).toBe(image.top.bytes.toString())
  })

  it('gets a blob, and a part of it', async () => {
    const blob = `/v2/${image.repository}/blobs/${image.configDigest}`
    const whole = await curl(blob)
    expect(JSON.parse(whole)).toMatchObject({ architecture: 'amd64' })
    expect(await curl('--range', '2-9', blob)).toBe(whole.slice(2, 10))
    expect(await curl('--head', '--range', '2-9', blob)).toMatch(/^HTTP\/1\.1 (206|200) /)
  })

  it('lists what was pulled in _catalog', async () => {
    expect(JSON.parse(await curl('/v2/_catalog'))).toEqual({ repositories: [image.repository] })
  })

  it('lists the tags of the upstream', async () => {
    const tags = JSON.parse(await curl(`/v2/${image.repository}/tags/list`))
    expect(tags).toEqual({ name: image.repository, tags: [image.tag] })
  })

  it('is told plainly when there is no such image', async () => {
    const answer = await curl('--include', '/v2/library/none/manifests/latest')
    expect(answer).toMatch(/^HTTP\/1\.1 404 /)
    expect(answer).toContain('MANIFEST_UNKNOWN')
  })
})

describe('who wants to push', () => {
  it('is refused at the first request', async () => {
    const answer = await curl('--include', '--request', 'POST', '/v2/library/mine/blobs/uploads/')
    expect(answer).toMatch(/^HTTP\/1\.1 405 /)
    expect(answer).toContain('"UNSUPPORTED"')
  })

  it.runIf(CLIENTS.includes('skopeo'))('with skopeo reads "unsupported"', async () => {
    const skopeo = await clients.get('skopeo')
    const copy = skopeo.copy(
      `docker://docker.io/${nameOf(image)}`,
      `docker://${cache.address}/library/mine:latest`,
    )
    await expect(copy).rejects.toThrow(/unsupported/i)
  })

  it.runIf(CLIENTS.includes('docker'))('with docker reads "unsupported"', async () => {
    const docker = await clients.get('docker')
    const repository = `${cache.address}/${image.repository}`
    await docker.command('pull', '--quiet', repository)
    // The layers are there already: docker would try to upload others for most of a minute.
    await docker.command('tag', repository, `${repository}:mine`)
    await expect(docker.command('push', `${repository}:mine`)).rejects.toThrow(/unsupported/i)
  })
})

describe('the access log', () => {
  it('has a line for each request that says whether the cache had it', async () => {
    const logged = await upstream.push({ repository: 'library/logged' })
    const uri = `/v2/${logged.repository}/blobs/${logged.configDigest}`
    const lines = (): AccessLine[] => cache.accessLines().filter((line) => line.uri === uri)

    await curl(uri)
    await waitFor('the line of a miss', () => lines().length === 1)
    expect(lines()).toMatchObject([{ method: 'GET', status: 200, cache: 'miss' }])

    await curl(uri)
    await waitFor('the line of a hit', () => lines().length === 2)
    expect(lines().at(-1)).toMatchObject({ method: 'GET', status: 200, cache: 'hit' })
  })
})

function curl(...args: string[]): Promise<string> {
  const [path, ...options] = args.toReversed()
  return run(workspace, 'curl', ['--silent', ...options.toReversed(), `${cache.url}${path}`])
}
