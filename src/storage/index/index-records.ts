// How the content index writes down what it knows: keys and values as bytes, small enough that a million blobs
// fit into some hundred MB of map. Numbers are big-endian, so that keys sort as what they mean.
//
//   digest     algorithm (1 byte) · hash
//   blob       key: digest                     value: allocated bytes (6) · last use (6) · flags (1) · named by (4)
//   order      key: last use (6) · rank (1) · digest                                      value: one byte
//   link       key: digest · repository        value: kind (1) · last use (6)
//   tag        key: digest · repository:tag                                               value: one byte
//   repository key: repository                 value: how many links and tags it has (4)
//   names      key: digest of a manifest       value: digests of what goes along with it
//   named      key: digest of a manifest       value: digests of the manifests that name it

import { hexOf, parseDigest, type Digest, type DigestAlgorithm } from '../../oci/digest.ts'
import {
  parseRepositoryName,
  parseTag,
  type RepositoryName,
  type Tag,
} from '../../oci/reference.ts'
import type { LinkKind } from '../repository-index.ts'

export interface BlobRecord {
  /** What the file takes on disk. */
  readonly allocatedBytes: number
  readonly lastUsedMs: number
  readonly isManifest: boolean
  /** False: known only because manifests name it. */
  readonly isStored: boolean
  /** How many stored manifests name it. */
  readonly namedBy: number
  /**
   * No link of it is missing: another registry has left it so, or its last one expired while an image that names
   * it was in use. Of all other bytes without a link a crash is the reason.
   */
  readonly mayLackLink: boolean
}

export interface LinkRecord {
  readonly kind: LinkKind
  readonly lastUsedMs: number
}

const ALGORITHMS = [
  { name: 'sha256', bytes: 32 },
  { name: 'sha384', bytes: 48 },
  { name: 'sha512', bytes: 64 },
] as const

/** The longest hash, and more than a key of it has left after its first bytes. */
const DIGEST_MAX_BYTES = 65
const TIME_BYTES = 6
const BLOB_BYTES = 17
const LINK_BYTES = 7
const COUNT_BYTES = 4
const ORDER_HEAD_BYTES = TIME_BYTES + 1
const IS_MANIFEST = 1
const IS_STORED = 2
const MAY_LACK_LINK = 4

export function digestKey(digest: Digest): Buffer {
  const algorithm = ALGORITHMS.findIndex(({ name }) => digest.startsWith(name))
  return Buffer.from(`0${algorithm}${hexOf(digest)}`, 'hex')
}

/** @returns the digest that `key` has at `start`, and where it ends; undefined when there is none */
function digestAt(key: Buffer, start: number): { digest: Digest; end: number } | undefined {
  const algorithm = ALGORITHMS[key[start] ?? ALGORITHMS.length]
  if (!algorithm) return undefined
  const end = start + 1 + algorithm.bytes
  const digest = parseDigest(`${algorithm.name}:${key.toString('hex', start + 1, end)}`)
  return digest && { digest, end }
}

export function digestOfKey(key: Buffer): Digest | undefined {
  return digestAt(key, 0)?.digest
}

export function blobValue(record: BlobRecord): Buffer {
  const value = Buffer.allocUnsafe(BLOB_BYTES)
  value.writeUIntBE(record.allocatedBytes, 0, TIME_BYTES)
  value.writeUIntBE(timeIn(record.lastUsedMs), 6, TIME_BYTES)
  value[12] =
    (record.isManifest ? IS_MANIFEST : 0) |
    (record.isStored ? IS_STORED : 0) |
    (record.mayLackLink ? MAY_LACK_LINK : 0)
  value.writeUInt32BE(record.namedBy, 13)
  return value
}

/** @returns undefined for what is no such record, whatever put it there */
export function blobRecord(value: Buffer | undefined): BlobRecord | undefined {
  if (value?.length !== BLOB_BYTES) return undefined
  const flags = value[12] ?? 0
  return {
    allocatedBytes: value.readUIntBE(0, TIME_BYTES),
    lastUsedMs: value.readUIntBE(6, TIME_BYTES),
    isManifest: (flags & IS_MANIFEST) !== 0,
    isStored: (flags & IS_STORED) !== 0,
    namedBy: value.readUInt32BE(13),
    mayLackLink: (flags & MAY_LACK_LINK) !== 0,
  }
}

