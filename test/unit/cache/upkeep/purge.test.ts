// What cannot be seen from outside; the rest is in test/integration/purge.test.ts.

import { existsSync } from 'node:fs'
import { describe, expect, it } from 'vitest'
import { Purge, type Purging } from '../../../../src/cache/upkeep/purge.ts'
import type { PurgeItem, PurgeSummary } from '../../../../src/cache/upkeep/purge-run.ts'
import type { PurgeRequest } from '../../../../src/cache/upkeep/purge-selection.ts'
import { Remover } from '../../../../src/cache/upkeep/remover.ts'
import { StoredNames } from '../../../../src/cache/upkeep/stored-names.ts'
import type { RepositoryName } from '../../../../src/oci/reference.ts'
import { StorageError } from '../../../../src/storage/filesystem.ts'
import type { Link } from '../../../../src/storage/repository-index.ts'
import { blobOf } from '../../../support/images.ts'
import { makeVolumeRig, type VolumeRig } from '../../../support/stored-content-rig.ts'

const [A, B] = ['library/a', 'library/b'] as RepositoryName[] as [RepositoryName, RepositoryName]

function ignore(): void {}

async function setUp(): Promise<VolumeRig & { purge: Purge }> {
  const rig = await makeVolumeRig()
  const remover = new Remover({ ...rig, onUnlinked: ignore, onRemoved: ignore })
  const names = new StoredNames({ name: 'registry.example', isDockerHub: false })
  return { ...rig, purge: new Purge({ ...rig, remover, names }) }
}

/** Stores a blob for some repositories. */
async function hold(rig: VolumeRig, seed: string, ...holders: RepositoryName[]): Promise<Link[]> {
  const { bytes, digest } = blobOf(5_000, seed)
  await rig.store(digest, bytes)
  const links = holders.map((repository) => ({ repository, digest, kind: 'blob' }) as const)
  for (const link of links) {
    await rig.repositories.link(link)
    rig.inventory.addLink(link)
  }
  return links
}

async function all(
  purging: Purging,
): Promise<{ items: PurgeItem[]; summary: PurgeSummary | undefined }> {
  const items: PurgeItem[] = []
  for (;;) {
    const step = await purging.next()
    if (step.done) return { items, summary: step.value }
    items.push(step.value)
  }
}

function run({ purge }: { purge: Purge }, request: PurgeRequest, isDryRun = false) {
  return all(purge.start(request, { isDryRun }))
}

describe('a purge', () => {
  it('makes room on a disk that is too full for the index', async () => {
    const rig = await setUp()
    const stored = ['old', 'recent'].map((seed) => rig.paths.blobData(blobOf(5_000, seed).digest))
    const areThere = (): boolean[] => stored.map((file) => existsSync(file))
    await hold(rig, 'old', A)
    await rig.inventory.flush()
    await hold(rig, 'recent', A)
    const flush = rig.inventory.flush.bind(rig.inventory)
    rig.inventory.flush = () =>
      Promise.reject(new StorageError('write', 'index', new Error('full')))
    expect((await run(rig, { repository: A })).summary).toMatchObject({ removed: 1 })
    // What could not be written down stays for now.
    expect(areThere()).toEqual([false, true])
    rig.inventory.flush = flush
    await run(rig, { repository: A })
    expect(areThere()).toEqual([false, false])
    expect(rig.index.totals.blobs).toBe(0)
  })

  it('takes nothing of a repository by the digest of what another one has', async () => {
    const rig = await setUp()
    const [layer] = await hold(rig, 'layer', A)
    const manifest = blobOf(100, 'manifest')
    await rig.store(manifest.digest, manifest.bytes)
    rig.inventory.addLink({ repository: B, digest: manifest.digest, kind: 'manifest' })
    await rig.repositories.link({ repository: B, digest: manifest.digest, kind: 'manifest' })
    await rig.inventory.flush()
    const names = layer ? [layer.digest] : []
    await rig.index.write([{ change: 'name', digest: manifest.digest, names, manifests: [] }])
    const { items } = await run(rig, { image: `${A}@${manifest.digest}` })
    expect(items).toEqual([])
  })

  it('that nobody has read from does not keep the next one from beginning, once it is ended', async () => {
    const rig = await setUp()
    const purging = rig.purge.start({ repository: A }, { isDryRun: true })
    expect(() => rig.purge.start({ repository: A }, { isDryRun: true })).toThrow(
      'another purge runs',
    )
    const begun = purging.next()
    await purging.return(undefined)
    await begun
    expect((await run(rig, { repository: A })).summary).toMatchObject({ removed: 0 })
  })

  it('ends soon also while it looks at what there is, before the first thing goes', async () => {
    const rig = await setUp()
    await hold(rig, 'one', A, B)
    const linksOf = rig.repositories.linksOf.bind(rig.repositories)
    const looked: RepositoryName[] = []
    const asked: { purging?: Purging; end?: Promise<unknown> | undefined } = {}
    rig.repositories.linksOf = (repository) => {
      looked.push(repository)
      asked.end ??= asked.purging?.return(undefined)
      return linksOf(repository)
    }
    asked.purging = rig.purge.start({ repository: '**' }, { isDryRun: false })
    expect(await asked.purging.next()).toEqual({ done: true, value: undefined })
    await asked.end
    expect(looked).toHaveLength(1)
    expect(rig.index.totals).toMatchObject({ blobs: 1, links: 2 })
  })

  it('is ended by the stop, after what it is at, and none begins after', async () => {
    const rig = await setUp()
    await hold(rig, 'one', A)
    await hold(rig, 'two', A)
    const purging = rig.purge.start({ repository: A }, { isDryRun: false })
    await purging.next()
    await rig.purge.stop()
    expect(await purging.next()).toEqual({ done: true, value: undefined })
    expect(rig.index.totals.blobs).toBe(1)
    expect(() => rig.purge.start({ repository: A }, { isDryRun: true })).toThrow('is stopping')
  })
})
