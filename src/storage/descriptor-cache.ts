// Sizes of stored blobs, so that a HEAD costs no disk. A hint: it may forget and it may be gone; it is never
// asked what a repository may serve (rights stand on disk, under the repository), and a hint that the disk
// contradicts is dropped. Adding one: a file here, a line in service.ts, a line in test/contract.

import { LRUCache } from 'lru-cache'
import type { Digest } from '../oci/digest.ts'

export interface BlobDescriptor {
  readonly sizeBytes: number
}

export interface DescriptorCache {
  /** Never rejects: what cannot be asked is not known. */
  get(digest: Digest): Promise<BlobDescriptor | undefined>
  /** Never rejects, and need not have happened when it returns. */
  set(digest: Digest, descriptor: BlobDescriptor): void
  delete(digest: Digest): void
  close(): Promise<void>
}

/** `storage.cache.blobdescriptor: inmemory`, bounded by `storage.cache.blobdescriptorsize`. */
export class InMemoryDescriptorCache implements DescriptorCache {
  readonly #entries: LRUCache<Digest, BlobDescriptor>

  /** @param options.entriesMax at least 1 */
  constructor(options: { entriesMax: number }) {
    this.#entries = new LRUCache({ max: options.entriesMax })
  }

  async get(digest: Digest): Promise<BlobDescriptor | undefined> {
    return this.#entries.get(digest)
  }

  set(digest: Digest, descriptor: BlobDescriptor): void {
    this.#entries.set(digest, descriptor)
  }

  delete(digest: Digest): void {
    this.#entries.delete(digest)
  }

  async close(): Promise<void> {
    this.#entries.clear()
  }
}

/** No `storage.cache` at all: the disk is asked each time. */
export const noDescriptorCache: DescriptorCache = {
  get: async () => undefined,
  set: () => undefined,
  delete: () => undefined,
  close: async () => undefined,
}
