// What becomes of stored bytes that turn out not to match their name, whoever finds out: they are set aside, counted
// where they are now, forgotten where they were, and told of.

import type { Logger } from 'pino'
import type { Digest } from '../../oci/digest.ts'
import type { BlobStore } from '../../storage/blob-store.ts'
import type { OwnBytes } from '../../storage/disk-space.ts'
import type { Metrics } from '../../telemetry/metrics.ts'
import type { Inventory } from '../inventory.ts'

export interface DamagedContentDeps {
  readonly logger: Logger
  readonly metrics: Metrics
  readonly blobs: BlobStore
  readonly inventory: Inventory
  readonly own: OwnBytes
  /** Called so that nothing in memory claims it. */
  readonly onRemoved: (digest: Digest) => void
}

/** From now on what the store sets aside is accounted for. */
export function accountForDamage(deps: DamagedContentDeps): void {
  const { blobs, inventory, logger, metrics, onRemoved, own } = deps
  // At once: whoever stores the same again counts it after this.
  blobs.onSetAside = (digest, { allocatedBytes, sizeBytes }) => {
    // They take as much as before.
    own.add(allocatedBytes)
    inventory.addRemoved(digest)
    onRemoved(digest)
    metrics.mismatches.inc({ type: 'blob' })
    logger.error(
      { digest, sizeBytes },
      'a stored blob is damaged; it is set aside, and fetched again when it is asked for: check the disk',
    )
  }
}
