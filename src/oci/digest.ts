// Digests: the names of content. Parsed once at the edge; a `Digest` in hand is well formed, of an
// algorithm that we can check, and safe to use in a path.

import { createHash, type Hash } from 'node:crypto'

export const DIGEST_ALGORITHMS = ['sha256', 'sha384', 'sha512'] as const
export type DigestAlgorithm = (typeof DIGEST_ALGORITHMS)[number]

/** `<algorithm>:<lower-case hex>`, for example `sha256:e3b0c442…`. */
export type Digest = string & { readonly __brand: 'Digest' }

/** Hex digits of each algorithm; what is not listed cannot be verified, and so is not accepted. */
const HEX_LENGTH: Readonly<Record<DigestAlgorithm, number>> = {
  sha256: 64,
  sha384: 96,
  sha512: 128,
}

const DIGEST = /^(sha256|sha384|sha512):([0-9a-f]+)$/

/**
 * @returns undefined when `text` is not a digest that we can verify
 * @see https://github.com/opencontainers/image-spec/blob/main/descriptor.md#digests
 */
export function parseDigest(text: string): Digest | undefined {
  const match = DIGEST.exec(text)
  if (!match) return undefined
  const [, algorithm, hex] = match
  return hex?.length === HEX_LENGTH[algorithm as DigestAlgorithm] ? (text as Digest) : undefined
}

export function algorithmOf(digest: Digest): DigestAlgorithm {
  return digest.slice(0, digest.indexOf(':')) as DigestAlgorithm
}

export function hexOf(digest: Digest): string {
  return digest.slice(digest.indexOf(':') + 1)
}

export function hasherFor(digest: Digest): Hash {
  return createHash(algorithmOf(digest))
}

export function digestOf(bytes: Uint8Array, algorithm: DigestAlgorithm = 'sha256'): Digest {
  return `${algorithm}:${createHash(algorithm).update(bytes).digest('hex')}` as Digest
}

/** Whether `bytes` hash to `digest`. */
export function matchesDigest(bytes: Uint8Array, digest: Digest): boolean {
  return digestOf(bytes, algorithmOf(digest)) === digest
}
