// Which endpoints the bytes of one download have come from. When the whole turns out wrong, the digest does not tell
// whose part it was: none of them is asked first again.

import type { UpstreamBlob } from '../upstream/remote-registry.ts'
import { UpstreamError } from '../upstream/upstream-error.ts'

export class BlobSenders {
  readonly #blobs = new Map<string, UpstreamBlob>()

  add(blob: UpstreamBlob): void {
    if (!this.#blobs.has(blob.sentBy)) this.#blobs.set(blob.sentBy, blob)
  }

  /** For messages. */
  get names(): string {
    return [...this.#blobs.keys()].join(' and ')
  }

  /** @returns whether the next attempt begins at another endpoint */
  refuseAll(cause: Error): boolean {
    const reason = new UpstreamError('bad-response', `${this.names} sent wrong bytes`, { cause })
    const answers = [...this.#blobs.values()].map((blob) => blob.refuse?.(reason) ?? false)
    return answers.includes(true)
  }
}
