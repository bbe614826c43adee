// What the cache answers with. `freshness` is what the client is told about the answer's age; no HTTP here.

import type { Digest } from '../oci/digest.ts'
import type { ByteSource } from '../storage/byte-source.ts'
import type { CacheOutcome } from '../telemetry/metrics.ts'

export type { ByteSource } from '../storage/byte-source.ts'

export interface Freshness {
  readonly outcome: CacheOutcome
  /** When the upstream last confirmed this, or gave it to us. */
  readonly asOfMs: number
  /** Until when it is served without asking; undefined for content named by digest, which never changes. */
  readonly freshUntilMs?: number | undefined
  /** Why an old answer is served: one sentence. */
  readonly staleReason?: string | undefined
}

export interface ManifestAnswer {
  readonly digest: Digest
  readonly bytes: Buffer
  readonly mediaType: string
  readonly freshness: Freshness
}

export interface BlobInfoAnswer {
  readonly sizeBytes: number
  readonly freshness: Freshness
}

export interface BlobAnswer extends BlobInfoAnswer {
  /**
   * The bytes: in memory when the blob is small, else to be read. The latter must be closed.
   *
   * @param position where the reading will start
   */
  open(position: number): Buffer | ByteSource
  /** Instead of `open`, when nothing is to be read. */
  discard(): void
}
