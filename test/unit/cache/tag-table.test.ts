import { EventEmitter, once } from 'node:events'
import { expect, it } from 'vitest'
import type { Repository } from '../../../src/cache/repositories.ts'
import { TagTable } from '../../../src/cache/tag-table.ts'
import type { Tag } from '../../../src/oci/reference.ts'
import { FakeClock } from '../../support/fake-clock.ts'
import { blobOf } from '../../support/images.ts'
import { nextTurn } from '../../support/wait-for.ts'

it('tells nobody of a tag that the disk has not taken yet', async () => {
  const disk = new EventEmitter()
  const taken = once(disk, 'taken')
  const deps = {
    clock: new FakeClock(),
    index: { readTag: () => Promise.resolve(undefined), setTag: () => taken },
    inventory: { tagBytes: 0, addTag: () => undefined },
    budget: { keep: (_bytes: number, write: () => unknown) => write() },
    storage: { attempt: (work: () => unknown) => work() },
  } as unknown as ConstructorParameters<typeof TagTable>[0]
  const upstream = { ttlMsOfTag: () => 60_000 }
  const repository = { storedName: 'some/image', upstream } as unknown as Repository
  const tag = 'latest' as Tag
  const table = new TagTable(deps)
  const { digest } = blobOf(10, 'tagged')
  const confirming = table.confirm(repository, tag, digest, { isKept: () => true })
  await nextTurn()
  expect(table.peek(repository, tag)).toBeUndefined()
  disk.emit('taken')
  expect(await confirming).toMatchObject({ digest, isStored: true })
  expect(table.peek(repository, tag)).toMatchObject({ digest, isStored: true })
})
