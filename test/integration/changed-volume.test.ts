// A volume that is emptied, unmounted or replaced under the running process: what is asked for afterwards must be on the
// disk that is there now, also after a restart.

import { readdir, rename, rm } from 'node:fs/promises'
import { join } from 'node:path'
import { describe, expect, it } from 'vitest'
import { startFakeUpstream } from '../support/fake-upstream.ts'
import { FakeClock } from '../support/fake-clock.ts'
import { rawGet } from '../support/http-client.ts'
import { buildImage, type TestImage } from '../support/images.ts'
import { startLayover, type Layover } from '../support/layover.ts'
import { makeTempDirectory } from '../support/temp-directory.ts'
import { waitFor } from '../support/wait-for.ts'

const NAME = 'library/alpine'
const CHECK_INTERVAL_MS = 10_000

async function start() {
  const clock = new FakeClock()
  const upstream = await startFakeUpstream()
  const { layover } = await startLayover({
    clock,
    upstream,
    // Such tags are not asked about again, nor written.
    configuration: { proxy: { tagrules: { '*': 'immutable' } } },
  })
  // From now on what it does not know is not there.
  await waitFor('the volume to be looked through', async () => {
    await clock.advance(1)
    return layover.messages().some((each) => each.startsWith('found '))
  })
  const image = buildImage({ layers: [300_000, 100] })
  upstream.addImage(NAME, '3', image)
  await layover.pull(NAME, '3', image)
  const untilHealth = async (wanted: number): Promise<string> => {
    return waitFor(`the health to be ${wanted}`, async () => {
      await clock.advance(CHECK_INTERVAL_MS)
      const { body, status } = await rawGet(`${layover.debugUrl}/debug/health`)
      return status === wanted ? body.toString() : undefined
    })
  }
  return { clock, image, layover, untilHealth, upstream }
}

async function expectServed(layover: Layover, image: TestImage, tag = '3'): Promise<void> {
  const manifest = await layover.get(`/v2/${NAME}/manifests/${tag}`)
  expect([manifest.status, manifest.body.equals(image.manifest.bytes)]).toEqual([200, true])
  for (const { bytes, digest } of [image.config, ...image.layers]) {
    const blob = await layover.get(`/v2/${NAME}/blobs/${digest}`)
    expect([blob.status, blob.body.equals(bytes)]).toEqual([200, true])
  }
}

function errorsIn({ log }: Layover): string[] {
  return log.filter(({ level }) => level === 'error').map(({ msg }) => String(msg))
}

describe('a volume that is emptied under the process', () => {
  it('is noticed, and has what is asked for afterwards, also for the next start', async () => {
    const { image, layover, untilHealth, upstream } = await start()
    for (const name of await readdir(layover.rootDirectory)) {
      await rm(join(layover.rootDirectory, name), { recursive: true })
    }

    const failures = JSON.parse(await untilHealth(503)) as Record<string, string>

    expect(failures['storagedriver_volume']).toMatch(/layover is not what it was .*; restart/)
    const ready = await layover.get('/readyz?verbose')
    expect([ready.status, ready.body.toString()]).toEqual([
      200,
      expect.stringMatching(/^storagedriver_volume: failing, /m),
    ])
    await expectServed(layover, image)
    await layover.pull(NAME, '3', image)
    await untilHealth(503)
    expect(errorsIn(layover).filter((each) => each.includes('restart the cache'))).toHaveLength(1)
    await upstream.down()
    await layover.restart()
    await untilHealth(200)
    await expectServed(layover, image)
  })

  it('has what is asked for afterwards also when our own files have stayed', async () => {
    const { clock, image, layover, untilHealth, upstream } = await start()
    // So that the directories are known to have been there.
    await layover.restart()
    await expectServed(layover, image)
    await rm(join(layover.rootDirectory, 'docker'), { recursive: true })
    const warning = 'stored content was removed or replaced by somebody else; it is fetched again'
    await waitFor('the warning', async () => {
      await clock.advance(CHECK_INTERVAL_MS)
      return layover.messages().includes(warning)
    })
    await untilHealth(200)
    await layover.pull(NAME, '3', image)
    await upstream.down()
    await layover.restart()
    await expectServed(layover, image)
  })
})

describe('a volume that goes and comes back', () => {
  it('is noticed both times, and each has what was asked for while it was there', async () => {
    const { image, layover, untilHealth, upstream } = await start()
    const { rootDirectory } = layover
    const [first, second] = [await makeTempDirectory(), await makeTempDirectory()]
    const swap = async (to: string, from?: string): Promise<void> => {
      for (const name of await readdir(rootDirectory)) {
        await rename(join(rootDirectory, name), join(to, name))
      }
      for (const name of from === undefined ? [] : await readdir(from)) {
        await rename(join(from ?? '', name), join(rootDirectory, name))
      }
    }
    await swap(first)
    await untilHealth(503)
    const other = buildImage({ layers: [200_000], seed: 'other' })
    upstream.addImage(NAME, 'other', other)
    await layover.pull(NAME, 'other', other)

    await swap(second, first)

    await untilHealth(200)
    expect(layover.messages()).toContain(
      'the volume is the one again that this process started with',
    )
    await layover.pull(NAME, 'other', other)
    await upstream.down()
    await layover.restart()
    await expectServed(layover, image)
    expect((await layover.get(`/v2/${NAME}/manifests/other`)).status).toBe(200)
  })
})

describe('another volume that is mounted under the process', () => {
  it('is served from, and looked through by the next start, whatever it says of itself', async () => {
    const { image, layover, untilHealth, upstream } = await start()
    const { rootDirectory } = layover
    // Closed in order.
    const known = buildImage({ layers: [250_000], seed: 'known to the other one' })
    const other = await makeTempDirectory()
    const closed = await startLayover({ rootDirectory: other })
    closed.upstream.addImage(NAME, 'known', known)
    await closed.layover.pull(NAME, 'known', known)
    await waitFor('it to have seen all', () => {
      return closed.layover.messages().some((each) => each.startsWith('found '))
    })
    await closed.layover.stop()
    expect(await readdir(join(other, 'layover', 'index'))).toContain('complete')
    const away = await makeTempDirectory()
    for (const name of await readdir(rootDirectory)) {
      await rename(join(rootDirectory, name), join(away, name))
    }
    for (const name of await readdir(other)) {
      await rename(join(other, name), join(rootDirectory, name))
    }
    await untilHealth(503)
    await layover.pull(NAME, '3', image)
    await upstream.down()
    await expectServed(layover, known, 'known')
    await layover.restart()
    await expectServed(layover, known, 'known')
    await expectServed(layover, image)
  })
})
