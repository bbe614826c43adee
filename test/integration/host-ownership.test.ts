// A repository of the main upstream may be called as another upstream's are stored: `gcr.test/p/q`. When the
// configuration changes whose such names are, nothing of the one is told as the other's.

import { rm } from 'node:fs/promises'
import { join } from 'node:path'
import { describe, expect, it, onTestFinished } from 'vitest'
import { startFakeUpstream, type FakeUpstream } from '../support/fake-upstream.ts'
import { buildImage, type TestImage } from '../support/images.ts'
import { startLayover, type Layover } from '../support/layover.ts'
import { plantBlob } from '../support/planted-volume.ts'
import { makeTempDirectory } from '../support/temp-directory.ts'

const HOST = 'gcr.test'
const NAME = 'p/q'
const STORED = `${HOST}/${NAME}`

type Sections = Readonly<Record<string, Readonly<Record<string, unknown>>>>

interface Scene {
  readonly layover: Layover
  readonly main: FakeUpstream
  readonly own: FakeUpstream
  /** With the main upstream alone, which has a repository of that name. */
  readonly alone: Sections
  /** With another upstream that is called so. */
  readonly both: Sections
  /** With Docker Hub in the place of the main upstream, and nobody to answer for it. */
  readonly hubAlone: Sections
  readonly hubAndBoth: Sections
}

async function startScene(first: 'alone' | 'both', rootDirectory?: string): Promise<Scene> {
  const [main, own] = [await startFakeUpstream(), await startFakeUpstream()]
  onTestFinished(() => own.close())
  const alone = { proxy: { remoteurl: main.url } }
  const upstreams = { [HOST]: { remoteurl: own.url } }
  const both = { proxy: { ...alone.proxy, upstreams } }
  const hub = { remoteurl: 'https://registry-1.docker.io', httpproxy: 'http://127.0.0.1:1' }
  const { layover } = await startLayover({
    upstream: main,
    configuration: first === 'alone' ? alone : both,
    ...(rootDirectory !== undefined && { rootDirectory }),
  })
  const hubAlone = { proxy: hub }
  const hubAndBoth = { proxy: { ...hub, upstreams } }
  return { layover, main, own, alone, both, hubAlone, hubAndBoth }
}

/** What is served of an image while its upstream cannot be asked. */
async function servedOf(layover: Layover, image: TestImage): Promise<(number | undefined)[]> {
  const [layer] = image.layers
  const rests = ['manifests/1', `manifests/${image.manifest.digest}`, `blobs/${layer?.digest}`]
  const statuses: (number | undefined)[] = []
  for (const rest of rests) statuses.push((await layover.get(`/v2/${STORED}/${rest}`)).status)
  return statuses
}

const TAKEN_AWAY = /^what (.+) has stored under gcr\.test\/ is taken away, .* what (\S+) has now;/

function told(layover: Layover): (readonly (string | undefined)[])[] {
  return layover.messages().flatMap((message) => {
    const [, former, next] = TAKEN_AWAY.exec(message) ?? []
    return former === undefined ? [] : [[former, next]]
  })
}

