// Three registries through one cache on one port, each client in its own way of saying which one it means. All three
// have the same repository and tag, each with another image: a mix-up cannot stay unseen.

import { rmSync } from 'node:fs'
import { beforeAll, describe, expect, it } from 'vitest'
import { Cache } from './support/cache.ts'
import { CLIENTS, ClientSet } from './support/clients.ts'
import { digestOf } from './support/images.ts'
import { freePort } from './support/loopback-server.ts'
import { Daemon } from './support/processes.ts'
import { asPushed, nameOf, Upstream, type PushedImage } from './support/upstream.ts'
import { openWorkspace, type Workspace } from './support/workspace.ts'
import { waitFor } from '../support/wait-for.ts'

const REGISTRIES = ['docker.io', 'ghcr.io', 'quay.io'] as const
type Registry = (typeof REGISTRIES)[number]

/** Where everybody may pull. */
const REPOSITORY = 'library/app'

const workspace = openWorkspace()
/** Each registry writes files of the same names. */
const workspaces: Record<Registry, Workspace> = {
  'docker.io': workspace,
  'ghcr.io': openWorkspace(),
  'quay.io': openWorkspace(),
}
const upstreams = new Map<Registry, Upstream>()
const images = new Map<Registry, PushedImage>()
let cache: Cache
let metricsAddress: string
let clients: ClientSet

beforeAll(async () => {
  for (const registry of REGISTRIES) {
    const upstream = await Upstream.start(workspaces[registry])
    upstreams.set(registry, upstream)
    const image = { repository: REPOSITORY, seed: registry, kind: 'oci' } as const
    images.set(registry, await upstream.push(image))
  }
  const configured = (registry: Registry): object => ({
    remoteurl: upstreamOf(registry).url,
    allowedrealms: [upstreamOf(registry).tokenRealm],
  })
  const all = REGISTRIES.map((registry) => [registry, configured(registry)])
  // The main one is a stand-in for Docker Hub, which does not have its name: so that is listed too.
  metricsAddress = `127.0.0.1:${await freePort()}`
  cache = await Cache.start(workspace, upstreamOf('docker.io'), {
    http: { debug: { addr: metricsAddress, prometheus: { enabled: true } } },
    proxy: { upstreams: Object.fromEntries(all) },
  })
  clients = new ClientSet(workspace, { mirror: cache.address })
})

/** Each registry's image, as a client that means it gets it. */
async function expectRightImages(
  pull: (registry: Registry, name: string) => Promise<object>,
): Promise<void> {
  for (const registry of REGISTRIES) {
    const image = imageOf(registry)
    expect(await pull(registry, nameOf(image))).toEqual(asPushed(image))
  }
}

