// One download in progress. Owns the upstream's body and the spool; owns no policy. Lives until the bytes are
// stored or given up, whoever is still listening: it has its own life, and a client that leaves only detaches
// its reader. A download that breaks goes on where it stopped, with a fresh token and a fresh redirect.

import type { Readable } from 'node:stream'
import type { Logger } from 'pino'
import { delay, type CancelTimer, type Clock } from '../clock.ts'
import type { Digest } from '../oci/digest.ts'
import { SMALL_BLOB_MAX_BYTES, type BlobStore } from '../storage/blob-store.ts'
import type { FileContent } from '../storage/filesystem.ts'
import { StorageError } from '../storage/filesystem.ts'
import type { SenderId } from '../storage/paths.ts'
import type { Spool } from '../storage/spool/spool.ts'
import type { SpoolDirectory } from '../storage/spool/spool-directory.ts'
import { AbandonedError, ContentMismatchError } from '../storage/spool/spool-error.ts'
import type { Metrics } from '../telemetry/metrics.ts'
import type { UpstreamBlob } from '../upstream/remote-registry.ts'
import { drop } from '../upstream/response-body.ts'
import { UpstreamError } from '../upstream/upstream-error.ts'
import { BlobSenders } from './blob-senders.ts'
import type { DiskBudget } from './disk-budget.ts'
import type { DiskPace } from './disk-pace.ts'
import { DownloadPatience, isWorthResuming, pauseMs } from './download-patience.ts'
import { isAbsence } from './failure.ts'
import { FillRoom } from './fill-room.ts'
import type { Repository } from './repositories.ts'
import type { StorageGuard } from './storage-guard.ts'
import { senderOf } from './upstream.ts'

/** There is nothing at that place. */
const RANGE_NOT_SATISFIABLE = 416
/** After the last byte, for its end to be told, or for more than there should be. */
const END_WAIT_MS = 5_000

export interface BlobFillDeps {
  readonly clock: Clock
  readonly logger: Logger
  readonly metrics: Metrics
  readonly blobs: BlobStore
  readonly budget: DiskBudget
  readonly pace: DiskPace
  readonly spools: SpoolDirectory
  readonly storage: StorageGuard
}

/** What becomes of the verified bytes, while readers still use the spool. */
export interface BlobKeeper {
  /** What they take beside their number: what is left of the last block, their directories, and `links`. */
  readonly filesBytes: number
  /** What stands on disk beside the bytes, and is written with them. */
  links(): readonly FileContent[]
  /** The bytes are in their place, and what stands beside them, unless the disk refused that. */
  onStored(spool: Spool, options: { areLinked: boolean }): Promise<void>
}

export interface BlobFillOptions {
  readonly repository: Repository
  readonly digest: Digest
  /** From a manifest; used only if the upstream does not tell. */
  readonly expectedSizeBytes: number | undefined
  /** On the monotonic clock: by when the upstream must have begun to send. */
  readonly deadlineMs: number
  /** Undefined: beside another download of the same digest that can't be joined; nothing is kept. */
  readonly keeper: BlobKeeper | undefined
}

export class BlobFill {
  /** Resolves when the size is known and reading can begin; rejects with why there is nothing to read. */
  readonly opened: Promise<Spool>
  /** Resolves when all bytes are here and right; rejects as `opened` does, also after that has resolved. */
  readonly verified: Promise<void>
  /** Resolves when all is over, for better or worse. */
  readonly ended: Promise<void>
  readonly digest: Digest
  /** Under whose name the upstream is asked. */
  readonly repository: Repository
  readonly #deps: BlobFillDeps
  readonly #options: BlobFillOptions
  readonly #stop = new AbortController()
  #settleOpened: { resolve(spool: Spool): void; reject(error: unknown): void } | undefined
  #settleVerified: { resolve(): void; reject(error: unknown): void } | undefined
  #spool: Spool | undefined
  /** Undefined: nothing is to be kept. */
  readonly #room: FillRoom | undefined
  readonly #senders = new BlobSenders()
  #hasFailed = false
  #isBetterElsewhere = false
  /** The disk did not take the bytes, and the log has the reason. */
  #isRefused = false
  readonly #sender: SenderId
  /** What has arrived contradicts itself: it is not worth keeping, though only the whole can be verified. */
  #isDoubtful = false

