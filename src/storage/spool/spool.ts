// One growing download: one writer, many readers, each at its own pace and from its own offset. Because all
// bytes pass through here, sharing a download, slow clients, clients that leave, resuming and verifying are
// properties of this file:
//  - readers see bytes only after the file has them, in order; the newest are also kept in memory, so that a
//    herd that reads side by side costs one buffer and no file reads;
//  - the last byte is held back until the whole has been verified, so nobody gets a complete wrong blob;
//  - so is all that an earlier attempt left, from whoever would need nothing after it: see `isDoubtful`;
//  - a small blob never touches the spool file: it lives in memory until it is stored;
//  - when the disk fails, the bytes go on through memory at the pace of the slowest reader: the blob is not
//    kept, but it is served.

import type { FileHandle } from 'node:fs/promises'
import type { Clock, CancelTimer } from '../../clock.ts'
import { hexOf, type Digest } from '../../oci/digest.ts'
import { SMALL_BLOB_MAX_BYTES, type BlobStore } from '../blob-store.ts'
import { StorageError, openFile, type FileContent } from '../filesystem.ts'
import { BLOCK_BYTES, BlockWindow, type BlockView } from './block-window.ts'
import type { LagAllowance } from './lag-allowance.ts'
import { noteGarbage } from './network-garbage.ts'
import { AbandonedError, ContentMismatchError } from './spool-error.ts'
import { SpoolHash } from './spool-hash.ts'
import type { SpoolDeps, SpoolOptions } from './spool-options.ts'
import { SpoolReader, SpoolReaders, type ReadOptions } from './spool-reader.ts'

/** Bytes are passed on a block at a time, or after this time, so that a slow upstream's are passed on soon. */
const FLUSH_INTERVAL_MS = 10
/** Newest blocks kept in memory for readers that are close behind the writer. */
const WINDOW_BLOCKS = 4
/** Received but not yet written: what an upstream faster than the disk may put into memory. */
const UNWRITTEN_MAX_BYTES = 2 * BLOCK_BYTES
/** For how long the others wait for the slowest reader, once the disk takes no more bytes. */
const LAGGARD_WAIT_MS = 10_000
/** Held back until the digest is verified. */
const HELD_BYTES = 1

export class Spool {
  readonly #clock: Clock
  readonly #lag: LagAllowance
  readonly #onStorageFailure: (error: StorageError) => void
  readonly #options: SpoolOptions
  readonly #readers = new SpoolReaders()
  readonly #window: BlockWindow
  readonly #handle: FileHandle | undefined
  readonly #hash: SpoolHash
  #sizeBytes: number | undefined
  /** Of an earlier attempt. */
  readonly #resumedBytes: number
  /** Readers may see these. */
  #publishedBytes: number
  /** The file has these. Falls behind when the disk fails. */
  #fileBytes: number
  #storageError: StorageError | undefined
  #failure: Error | undefined
  #verified = false
  #committed = false
  #writerDone = false
  #isClosed = false
  #flushing: Promise<void> | undefined
  #lastFlushMs = Number.NEGATIVE_INFINITY
  #cancelFlushTimer: CancelTimer | undefined
  #readerMoved: (() => void) | undefined
  #leaveLag: (() => void) | undefined
  /** Of the stored file, once it is one. */
  #letGo: (() => void) | undefined

