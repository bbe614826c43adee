// The index itself, without a server around it: what a use costs on a request's path and in the background, and how
// long it takes to choose what has to go.

import { pino } from 'pino'
import { Evictor } from '../../../dist/cache/upkeep/evictor.js'
import { Inventory } from '../../../dist/cache/inventory.js'
import { Pins } from '../../../dist/cache/upkeep/pins.js'
import { Retention } from '../../../dist/cache/retention.js'
import { systemClock } from '../../../dist/clock.js'
import { ContentIndex } from '../../../dist/storage/index/content-index.js'
import { FileWriter } from '../../../dist/storage/file-writer.js'
import { StoragePaths } from '../../../dist/storage/paths.js'
import { StorageThread } from '../../../dist/storage/storage-thread.js'
import { Metrics } from '../../../dist/telemetry/metrics.js'

const USES = 1_000_000
const MIB = 1024 ** 2

/**
 * @param manifests what to use: `{ repository, digest }`
 * @returns rows of the table
 */
export async function measureIndex(root, manifests) {
  const paths = new StoragePaths(root)
  const workerUrl = new URL('../../../dist/storage/storage-worker.js', import.meta.url)
  const thread = new StorageThread({ workerUrl })
  const logger = pino({ enabled: false })
  const opening = performance.now()
  const index = await ContentIndex.open({
    paths,
    writer: new FileWriter({ thread, paths }),
    logger,
  })
  const rows = [['index opened in', ms(performance.now() - opening)]]

  const retention = new Retention(
    { clock: systemClock },
    { ttlMs: 0, rules: [], formatTtl: () => '' },
  )
  const costs = { blockBytes: 4096, directoryBytes: 4096 }
  const inventory = new Inventory({ clock: systemClock, logger, index, retention }, costs)
  rows.push(['one use, on the request’s path', each(uses(inventory, manifests), USES, 'ns')])
  const flushing = performance.now()
  await inventory.flush()
  const flushMs = performance.now() - flushing
  rows.push([`${manifests.length} images used, written down in`, ms(flushMs)])

  // What is chosen is not removed: the measurement would be that of the file system.
  const chosen = []
  const remover = {
    batch: () => remover,
    remove: async (digest) => {
      chosen.push(digest)
      return inventory.freedBy(index.blob(digest))
    },
  }
  inventory.setCounted()
  const evictor = new Evictor({
    clock: systemClock,
    logger,
    metrics: new Metrics(),
    index,
    inventory,
    pins: new Pins({ index, retention, repositories: {} }),
    blobs: { isBeingRead: () => false },
    spools: { parts: () => [] },
    remover,
  })
  for (const wantedMib of [1, 10]) {
    chosen.length = 0
    const choosing = performance.now()
    const freedBytes = await evictor.makeRoom(wantedMib * MIB)
    const tookMs = performance.now() - choosing
    if (chosen.length === 0 || freedBytes < wantedMib * MIB) {
      throw new Error(`only ${freedBytes} bytes in ${chosen.length} blobs were chosen`)
    }
    rows.push([`what to remove for ${wantedMib} MiB`, `${ms(tookMs)}, ${chosen.length} blobs`])
  }
  await index.close()
  await thread.close()
  return rows
}

function uses(inventory, manifests) {
  const startedMs = performance.now()
  for (let use = 0; use < USES; use++) {
    const { digest, repository } = manifests[use % manifests.length]
    inventory.touch({ digest, repository, kind: 'manifest' })
  }
  return performance.now() - startedMs
}

const each = (totalMs, count, unit) => `${Math.round((totalMs * 1e6) / count)} ${unit}`
const ms = (value) => `${value < 10 ? value.toFixed(1) : Math.round(value)} ms`