  constructor(deps: BlobFillDeps, options: BlobFillOptions) {
    this.#deps = deps
    this.#options = options
    this.repository = options.repository
    this.digest = options.digest
    this.#sender = senderOf(options.repository.upstream)
    const { digest, keeper, repository } = options
    const about = { digest, repository: repository.storedName }
    this.#room = keeper && new FillRoom(deps, { ...about, filesBytes: keeper.filesBytes })
    this.opened = new Promise((resolve, reject) => {
      this.#settleOpened = { resolve, reject }
    })
    this.verified = new Promise((resolve, reject) => {
      this.#settleVerified = { resolve, reject }
    })
    // Whoever waits is told; when everybody has left, the log is.
    this.opened.catch(() => undefined)
    this.verified.catch(() => undefined)
    this.ended = this.#run()
  }

  /** Whether it is given up, though it may not have `ended` yet: who comes now is not told its failure. */
  get hasFailed(): boolean {
    return this.#hasFailed
  }

  /** Whether it failed by what a mirror has sent, so that the next attempt begins at another endpoint. */
  get isBetterElsewhere(): boolean {
    return this.#isBetterElsewhere
  }

  /** Whether the upstream has answered, so that it cannot be waiting for us. */
  get hasBegun(): boolean {
    return this.#spool !== undefined
  }

  /** Ends the download; what has arrived is kept for the next start. */
  async stop(): Promise<void> {
    const reason = new Error('the cache is stopping')
    this.#stop.abort(reason)
    this.#spool?.fail(reason)
    await this.ended
  }

  async #run(): Promise<void> {
    const { logger, metrics } = this.#deps
    metrics.fillsRunning.inc()
    const about = { digest: this.digest, repository: this.repository.storedName }
    try {
      // In two steps: what waits for the disk must not hold the upstream's answer any more.
      await this.#keep(await this.#download())
    } catch (error) {
      this.#hasFailed = true
      const isWrong = error instanceof ContentMismatchError
      if (isWrong) this.#isBetterElsewhere = this.#senders.refuseAll(error)
      this.#settleOpened?.reject(this.#tellable(error))
      this.#settleVerified?.reject(this.#tellable(error))
      this.#spool?.fail(error instanceof Error ? error : new Error(String(error)))
      if (isWrong) {
        metrics.mismatches.inc({ type: 'blob' })
        logger.error(
          { err: error, ...about, sentBy: this.#senders.names },
          'the upstream sent wrong bytes; nothing of them is kept',
        )
      } else if (!this.#stop.signal.aborted) {
        // Mirrors are asked for much that they do not have.
        const level = isAbsence(error) && !this.hasBegun ? 'debug' : 'warn'
        logger[level]({ err: error, ...about }, 'a download from the upstream was given up')
      }
    } finally {
      await this.#release()
      metrics.fillsRunning.dec()
    }
  }