  private constructor(deps: SpoolDeps, options: SpoolOptions, handle: FileHandle | undefined) {
    this.#clock = deps.clock
    this.#lag = deps.lag
    this.#onStorageFailure = deps.onStorageFailure
    this.#options = options
    this.#handle = handle
    this.#sizeBytes = options.sizeBytes
    const resumedBytes = (this.#resumedBytes = handle ? options.resumedBytes : 0)
    this.#window = new BlockWindow(resumedBytes)
    this.#publishedBytes = this.#fileBytes = resumedBytes
    const file = handle ? options.file : undefined
    this.#hash = new SpoolHash(deps, { digest: options.digest, file })
    this.#hash.advance(resumedBytes)
  }

  static async open(deps: SpoolDeps, options: SpoolOptions): Promise<Spool> {
    const { file, resumedBytes, sizeBytes } = options
    const fitsMemory = sizeBytes !== undefined && sizeBytes <= SMALL_BLOB_MAX_BYTES
    if (file === undefined || (fitsMemory && resumedBytes === 0)) {
      return new Spool(deps, options, undefined)
    }
    try {
      return new Spool(deps, options, await openFile(file, { keepsContent: resumedBytes > 0 }))
    } catch (error) {
      const unkept = new Spool(deps, { ...options, file: undefined }, undefined)
      deps.onStorageFailure(new StorageError('open', file, error))
      return unkept
    }
  }

  get digest(): Digest {
    return this.#options.digest
  }

  get sizeBytes(): number | undefined {
    return this.#sizeBytes
  }

  /** Bytes accepted so far: where a resumed download goes on. */
  get receivedBytes(): number {
    return this.#window.endBytes
  }

  /** Whether what has been received is in a file from which a later attempt can go on. */
  get isResumable(): boolean {
    if (this.#failure instanceof ContentMismatchError) return false
    // Complete but refused by the disk, or cut short by it: keeping the part would keep the disk full.
    return this.#fileBytes > 0 && !this.#verified && this.#storageError === undefined
  }

  /** Whether the bytes are where they belong, and the spool's file is gone. */
  get isCommitted(): boolean {
    return this.#committed
  }

  /** Whether a new reader could be served from the first byte on. */
  get isJoinable(): boolean {
    if (this.#failure || this.#isClosed) return false
    return this.#window.startBytes <= this.#fileBytes
  }

  /** Whether it ended, well or badly. */
  get isOver(): boolean {
    return this.#failure !== undefined || this.#writerDone
  }

  /** Whether this range has bytes of an earlier attempt, and would be complete before anything is verified. */
  isDoubtful(first: number, last: number): boolean {
    if (this.#verified || first >= this.#resumedBytes) return false
    return last < (this.#sizeBytes ?? Infinity) - HELD_BYTES
  }

  /** Whether the disk is to have the bytes, and has not refused so far. */
  get isKept(): boolean {
    return this.#options.file !== undefined && this.#storageError === undefined
  }

  /**
   * Takes the next bytes.
   *
   * @returns a promise when the writer should wait: for the disk, or (without one) for the slowest reader
   * @throws {ContentMismatchError} more bytes than announced
   * @throws {AbandonedError} nothing is kept and nobody is reading: going on would serve no one
   */
  append(chunk: Buffer): Promise<void> | undefined {
    if (this.#sizeBytes !== undefined && this.receivedBytes + chunk.length > this.#sizeBytes) {
      throw this.#mismatch(`more than the ${this.#sizeBytes} bytes announced`)
    }
    this.#window.append(chunk, (this.#sizeBytes ?? Infinity) - this.receivedBytes)
    noteGarbage(chunk.length)
    this.#flushIfDue()
    if (this.receivedBytes - this.#publishedBytes > UNWRITTEN_MAX_BYTES) return this.#flushing
    return this.isKept ? undefined : this.#waitForReaders()
  }

  /**
   * Ends the writing and verifies the whole; afterwards readers get the last bytes.
   *
   * @throws {ContentMismatchError} wrong size or digest; readers have been failed
   */
  async finish(): Promise<void> {
    await this.#flushAll()
    const actual = await this.#hash.finish(() => this.#readAgain())
    const expectedBytes = this.#sizeBytes ?? this.receivedBytes
    if (actual !== hexOf(this.digest) || this.receivedBytes !== expectedBytes) {
      throw this.#mismatch(`received ${this.receivedBytes} bytes that hash to ${actual}`)
    }
    this.#sizeBytes = this.receivedBytes
    this.#verified = true
    this.#readers.wake()
  }

  /**
   * Moves the verified bytes to where they are found from now on. Only for a spool that `isKept`.
   *
   * @param links written after the bytes
   * @returns whether the links are written
   * @throws {StorageError} they are not kept
   */
  async commit(store: BlobStore, links: readonly FileContent[] = []): Promise<boolean> {
    const { file } = this.#options
    if (!this.#handle || file === undefined) {
      const bytes = this.wholeInMemory() ?? Buffer.alloc(0)
      // Who wanted them has them: what others wait for goes first.
      const areLinked = await store.put(this.digest, bytes, links, { isPatient: true })
      this.#committed = true
      return areLinked
    }
    try {
      await this.#handle.datasync()
    } catch (error) {
      throw new StorageError('sync', file, error)
    }
    // Readers go on with the same file.
    this.#letGo = store.hold(this.digest)
    const areLinked = await store.adopt(this.digest, file, links)
    this.#committed = true
    return areLinked
  }

  /** @returns the bytes of a blob that was spooled in memory, not copied; undefined for a larger one */
  wholeInMemory(): Buffer | undefined {
    if (this.#handle || !this.isKept) return undefined
    return this.#window.whole()
  }

  /** The disk has no room for more: what comes goes on through memory, and the whole is not kept. */
  stopKeeping(error: StorageError): void {
    this.#storageError ??= error
  }

  /** Fails the readers: those that already have all they asked for are not affected. Idempotent. */
  fail(error: Error): void {
    this.#failure ??= error
    this.#hash.abort()
    this.#readers.wake()
    // A writer that waits for a slow reader has nothing more to wait for.
    this.#readerMoved?.()
  }

  /** The writer is through with this spool, for better or worse. The file is closed after the last reader. */
  async release(): Promise<void> {
    while (this.#flushing) await this.#flushing
    // Not earlier: the end of a flush sets the timer for the next one.
    this.#cancelFlushTimer?.()
    this.#hash.abort()
    this.#writerDone = true
    await this.#closeIfUnused()
  }

  /** @returns undefined when it is too late to join: see `isJoinable` */
  reader(): SpoolReader | undefined {
    if (!this.isJoinable) return undefined
    const reader = new SpoolReader({
      readAt: (at, scratch, options) => this.#readAt(at, scratch, options),
      letGo: (block) => this.#window.letGo(block),
      onMove: () => this.#readerMoved?.(),
      onClose: (closed) => {
        this.#readers.delete(closed)
        this.#readerMoved?.()
        // Nobody waits for the file to be closed, and a failing close has nothing left to lose.
        this.#closeIfUnused().catch(() => undefined)
      },
    })
    this.#readers.add(reader)
    return reader
  }

  /** @returns undefined when the reader has to wait */
  #readAt(
    position: number,
    scratch: Buffer,
    { waitsForTheWhole }: ReadOptions,
  ): BlockView | Promise<Buffer> | undefined {
    if (this.#failure instanceof ContentMismatchError) throw this.#failure
    const heldFrom = waitsForTheWhole ? 0 : (this.#sizeBytes ?? this.#publishedBytes) - HELD_BYTES
    const readableBytes = Math.min(this.#publishedBytes, this.#verified ? Infinity : heldFrom)
    if (position >= readableBytes) {
      if (this.#failure) throw this.#failure
      return undefined
    }
    const count = Math.min(scratch.length, readableBytes - position)
    const view = this.#window.viewAt(position, readableBytes, count)
    return view ?? this.#readFile(position, scratch.subarray(0, count))
  }

  async #readFile(position: number, scratch: Buffer): Promise<Buffer> {
    const file = this.#options.file ?? 'memory'
    if (!this.#handle) throw new StorageError('read', file, new Error('bytes are no longer there'))
    const { bytesRead } = await this.#handle.read(scratch, 0, scratch.length, position)
    if (bytesRead === 0) throw new StorageError('read', file, new Error(`ends at byte ${position}`))
    return scratch.subarray(0, bytesRead)
  }

  #flushIfDue(): void {
    if (this.#flushing || this.receivedBytes === this.#publishedBytes) return
    const waitMs = this.#lastFlushMs + FLUSH_INTERVAL_MS - this.#clock.monotonic()
    const isComplete = this.receivedBytes === this.#sizeBytes
    if (waitMs <= 0 || isComplete || this.receivedBytes - this.#publishedBytes >= BLOCK_BYTES) {
      this.#cancelFlushTimer?.()
      this.#cancelFlushTimer = undefined
      this.#flushing = this.#flush()
    } else {
      this.#cancelFlushTimer ??= this.#clock.setTimer(waitMs, () => {
        this.#cancelFlushTimer = undefined
        this.#flushIfDue()
      })
    }
  }

  /** Writes and publishes all that was received up to now. Never rejects: a failing disk is not an end. */
  async #flush(): Promise<void> {
    for (const { bytes, position } of this.#window.slices(
      this.#publishedBytes,
      this.receivedBytes,
    )) {
      await this.#persist(bytes, position)
      this.#publishedBytes = position + bytes.length
    }
    this.#lastFlushMs = this.#clock.monotonic()
    this.#trimWindow()
    this.#readers.wake()
    this.#flushing = undefined
    this.#flushIfDue()
  }

  async #flushAll(): Promise<void> {
    while (this.#publishedBytes < this.receivedBytes) await (this.#flushing ??= this.#flush())
  }

  async #persist(bytes: Buffer, position: number): Promise<void> {
    if (!this.#handle || this.#storageError) {
      // An upstream that is faster than the hashing waits: the queue to the thread is memory too.
      await this.#hash.append(bytes)
      return
    }
    let written = 0
    try {
      while (written < bytes.length) {
        const left = bytes.length - written
        written += (await this.#handle.write(bytes, written, left, position + written)).bytesWritten
      }
      this.#fileBytes = position + written
      this.#hash.advance(this.#fileBytes)
    } catch (error) {
      // What did get written stays readable; the rest of this block reaches readers through memory.
      this.#fileBytes = position + written
      this.#hash.advance(this.#fileBytes)
      this.#storageError = new StorageError('write', this.#options.file ?? 'memory', error)
      this.#onStorageFailure(this.#storageError)
      await this.#hash.append(bytes.subarray(written))
    }
  }

  /** Drops blocks that readers can get from the file, or (without one) that every reader has passed. */
  #trimWindow(): void {
    if (!this.#handle && this.isKept) return
    const reachable = Math.max(this.#fileBytes, this.#readers.slowest(this.#publishedBytes))
    this.#window.dropBefore(Math.min(this.#publishedBytes, reachable), WINDOW_BLOCKS)
  }

  async #waitForReaders(): Promise<void> {
    this.#leaveLag ??= this.#lag.join()
    while (!this.#failure) {
      const slowest = this.#readers.count > 0 ? this.#readers.slowest(this.#publishedBytes) : 0
      if (this.receivedBytes - Math.max(slowest, this.#fileBytes) <= this.#lag.bytes) return
      if (this.#readers.count === 0)
        throw new AbandonedError(`${this.digest}: nobody is reading it`)
      const hasMoved = new Promise<void>((resolve) => {
        this.#readerMoved = resolve
      })
      const cancel = this.#clock.setTimer(LAGGARD_WAIT_MS, () => this.#dropLaggards())
      await hasMoved
      cancel()
      this.#readerMoved = undefined
      this.#trimWindow()
    }
  }

  /** One client that takes nothing must not hold up all others: it is cut off, and may ask for the rest. */
  #dropLaggards(): void {
    const error = new Error('too slow for a download that cannot be kept')
    this.#readers.failBefore(this.receivedBytes - this.#lag.bytes, error)
    this.#readerMoved?.()
  }

  /** Readers have been failed. */
  #mismatch(what: string): ContentMismatchError {
    const mismatch = new ContentMismatchError(`${this.digest}: ${what}`)
    this.fail(mismatch)
    return mismatch
  }

  async *#readAgain(): AsyncGenerator<Buffer> {
    const scratch = Buffer.allocUnsafeSlow(BLOCK_BYTES)
    for (let position = 0; position < this.#publishedBytes;) {
      const view = this.#window.viewAt(position, this.#publishedBytes, BLOCK_BYTES)
      const bytes = view?.bytes ?? (await this.#readFile(position, scratch))
      yield bytes
      if (view) this.#window.letGo(view.block)
      position += bytes.length
    }
  }

  async #closeIfUnused(): Promise<void> {
    if (!this.#writerDone || this.#readers.count > 0 || this.#isClosed) return
    this.#isClosed = true
    this.#leaveLag?.()
    this.#letGo?.()
    this.#window.clear()
    await this.#handle?.close()
  }
}
