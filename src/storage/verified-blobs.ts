// Disks flip bits and lose ends. A stored blob that is read from its first byte to its last is hashed beside the
// reading, in the storage thread and no further than readers have come; its last byte is held back until the
// digest is known, so that nobody gets a complete wrong blob. What was found right is trusted for a day as long
// as it is the very same file: a warm blob costs a look at what its opening has told anyway.

import { LRUCache } from 'lru-cache'
import type { Clock } from '../clock.ts'
import { hasherFor, hexOf, type Digest } from '../oci/digest.ts'
import type { BlobFile, BlobInfo } from './blob-file.ts'
import type { BlobStore } from './blob-store.ts'
import type { ByteSource } from './byte-source.ts'
import type { DigestRun } from './digester.ts'
import type { StorageError } from './filesystem.ts'
import { ContentMismatchError } from './spool/spool-error.ts'
import { StoredBlobReader } from './stored-blob-reader.ts'

/** About 3 MB; a blob that is forgotten is hashed again the next time that it is read whole. */
const VERDICTS_MAX = 10_000
/** Bits rot without a trace in the file's times: after this time they are looked at again. */
export const TRUSTED_MS = 24 * 3_600_000
/** A disk that could not read may have been unplugged; one that still cannot costs a client a broken answer. */
export const UNREADABLE_MS = 60_000
/** For the hashing that the storage thread could not do. */
const SCRATCH_BYTES = 512 * 1024

interface Verdict {
  readonly isGood: boolean
  readonly file: BlobInfo
  /** Monotonic: a clock that is set does not change what is known. */
  readonly untilMs: number
}

/** One file being hashed, for all who read it. */
interface Check {
  readonly run: DigestRun
  /** How far the fastest reader has come: a client that leaves early costs no more than it took. */
  reachedBytes: number
  readers: number
  /** Resolves to undefined when the thread could not tell. */
  result: Promise<boolean | undefined> | undefined
}

export interface VerifiedBlobsDeps {
  readonly clock: Clock
  readonly blobs: BlobStore
  /** Called once for each file whose bytes are not those that its name says; readers are told afterwards. */
  readonly onWrong: (digest: Digest, file: BlobFile) => Promise<void>
  /** Called when the disk fails to read a blob that it has. */
  readonly onUnreadable: (digest: Digest, error: StorageError) => void
}

export class VerifiedBlobs {
  readonly #deps: VerifiedBlobsDeps
  readonly #verdicts = new LRUCache<Digest, Verdict>({ max: VERDICTS_MAX })
  /** At most one for each answer that is being sent. */
  readonly #checks = new Map<string, Check>()

  constructor(deps: VerifiedBlobsDeps) {
    this.#deps = deps
  }

  /** Whether this file was found wrong or unreadable: it must be fetched again. */
  isBad(digest: Digest, file: BlobInfo): boolean {
    return this.#verdict(digest, file) === false
  }

  /** What has just been stored under its digest was verified before. */
  noteStored(digest: Digest, file: BlobInfo): void {
    this.#note(digest, file, { isGood: true, forMs: TRUSTED_MS })
  }

  /**
   * The bytes for one answer; closing it closes the file. With `isWhole` the reading has to go from the first
   * byte to the last, and the last one is not given before the whole has been verified.
   */
  reader(digest: Digest, file: BlobFile, { isWhole }: { isWhole: boolean }): ByteSource {
    const needsCheck = isWhole && this.#verdict(digest, file) !== true
    const check = needsCheck ? this.#join(digest, file) : undefined
    return new StoredBlobReader(file, {
      onUnreadable: (error) => {
        this.#note(digest, file, { isGood: false, forMs: UNREADABLE_MS })
        this.#deps.onUnreadable(digest, error)
      },
      check: check && {
        reached: (position) => advance(check, position),
        finish: () => this.#demandRight(check, digest, file),
        leave: () => this.#leave(check, digest, file),
      },
    })
  }

