// Why a download ends without being kept, when it is not the upstream's or the disk's refusal.

/** The bytes are not those that the digest names. Nothing of them may be kept. */
export class ContentMismatchError extends Error {
  override readonly name = 'ContentMismatchError'
}

/** Nobody is left to read a download that is not kept. */
export class AbandonedError extends Error {
  override readonly name = 'AbandonedError'
}
