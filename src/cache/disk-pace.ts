// Downloads of small blobs begin at the pace of the disk, where it is slower than the upstream: what is verified and
// waits to be written is in memory. A disk that hangs holds nobody up for long: a cache may fail to cache, not to serve.

import type { Clock } from '../clock.ts'
import type { BlobStore } from '../storage/blob-store.ts'

/** A disk that works at all writes what is before it in less. */
const PATIENCE_MS = 1_000

/** Waits until the disk has caught up, for a while; ends early, too, once `signal` is aborted. Never rejects. */
export function keepPace(
  { blobs, clock }: { blobs: Pick<BlobStore, 'caughtUp'>; clock: Clock },
  signal: AbortSignal,
): Promise<void> | undefined {
  const caughtUp = blobs.caughtUp()
  if (!caughtUp || signal.aborted) return undefined
  return new Promise((resolve) => {
    const go = (): void => {
      cancel()
      signal.removeEventListener('abort', go)
      resolve()
    }
    const cancel = clock.setTimer(PATIENCE_MS, go)
    signal.addEventListener('abort', go, { once: true })
    void caughtUp.then(go)
  })
}
