// The main upstream's repositories are stored without its name before them: no other upstream's name may come there.

import { describe, expect, it } from 'vitest'
import { buildImage } from '../support/images.ts'
import { REPOSITORY, startUpstreams } from '../support/upstream-set.ts'

/** An image that only the main upstream has, under a name that would be stored as another upstream's. */
async function startWithForeignName(proxy: Readonly<Record<string, unknown>> = {}) {
  const set = await startUpstreams({ proxy })
  const foreign = buildImage({ seed: 'foreign' })
  for (const host of ['ghcr.test', 'quay.test_5000', 'registry.example.com']) {
    set.upstreams.main.addImage(`${host}/${REPOSITORY}`, '1', foreign)
  }
  const { host } = new URL(set.upstreams.main.url)
  return { ...set, foreign, ns: `?ns=${host}`, inPath: host.replace(':', '_'), host }
}

describe("the main upstream's own name", () => {
  it.each(['ghcr.test', 'quay.test_5000', 'registry.example.com'])(
    'does not lead to what would be stored as a repository of %s',
    async (below) => {
      const { counts, host, inPath, layover, ns } = await startWithForeignName({
        upstreams: { '*': { enabled: true } },
      })
      const rest = `${below}/${REPOSITORY}/manifests/1`
      for (const path of [`/v2/${inPath}/${rest}`, `/v2/${inPath}/${rest}${ns}`]) {
        const answer = await layover.get(path)
        expect(answer.status).toBe(404)
        expect(answer.body.toString()).toContain(`is not asked for ${below}/…`)
      }
      for (const path of [`/v2/${rest}${ns}`, `/${host}/v2/${rest}`]) {
        expect((await layover.get(path)).status).toBe(404)
      }
      expect(counts().main).toBe(0)
    },
  )

  it('leads to its repositories of other such names, which are nobody else’s', async () => {
    const { foreign, inPath, layover } = await startWithForeignName()
    const answer = await layover.get(`/v2/${inPath}/registry.example.com/${REPOSITORY}/manifests/1`)
    expect(answer.header('docker-content-digest')).toBe(foreign.manifest.digest)
  })

  it('does not take the place of a name that another upstream may not be asked for', async () => {
    const { inPath, images, layover } = await startWithForeignName()
    await layover.get(`/v2/${inPath}/ghcr.test/${REPOSITORY}/manifests/1`)
    const answer = await layover.get(`/v2/ghcr.test/${REPOSITORY}/manifests/1`)
    expect(answer.header('docker-content-digest')).toBe(images['ghcr.test'].manifest.digest)
  })
})
