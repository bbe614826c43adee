import { mkdir, rm, writeFile } from 'node:fs/promises'
import path from 'node:path'
import { pino } from 'pino'
import { describe, expect, it } from 'vitest'
import { settleHosts, type HostOwnershipDeps } from '../../../src/cache/host-ownership.ts'
import { openVolume } from '../../support/volume-rig.ts'

describe('what another upstream has stored', () => {
  it('stops the start when it cannot be taken away', async () => {
    const { index, paths } = await openVolume()
    await mkdir(path.join(paths.repositories, 'gcr.io', 'p'), { recursive: true })
    // Nothing can be moved there.
    await rm(paths.temporary, { recursive: true })
    await writeFile(paths.temporary, '')
    const writer = { write: () => Promise.reject(new Error('nothing is settled')) }
    const upstreams = {
      hostNames: { others: ['gcr.io'], main: [] },
      main: { isDockerHub: false, name: 'cache.corp' },
    } as unknown as HostOwnershipDeps['upstreams']
    const settled = settleHosts({
      index,
      paths,
      writer,
      upstreams,
      logger: pino({ level: 'silent' }),
    })
    await expect(settled).rejects.toThrow(
      `could not take away what another upstream has stored in ${paths.repositories}/gcr.io: `,
    )
    await rm(paths.temporary)
    await mkdir(paths.temporary)
  })
})