describe('what was stored below the name of a host', () => {
  it.each([
    ['by the main upstream is not served as what the new upstream of that name has', 'alone'],
    ['by an upstream of that name is not served as what the main one has', 'both'],
  ] as const)('%s', async (_what, first) => {
    const { alone, both, layover, main, own } = await startScene(first)
    const image = buildImage({ seed: first })
    const [former, next] = first === 'alone' ? [main, own] : [own, main]
    former.addImage(first === 'alone' ? STORED : NAME, '1', image)
    await layover.pull(STORED, '1', image)
    await layover.restart(first === 'alone' ? both : alone)
    await next.down()
    expect(await servedOf(layover, image)).toEqual([503, 503, 503])
    await next.up()
    next.addImage(first === 'alone' ? NAME : STORED, '1', buildImage({ seed: 'another' }))
    expect(await servedOf(layover, image)).toEqual([200, 404, 404])
    const mainHost = new URL(main.url).host
    expect(told(layover)).toEqual([first === 'alone' ? [mainHost, HOST] : [HOST, mainHost]])
  })

  it('is served again, without a download, once the new one has said that it has it, too', async () => {
    const { both, layover, main, own } = await startScene('alone')
    const image = buildImage()
    main.addImage(STORED, '1', image)
    own.addImage(NAME, '1', image)
    await layover.pull(STORED, '1', image)
    await layover.restart(both)
    expect(await servedOf(layover, image)).toEqual([200, 200, 200])
    expect(own.count({ kind: 'blob', method: 'GET' })).toBe(0)
    expect(own.count({ kind: 'blob', method: 'HEAD' })).toBe(1)
  })

  it.each(['alone', 'both'] as const)('stays when nothing changes (%s)', async (first) => {
    const { layover, main, own } = await startScene(first)
    const image = buildImage()
    const [upstream, name] = first === 'alone' ? [main, STORED] : [own, NAME]
    upstream.addImage(name, '1', image)
    await layover.pull(STORED, '1', image)
    await layover.restart()
    await upstream.down()
    expect(await servedOf(layover, image)).toEqual([200, 200, 200])
    expect(told(layover)).toEqual([])
    await upstream.up()
  })

  it('belongs to the main upstream in a volume that is taken over', async () => {
    const image = buildImage()
    const [layer] = image.layers
    if (!layer) throw new Error('an image without a layer')
    for (const first of ['alone', 'both'] as const) {
      const root = await makeTempDirectory()
      await plantBlob(root, STORED, layer)
      const { layover } = await startScene(first, root)
      const answer = await layover.get(`/v2/${STORED}/blobs/${layer.digest}`)
      expect(answer.status).toBe(first === 'alone' ? 200 : 404)
    }
  })

  it('counts as stored by the main upstream when nobody knows any more', async () => {
    const { layover, own } = await startScene('both')
    const image = buildImage()
    own.addImage(NAME, '1', image)
    await layover.pull(STORED, '1', image)
    await layover.stop()
    await rm(join(layover.rootDirectory, 'layover', 'hosts.json'))
    await layover.start()
    expect(told(layover)).toHaveLength(1)
    await own.down()
    expect(await servedOf(layover, image)).toEqual([503, 503, 503])
    await own.up()
  })

  it('waits for its own upstream beside Docker Hub, which has no such names', async () => {
    const { hubAlone, hubAndBoth, layover, own } = await startScene('both')
    const image = buildImage()
    own.addImage(NAME, '1', image)
    await layover.restart(hubAndBoth)
    await layover.pull(STORED, '1', image)
    await layover.restart(hubAlone)
    expect(await servedOf(layover, image)).toEqual([404, 404, 404])
    await layover.restart(hubAndBoth)
    await own.down()
    expect(await servedOf(layover, image)).toEqual([200, 200, 200])
    expect(told(layover)).toEqual([])
    await own.up()
  })

  it.each(['at once', 'after Docker Hub alone'])(
    "by the main upstream is not its own upstream's beside Docker Hub (%s)",
    async (when) => {
      const { hubAlone, hubAndBoth, layover, main, own } = await startScene('alone')
      const image = buildImage()
      main.addImage(STORED, '1', image)
      await layover.pull(STORED, '1', image)
      if (when !== 'at once') await layover.restart(hubAlone)
      await layover.restart(hubAndBoth)
      await own.down()
      expect(await servedOf(layover, image)).toEqual([503, 503, 503])
      await own.up()
      own.addImage(NAME, '1', buildImage({ seed: 'another' }))
      expect(await servedOf(layover, image)).toEqual([200, 404, 404])
      expect(told(layover)).toEqual([['another main upstream', HOST]])
    },
  )

  it('by an upstream of that name is not what the main one has, with Docker Hub in between', async () => {
    const { alone, hubAlone, layover, main, own } = await startScene('both')
    const image = buildImage()
    own.addImage(NAME, '1', image)
    await layover.pull(STORED, '1', image)
    await layover.restart(hubAlone)
    expect(told(layover)).toEqual([])
    await layover.restart(alone)
    await main.down()
    expect(await servedOf(layover, image)).toEqual([503, 503, 503])
    expect(told(layover)).toHaveLength(1)
    await main.up()
  })

  it("is nobody's own beside Docker Hub in a volume that is taken over", async () => {
    const image = buildImage()
    const [layer] = image.layers
    if (!layer) throw new Error('an image without a layer')
    const { hubAndBoth, layover } = await startScene('both')
    await layover.stop()
    await rm(join(layover.rootDirectory, 'layover'), { recursive: true })
    await plantBlob(layover.rootDirectory, STORED, layer)
    await layover.start(hubAndBoth)
    expect((await layover.get(`/v2/${STORED}/blobs/${layer.digest}`)).status).toBe(404)
    await layover.restart(hubAndBoth)
    expect(told(layover)).toHaveLength(1)
  })
})