/** Least recently used first; of what was used at the same time, the manifests before what they name. */
export function orderKey(digest: Digest, { isManifest, lastUsedMs }: BlobRecord): Buffer {
  const head = Buffer.allocUnsafe(ORDER_HEAD_BYTES)
  head.writeUIntBE(timeIn(lastUsedMs), 0, TIME_BYTES)
  head[TIME_BYTES] = isManifest ? 0 : 1
  return Buffer.concat([head, digestKey(digest)])
}

export function digestOfOrderKey(key: Buffer): Digest | undefined {
  return digestAt(key, ORDER_HEAD_BYTES)?.digest
}

export function linkKey(digest: Digest, repository: RepositoryName): Buffer {
  return Buffer.concat([digestKey(digest), Buffer.from(repository, 'latin1')])
}

export function linkOfKey(key: Buffer): { digest: Digest; repository: RepositoryName } | undefined {
  const found = digestAt(key, 0)
  const repository = found && parseRepositoryName(key.toString('latin1', found.end))
  return found && repository && { digest: found.digest, repository }
}

/** What the keys of all tags begin with that a repository has for a digest: no name has a colon. */
export function tagsKey(digest: Digest, repository: RepositoryName): Buffer {
  return Buffer.concat([linkKey(digest, repository), Buffer.from(':')])
}

export function tagKey(digest: Digest, repository: RepositoryName, tag: Tag): Buffer {
  return Buffer.concat([tagsKey(digest, repository), Buffer.from(tag, 'latin1')])
}

/** @param prefix as `tagsKey` makes it */
export function tagOfKey(key: Buffer, prefix: Buffer): Tag | undefined {
  return parseTag(key.toString('latin1', prefix.length))
}

export function repositoryKey(repository: RepositoryName): Buffer {
  return Buffer.from(repository, 'latin1')
}

export function countValue(count: number): Buffer {
  const value = Buffer.allocUnsafe(COUNT_BYTES)
  value.writeUInt32BE(count)
  return value
}

export function countIn(value: Buffer | undefined): number {
  return value?.length === COUNT_BYTES ? value.readUInt32BE() : 0
}

/** A key that is greater than every link's which begins with `key`: names are ASCII. */
export function keyAfter(key: Buffer): Buffer {
  return Buffer.concat([key, Buffer.of(0xff)])
}

/** The smallest key after a digest's own. */
export function keyAfterDigest(digest: Digest): Buffer {
  return Buffer.concat([digestKey(digest), Buffer.of(0)])
}

/** What the keys of all digests begin with whose hex begins so. @param hexPrefix two digits */
export function shardKey(algorithm: DigestAlgorithm, hexPrefix: string): Buffer {
  const code = ALGORITHMS.findIndex(({ name }) => name === algorithm)
  return Buffer.from(`0${code}${hexPrefix}`, 'hex')
}

/** A key that is greater than every digest's which begins with `key`. */
export function keyAfterAll(key: Buffer): Buffer {
  return Buffer.concat([key, Buffer.alloc(DIGEST_MAX_BYTES, 0xff)])
}

export function linkValue({ kind, lastUsedMs }: LinkRecord): Buffer {
  const value = Buffer.allocUnsafe(LINK_BYTES)
  value[0] = kind === 'blob' ? 0 : 1
  value.writeUIntBE(timeIn(lastUsedMs), 1, TIME_BYTES)
  return value
}

/** @returns undefined for what is no such record */
export function linkRecord(value: Buffer | undefined): LinkRecord | undefined {
  if (value?.length !== LINK_BYTES) return undefined
  return {
    kind: value[0] === 0 ? 'blob' : 'manifest',
    lastUsedMs: value.readUIntBE(1, TIME_BYTES),
  }
}

export function digestsValue(digests: readonly Digest[]): Buffer {
  return Buffer.concat(digests.map(digestKey))
}

export function digestsIn(value: Buffer = Buffer.alloc(0)): Digest[] {
  const digests: Digest[] = []
  for (let start = 0; start < value.length;) {
    const found = digestAt(value, start)
    if (!found) return digests
    digests.push(found.digest)
    start = found.end
  }
  return digests
}

/** A machine's clock may say anything; what is written down is a time that fits. */
function timeIn(ms: number): number {
  return Math.min(Math.max(0, Math.trunc(ms)), 2 ** 48 - 1)
}
