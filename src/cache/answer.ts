// What the cache answers with. `freshness` is what the client is told about the answer's age; no HTTP here.

import type { Digest } from '../oci/digest.ts'
import type { ByteSource } from '../storage/byte-source.ts'
import type { CacheOutcome } from '../telemetry/metrics.ts'

export type { ByteSource } from '../storage/byte-source.ts'

/** The upstream could not be asked, or was not since few of the pulls that it allows are left. */
export type StaleCause = 'upstream-failed' | 'saving-pulls'

export interface Freshness {
  readonly outcome: CacheOutcome
  /** When the upstream last confirmed this, or gave it to us. */
  readonly asOfMs: number
  /** Of what came from the upstream: whether it is kept, or going to be as far as is known now. */
  readonly isStored?: boolean | undefined
  /** Until when it is served without asking; undefined for content named by digest, which never changes. */
  readonly freshUntilMs?: number | undefined
  /** Why an old answer is served. */
  readonly staleCause?: StaleCause | undefined
  /** The same for people: one sentence. */
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
   * @param first position of the first byte that will be read
   * @param last … and of the last one: with these two known, what is read whole is verified
   */
  open(first: number, last: number): Buffer | ByteSource
  /**
   * Waits until the size is known to be right, and not only announced; not there when it is.
   *
   * @throws {RegistryError} UNAVAILABLE: it was not
   */
  readonly confirmed?: () => Promise<void>
  /** Instead of `open`, when nothing is to be read. */
  discard(): void
}
