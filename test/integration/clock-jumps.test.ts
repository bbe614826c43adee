// The machine's clock jumps by a day, as it does without a battery, after a suspend, or by a mistake: nothing is
// lost, nothing old is taken for fresh, and nothing stays for ever.

import { describe, expect, it } from 'vitest'
import { FakeClock } from '../support/fake-clock.ts'
import { buildImage } from '../support/images.ts'
import { startLayover } from '../support/layover.ts'
import { waitFor } from '../support/wait-for.ts'

const NAME = 'library/alpine'
const HOUR_MS = 3_600_000
const DAY_MS = 24 * HOUR_MS

describe.each([
  ['forward', DAY_MS],
  ['back', -DAY_MS],
])('a clock that jumps %s by a day', (_direction, jumpMs) => {
  it('costs no content, and one question for each tag', async () => {
    const clock = new FakeClock()
    const { layover, upstream } = await startLayover({ clock })
    const image = buildImage({ layers: [300_000, 100], seed: 'jump' })
    upstream.addImage(NAME, '3', image)
    const blobs = [image.config, ...image.layers]
    await layover.get(`/v2/${NAME}/manifests/3`)
    for (const { digest } of blobs) {
      await layover.get(`/v2/${NAME}/blobs/${digest}`)
      await layover.stored(digest)
    }
    const files = await layover.files('docker')
    upstream.reset()

    clock.jump(jumpMs)
    // The next sweeps go by the new time.
    for (let step = 0; step < 20; step++) await clock.advance(HOUR_MS)

    const byTag = await layover.get(`/v2/${NAME}/manifests/3`)
    expect(byTag.body.equals(image.manifest.bytes)).toBe(true)
    expect(Number(byTag.header('age'))).toBeGreaterThanOrEqual(0)
    for (const { bytes, digest } of blobs) {
      const blob = await layover.get(`/v2/${NAME}/blobs/${digest}`)
      expect([blob.header('x-cache'), blob.body.equals(bytes)]).toEqual(['HIT', true])
      expect(Number(blob.header('age') ?? 0)).toBeGreaterThanOrEqual(0)
    }
    expect(upstream.requests.map(({ method }) => method)).toEqual(['HEAD'])
    expect(await layover.files('docker')).toEqual(files)
  })

  it('does not keep a download in progress from ending, nor a restart from finding all', async () => {
    const clock = new FakeClock()
    const { layover, upstream } = await startLayover({ clock })
    const image = buildImage({ layers: [2_000_000], seed: 'download' })
    upstream.addImage(NAME, '3', image)
    const [layer = image.config] = image.layers
    const path = `/v2/${NAME}/blobs/${layer.digest}`
    const gate = upstream.gate({ kind: 'blob' }, { afterBytes: 1_000_000 })
    const client = await layover.open(path)
    clock.jump(jumpMs)
    gate.release()
    const { body, ending } = await client.finish()
    expect([ending, body.equals(layer.bytes)]).toEqual(['complete', true])
    await layover.stored(layer.digest)
    await layover.restart()
    clock.jump(-jumpMs)
    await upstream.down()
    const warm = await layover.get(path)
    expect([warm.header('x-cache'), warm.body.equals(layer.bytes)]).toEqual(['HIT', true])
  })

  it('does not keep what nobody uses for ever', async () => {
    const clock = new FakeClock()
    const { layover, upstream } = await startLayover({ clock })
    const image = buildImage({ layers: [300_000], seed: 'expires' })
    upstream.addImage(NAME, '3', image)
    await layover.get(`/v2/${NAME}/manifests/3`)
    clock.jump(jumpMs)
    let passedMs = 0
    await waitFor('everything to be gone', async () => {
      await clock.advance(6 * HOUR_MS)
      passedMs += 6 * HOUR_MS
      return (await layover.files('docker')).length === 0
    })
    expect(passedMs).toBeGreaterThan(5 * DAY_MS)
  })
})