  /** Hashes a file, unless it is known. @throws {StorageError} it cannot be read */
  async verify(digest: Digest, file: BlobFile): Promise<boolean> {
    const known = this.#verdict(digest, file)
    if (known !== undefined) return known
    const check = this.#join(digest, file)
    try {
      return await this.#isRight(check, digest, file)
    } finally {
      this.#leave(check, digest, file)
    }
  }

  #verdict(digest: Digest, file: BlobInfo): boolean | undefined {
    const verdict = this.#verdicts.get(digest)
    if (!verdict || !isSameFile(verdict.file, file)) return undefined
    return this.#deps.clock.monotonic() < verdict.untilMs ? verdict.isGood : undefined
  }

  #note(
    digest: Digest,
    { allocatedBytes, changedAtMs, inode, sizeBytes, storedAtMs }: BlobInfo,
    { forMs, isGood }: { forMs: number; isGood: boolean },
  ): void {
    // A copy: the open file itself is not to be kept alive.
    const file = { allocatedBytes, changedAtMs, inode, sizeBytes, storedAtMs }
    const untilMs = this.#deps.clock.monotonic() + forMs
    this.#verdicts.set(digest, { file, isGood, untilMs })
  }

  #join(digest: Digest, file: BlobFile): Check {
    const key = keyOf(digest, file)
    const joined = this.#checks.get(key)
    if (joined) {
      joined.readers++
      return joined
    }
    const run = this.#deps.blobs.hash(digest)
    const check: Check = { run, reachedBytes: 0, readers: 1, result: undefined }
    this.#checks.set(key, check)
    return check
  }

  #leave(check: Check, digest: Digest, file: BlobFile): void {
    check.readers--
    // With a result on its way there is nothing left to save.
    if (check.readers > 0 || check.result) return
    check.run.abort()
    this.#checks.delete(keyOf(digest, file))
  }

  async #demandRight(check: Check, digest: Digest, file: BlobFile): Promise<void> {
    if (await this.#isRight(check, digest, file)) return
    throw new ContentMismatchError(`${digest}: the stored bytes do not match`)
  }

  async #isRight(check: Check, digest: Digest, file: BlobFile): Promise<boolean> {
    check.result ??= this.#conclude(check, digest, file)
    const result = await check.result
    if (result !== undefined) return result
    // No fault of the bytes: the thread died, or found another file in this place. Rare, so each reader for itself.
    return this.#judge(digest, file, await hashHere(digest, file))
  }

  async #conclude(check: Check, digest: Digest, file: BlobFile): Promise<boolean | undefined> {
    try {
      advance(check, file.sizeBytes)
      const hex = await check.run.finish()
      if (!(await this.#deps.blobs.holds(digest, file))) return undefined
      return await this.#judge(digest, file, hex)
    } catch {
      return undefined
    } finally {
      this.#checks.delete(keyOf(digest, file))
    }
  }

  async #judge(digest: Digest, file: BlobFile, hex: string): Promise<boolean> {
    const isGood = hex === hexOf(digest)
    const isNews = this.#verdict(digest, file) !== isGood
    this.#note(digest, file, { isGood, forMs: TRUSTED_MS })
    if (!isGood && isNews) await this.#deps.onWrong(digest, file)
    return isGood
  }
}

function advance(check: Check, position: number): void {
  if (position <= check.reachedBytes) return
  check.reachedBytes = position
  check.run.advance(position)
}

async function hashHere(digest: Digest, file: BlobFile): Promise<string> {
  const hasher = hasherFor(digest)
  const scratch = Buffer.allocUnsafeSlow(SCRATCH_BYTES)
  for (let position = 0; position < file.sizeBytes;) {
    const bytes = await file.read(position, scratch)
    hasher.update(bytes)
    position += bytes.length
  }
  return hasher.digest('hex')
}

function isSameFile(left: BlobInfo, right: BlobInfo): boolean {
  return (
    left.inode === right.inode &&
    left.sizeBytes === right.sizeBytes &&
    left.storedAtMs === right.storedAtMs &&
    left.changedAtMs === right.changedAtMs
  )
}

function keyOf(digest: Digest, file: BlobInfo): string {
  return `${digest} ${file.inode} ${file.sizeBytes} ${file.storedAtMs} ${file.changedAtMs}`
}