  /** What clients are told that have no headers yet: to them wrong bytes are one more failing upstream. */
  #tellable(error: unknown): unknown {
    const { names } = this.#senders
    if (error instanceof ContentMismatchError)
      return new UpstreamError('bad-response', `${names} sent wrong bytes`, { cause: error })
    if (!(error instanceof AbandonedError)) return error
    // Nobody could begin to read: the size comes last, and there is no disk to keep the bytes until then.
    const message = `${names} does not tell how large the blob is, and the disk does not take it`
    return new UpstreamError('bad-response', message, { cause: error })
  }

  /** @returns all bytes, verified */
  async #download(): Promise<Spool> {
    const { expectedSizeBytes, keeper } = this.#options
    if (keeper) await this.#deps.pace.keep(expectedSizeBytes, this.#stop.signal)
    const first = await this.#firstAnswer()
    const spool = await this.#openSpool(first).catch((error: unknown) => {
      drop(first.body)
      throw error
    })
    let blob: UpstreamBlob | undefined = first
    if (spool.receivedBytes < first.startOffset) {
      // The part file went away in between: the rest alone is of no use.
      drop(first.body)
      blob = undefined
    }
    const patience = new DownloadPatience(this.#deps.clock, spool.receivedBytes)
    for (;;) {
      const failure = await this.#receive(spool, blob)
      if (!failure) break
      if (!patience.noteBreak(spool.receivedBytes) || !isWorthResuming(failure)) throw failure
      await this.#pause(failure, patience.fruitless)
      this.#deps.metrics.fillResumes.inc()
      blob = undefined
    }
    await spool.finish()
    this.#settleOpened?.resolve(spool)
    this.#settleVerified?.resolve()
    return spool
  }

  /** Goes on with what an earlier attempt left, if the upstream agrees. */
  async #firstAnswer(): Promise<UpstreamBlob> {
    const { deadlineMs, keeper } = this.#options
    const offset = keeper ? this.#deps.spools.claim(this.digest, this.#sender) : 0
    // A crash may have left all of it, not yet verified: then its last byte is there to be asked for.
    for (const from of offset > 0 ? [offset, offset - 1] : []) {
      try {
        return await this.#ask(from, deadlineMs)
      } catch (error) {
        if (!(error instanceof UpstreamError) || error.kind !== 'bad-response') throw error
        if (error.status !== RANGE_NOT_SATISFIABLE) break
        if (from < offset) await this.#discardPart()
      }
    }
    // It is longer than the blob, or the upstream has an opinion on ranges: the cheap answer is to begin again.
    return this.#ask(0, deadlineMs)
  }

  /** Of an earlier attempt: it is not how the blob begins. */
  async #discardPart(): Promise<void> {
    const { spools, storage } = this.#deps
    spools.unclaim(this.digest)
    await storage.attempt(() => spools.remove(this.digest))
  }

  #ask(offset: number, deadlineMs?: number): Promise<UpstreamBlob> {
    const { name, registry } = this.repository
    const { signal } = this.#stop
    const expectedSizeBytes = this.#spool?.sizeBytes ?? this.#options.expectedSizeBytes
    return registry.getBlob(name, this.digest, { offset, expectedSizeBytes, deadlineMs, signal })
  }

  async #openSpool(first: UpstreamBlob): Promise<Spool> {
    const { sentBy, sizeBytes: announced, startOffset } = first
    const sizeBytes = announced ?? this.#options.expectedSizeBytes
    if (sizeBytes !== undefined && startOffset > sizeBytes) {
      await this.#discardPart()
      throw new UpstreamError('bad-response', `${sentBy} sent an impossible range`)
    }
    const { pace, spools, storage } = this.#deps
    const isKept =
      this.#room !== undefined &&
      pace.takes(sizeBytes) &&
      (await this.#room.reserve(sizeBytes, startOffset, this.#stop.signal))
    // Then others may have the room of the part.
    if (!isKept && this.#options.keeper) spools.unclaim(this.digest)
    const options = { sender: this.#sender, sizeBytes, resumedBytes: startOffset, isKept }
    const opening = storage.attempt(() => spools.open(this.digest, options))
    // From this moment on the part file is this download's.
    this.#room?.take(startOffset)
    // A disk that refuses to open a file is one that keeps nothing.
    const spool =
      (await opening) ??
      (await spools.open(this.digest, { ...options, resumedBytes: 0, isKept: false }))
    this.#spool = spool
    // No bytes leave nothing to hold back: a claim that there are none is passed on once it is verified. So is what
    // takes no time, if somebody else can be asked for it: else a mirror's web page would be begun.
    const isBrief = first.refuse && (sizeBytes ?? 0) <= SMALL_BLOB_MAX_BYTES
    if (sizeBytes !== undefined && sizeBytes > 0 && !isBrief) this.#settleOpened?.resolve(spool)
    return spool
  }

  /**
   * Receives one body, or asks for the rest and receives that.
   *
   * @returns undefined when the blob is complete; else why there is not all of it
   * @throws what no further attempt can mend
   */
  async #receive(
    spool: Spool,
    first: UpstreamBlob | undefined,
  ): Promise<UpstreamError | undefined> {
    let blob = first
    // Where there is another endpoint, the rest comes from that.
    const broken = (failure: UpstreamError): UpstreamError => {
      blob?.refuse?.(failure)
      return failure
    }
    try {
      blob ??= await this.#ask(spool.receivedBytes)
      await this.#copy(spool, blob)
      // Its end, as far as anybody has told: a rest may come in pieces, but a whole is all there is.
      const isWhole = blob.startOffset === 0 || blob.sizeBytes === undefined
      this.#isDoubtful ||= isWhole && spool.receivedBytes !== spool.sizeBytes
    } catch (error) {
      if (error instanceof ContentMismatchError || error instanceof AbandonedError) throw error
      this.#stop.signal.throwIfAborted()
      // The connection went after the last byte, before its end was told (a last chunk, a wrong length).
      if (spool.receivedBytes === spool.sizeBytes) return undefined
      if (error instanceof UpstreamError) {
        // It has no more than what has come, and that is not the whole.
        this.#isDoubtful ||= error.status === RANGE_NOT_SATISFIABLE
        return broken(error)
      }
      const reason = error instanceof Error ? error.message : String(error)
      return broken(this.#breakOf(blob, `broke off: ${reason}`, error))
    }
    if (spool.sizeBytes === undefined || spool.receivedBytes === spool.sizeBytes) return undefined
    const what = `ended after ${spool.receivedBytes} of ${spool.sizeBytes} bytes`
    return broken(this.#breakOf(blob, what))
  }

  #breakOf(blob: UpstreamBlob | undefined, what: string, cause?: unknown): UpstreamError {
    const sender = blob?.sentBy ?? this.repository.upstream.name
    return new UpstreamError('unreachable', `${sender}: the download ${what}`, { cause })
  }

  async #copy(spool: Spool, blob: UpstreamBlob): Promise<void> {
    const { clock, metrics } = this.#deps
    const { body, sizeBytes, startOffset } = blob
    this.#senders.add(blob)
    let stopWaiting: CancelTimer | undefined
    try {
      if (startOffset > spool.receivedBytes || differs(sizeBytes, spool.sizeBytes)) {
        throw new ContentMismatchError(
          `${this.digest}: the upstream changed its mind about the blob`,
        )
      }
      // An upstream that ignores ranges starts again: what we have is skipped.
      let skipBytes = spool.receivedBytes - startOffset
      for await (const chunk of body as Readable & AsyncIterable<Buffer>) {
        metrics.proxyPulledBytes.inc({ type: 'blob' }, chunk.length)
        const fresh = skipBytes > 0 ? chunk.subarray(skipBytes) : chunk
        skipBytes = Math.max(0, skipBytes - chunk.length)
        if (fresh.length === 0) continue
        const isTooSmall = this.#room?.isTooSmall(spool, fresh.length)
        if (isTooSmall) await this.#room?.grow(spool, this.#stop.signal)
        const written = spool.append(fresh)
        if (written) await written
        if (spool.receivedBytes === spool.sizeBytes) {
          stopWaiting ??= clock.setTimer(END_WAIT_MS, () => drop(body))
        }
      }
    } finally {
      stopWaiting?.()
      drop(body)
    }
  }

  async #pause(failure: UpstreamError, fruitless: number): Promise<void> {
    const { clock, logger } = this.#deps
    const waitMs = pauseMs(failure, fruitless)
    if (waitMs === undefined) throw failure
    logger.info({ digest: this.digest, reason: failure.message }, 'a download broke; resuming it')
    await delay(clock, waitMs, { signal: this.#stop.signal })
  }

  /** Readers have everything already: a disk that refuses now costs nobody anything. */
  async #keep(spool: Spool): Promise<void> {
    const { keeper } = this.#options
    if (!keeper || !spool.isKept) return
    const { blobs, storage } = this.#deps
    const isStored = await storage.attempt(async () => {
      const areLinked = await spool.commit(blobs, keeper.links())
      await keeper.onStored(spool, { areLinked })
      return true
    })
    this.#isRefused = isStored !== true
    // What is stored is counted as such by now.
    if (spool.isCommitted) this.#room?.release()
  }

  async #release(): Promise<void> {
    const spool = this.#spool
    try {
      await spool?.release()
      if (spool && !spool.isCommitted && this.#room?.isReserved) {
        await this.#deps.spools.giveBack(spool, {
          sender: this.#sender,
          isDoubtful: this.#isDoubtful,
        })
      }
    } catch (error) {
      // Of a disk that did not take the download is known already that it refuses, and why.
      const isTold = error instanceof StorageError && (this.#isRefused || spool?.isKept === false)
      const about = { err: error, digest: this.digest }
      this.#deps.logger[isTold ? 'debug' : 'warn'](about, 'could not tidy up after a download')
    } finally {
      if (this.#options.keeper) this.#deps.spools.unclaim(this.digest)
      this.#room?.release()
    }
  }
}

function differs(announced: number | undefined, expected: number | undefined): boolean {
  return announced !== undefined && expected !== undefined && announced !== expected
}
