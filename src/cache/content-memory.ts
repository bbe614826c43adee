// The hot part of the store in memory: manifests and small blobs, verified, bounded by their bytes. Answers
// from here need no disk and no promise.

import { LRUCache } from 'lru-cache'
import type { Digest } from '../oci/digest.ts'
import type { ManifestContent } from '../oci/manifest.ts'

/** Some thousand small blobs, or the manifests of as many images: what is pulled all the time. The rest disks serve. */
const TOTAL_MAX_BYTES = 16 * 1024 * 1024
/** An entry's own cost, so that many tiny blobs are bounded too. */
const OVERHEAD_BYTES = 512

export interface HotContent {
  readonly bytes: Buffer
  readonly storedAtMs: number
  /** Of manifests only. */
  readonly manifest?: ManifestContent
}

export class ContentMemory {
  readonly #entries = new LRUCache<Digest, HotContent>({
    maxSize: TOTAL_MAX_BYTES,
    // What was read of a manifest takes about as much again.
    sizeCalculation: ({ bytes, manifest }) => bytes.length * (manifest ? 2 : 1) + OVERHEAD_BYTES,
  })

  get(digest: Digest): HotContent | undefined {
    return this.#entries.get(digest)
  }

  set(digest: Digest, content: HotContent): void {
    this.#entries.set(digest, content)
  }

  delete(digest: Digest): void {
    this.#entries.delete(digest)
  }
}