describe('one cache for three registries', () => {
  it.runIf(CLIENTS.includes('containerd'))(
    'serves containerd, with one hosts.toml for all registries',
    async () => {
      const containerd = await clients.get('containerd')
      rmSync(workspace.path('hosts/docker.io'), { recursive: true, force: true })
      workspace.writeFile(
        'hosts/_default/hosts.toml',
        `[host."${cache.url}"]\n  capabilities = ["pull", "resolve"]`,
      )
      await expectRightImages((registry, name) => containerd.pullFrom(registry, name))
      const asked = (): Set<string> =>
        new Set(cache.accessLines().flatMap(({ uri }) => /ns=([^&]*)/.exec(uri)?.[1] ?? []))
      // Lines are written some time after what they tell of.
      await waitFor('the lines of all', () => asked().size >= REGISTRIES.length)
      expect(asked()).toEqual(new Set(REGISTRIES))
    },
  )

  it.runIf(CLIENTS.includes('containerd'))(
    'serves containerd that says it by ns and by path',
    async () => {
      const containerd = await clients.get('containerd')
      for (const registry of REGISTRIES) {
        workspace.writeFile(
          `hosts/${registry}/hosts.toml`,
          [
            `[host."${cache.url}/v2/${registry}"]`,
            '  capabilities = ["pull", "resolve"]',
            '  override_path = true',
          ].join('\n'),
        )
      }
      for (const registry of REGISTRIES) {
        await containerd.removeFrom(registry, nameOf(imageOf(registry)))
      }
      await expectRightImages((registry, name) => containerd.pullFrom(registry, name))
      const both = `/v2/ghcr.io/${REPOSITORY}/`
      await waitFor('the line of a request that says both', () =>
        cache.accessLines().some(({ uri }) => uri.startsWith(both)),
      )
    },
  )

  it.runIf(CLIENTS.includes('podman'))('serves podman, with a mirror for each', async () => {
    const podman = await clients.get('podman')
    const mirrors = REGISTRIES.map((registry) =>
      [
        '[[registry]]',
        `location = "${registry}"`,
        '[[registry.mirror]]',
        `location = "${cache.address}/${registry}"`,
        'insecure = true',
      ].join('\n'),
    )
    workspace.writeFile('podman/registries.conf', mirrors.join('\n'))
    await expectRightImages((registry, name) => podman.pullFrom(registry, name))
  })

  it.runIf(CLIENTS.includes('skopeo'))('serves skopeo, by path', async () => {
    const skopeo = await clients.get('skopeo')
    const insecure = ['[[registry]]', `location = "${cache.address}"`, 'insecure = true']
    workspace.writeFile('skopeo/registries.conf', insecure.join('\n'))
    await expectRightImages((registry, name) =>
      skopeo.pullFrom(`${cache.address}/${registry}`, name),
    )
  })

  it.runIf(CLIENTS.includes('docker'))('serves docker the main one, by its root', async () => {
    const docker = await clients.get('docker')
    const image = imageOf('docker.io')
    expect(await docker.pull(nameOf(image))).toEqual(asPushed(image))
  })

  it('has asked each of them for its own, and for what they share only one of them', () => {
    const times = new Map<string, number>()
    for (const registry of REGISTRIES) {
      const sent = upstreamOf(registry).counts.objectGets()
      const { objects, top } = imageOf(registry)
      expect([...sent.keys()].filter((digest) => !objects.has(digest))).toEqual([])
      expect(sent.get(top.digest)).toHaveLength(1)
      for (const [digest, { length }] of sent) times.set(digest, (times.get(digest) ?? 0) + length)
    }
    const all = REGISTRIES.flatMap((registry) => [...imageOf(registry).objects.keys()])
    expect(times).toEqual(new Map([...times.keys()].map((digest) => [digest, 1])))
    expect(new Set(times.keys())).toEqual(new Set(all))
  })

  it('counts what it did for each of them under its name', async () => {
    const metrics = await (await fetch(`http://${metricsAddress}/metrics`)).text()
    const counted = [...metrics.matchAll(/^layover_requests_total\{upstream="([^"]+)",/gm)]
    // The main one only docker asks for, which may be left out.
    const main = new URL(upstreamOf('docker.io').url).host
    const names = new Set([main, ...counted.map(([, upstream]) => upstream)])
    expect(names).toEqual(new Set([main, ...REGISTRIES]))
  })

  it('lists what it has under names of their own', async () => {
    const { repositories } = await getJson(`${cache.url}/v2/_catalog`)
    const named = ['docker.io/', 'ghcr.io/', '', 'quay.io/'].map((name) => name + REPOSITORY)
    expect(repositories).toEqual(named)
    expect(await getJson(`${cache.url}/quay.io/v2/_catalog`)).toEqual({
      repositories: [REPOSITORY],
    })
  })
})

describe('a chain with registry:2', () => {
  it.each(['behind it', 'in front of it'])('works with the cache %s', async (where) => {
    const space = workspaces['ghcr.io']
    const address = `127.0.0.1:${await freePort()}`
    const isBehind = where === 'behind it'
    const config = space.writeFile(`registry ${where}.yml`, {
      version: 0.1,
      log: { level: 'warn', accesslog: { disabled: true } },
      storage: { filesystem: { rootdirectory: space.makeDirectory(`registry ${where}`) } },
      http: { addr: address },
      proxy: { remoteurl: isBehind ? cache.url : upstreamOf('quay.io').url },
    })
    await Daemon.start(space, {
      name: `registry ${where}`,
      command: 'docker-registry',
      args: ['serve', config],
      isReady: async () => (await fetch(`http://${address}/v2/`)).ok,
    })
    const behind = (): Promise<Cache> =>
      Cache.start(workspaces['quay.io'], upstreamOf('quay.io'), {
        proxy: { remoteurl: `http://${address}` },
      })
    const front = isBehind ? `http://${address}` : (await behind()).url
    const image = imageOf(isBehind ? 'docker.io' : 'quay.io')
    for (let round = 0; round < 2; round++) {
      const manifest = await bytesOf(`${front}/v2/${REPOSITORY}/manifests/${image.tag}`)
      expect(digestOf(manifest)).toBe(image.top.digest)
      for (const digest of image.objects.keys()) {
        if (digest === image.top.digest) continue
        expect(digestOf(await bytesOf(`${front}/v2/${REPOSITORY}/blobs/${digest}`))).toBe(digest)
      }
    }
  })
})

function upstreamOf(registry: Registry): Upstream {
  const upstream = upstreams.get(registry)
  if (!upstream) throw new Error(`${registry} was not started`)
  return upstream
}

function imageOf(registry: Registry): PushedImage {
  const image = images.get(registry)
  if (!image) throw new Error(`nothing was pushed to ${registry}`)
  return image
}

async function bytesOf(url: string): Promise<Buffer> {
  const accept = 'application/vnd.oci.image.manifest.v1+json'
  const response = await fetch(url, { headers: { accept } })
  expect(response.status).toBe(200)
  return Buffer.from(await response.arrayBuffer())
}

async function getJson(url: string): Promise<Record<string, unknown>> {
  return JSON.parse((await bytesOf(url)).toString()) as Record<string, unknown>
}
