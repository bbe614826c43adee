// One download in progress. Owns the upstream's body and the spool; owns no policy. Lives until the bytes are
// stored or given up, whoever is still listening: it has its own life, and a client that leaves only detaches
// its reader. A download that breaks goes on where it stopped, with a fresh token and a fresh redirect.

import type { Readable } from 'node:stream'
import type { Logger } from 'pino'
import { delay, type Clock } from '../clock.ts'
import type { Digest } from '../oci/digest.ts'
import type { BlobStore } from '../storage/blob-store.ts'
import { AbandonedError, ContentMismatchError } from '../storage/spool-error.ts'
import type { Spool } from '../storage/spool.ts'
import type { SpoolDirectory } from '../storage/spool-directory.ts'
import type { Metrics } from '../telemetry/metrics.ts'
import { UpstreamError, type UpstreamErrorKind } from '../upstream/upstream-error.ts'
import type { UpstreamBlob } from '../upstream/upstream-client.ts'
import type { Repository } from './repositories.ts'
import type { StorageGuard } from './storage-guard.ts'

/** Attempts in a row that bring not one byte. */
const FRUITLESS_MAX = 5
const BACKOFF_FIRST_MS = 250
const BACKOFF_MAX_MS = 4_000
/** Clients wait with an open connection meanwhile; longer than this they had better be told. */
const RETRY_AFTER_MAX_MS = 15_000
/** Attempts in all, so that an upstream that gives a byte at a time cannot keep us busy for ever. */
const ATTEMPTS_MAX = 100

/** What another attempt can change, once some bytes have been served. */
const WORTH_RESUMING: readonly UpstreamErrorKind[] = [
  'rate-limited',
  'unreachable',
  'timeout',
  'unavailable',
  'login-failed',
]

export interface BlobFillDeps {
  readonly clock: Clock
  readonly logger: Logger
  readonly metrics: Metrics
  readonly blobs: BlobStore
  readonly spools: SpoolDirectory
  readonly storage: StorageGuard
  /** Called with the verified bytes in place, while readers still use the spool. */
  readonly onStored: (spool: Spool) => Promise<void>
}

export interface BlobFillOptions {
  readonly repository: Repository
  readonly digest: Digest
  /** From a manifest; used only if the upstream does not tell. */
  readonly expectedSizeBytes: number | undefined
  /** False: beside another download of the same digest that can't be joined; nothing is kept. */
  readonly isKept: boolean
}

export class BlobFill {
  /** Resolves when the size is known and reading can begin; rejects with why there is nothing to read. */
  readonly opened: Promise<Spool>
  /** Resolves when all is over, for better or worse. */
  readonly ended: Promise<void>
  readonly digest: Digest
  /** Under whose name the upstream is asked. */
  readonly repository: Repository
  readonly #deps: BlobFillDeps
  readonly #options: BlobFillOptions
  readonly #stop = new AbortController()
  #settleOpened: { resolve(spool: Spool): void; reject(error: unknown): void } | undefined
  #spool: Spool | undefined

  constructor(deps: BlobFillDeps, options: BlobFillOptions) {
    this.#deps = deps
    this.#options = options
    this.repository = options.repository
    this.digest = options.digest
    this.opened = new Promise((resolve, reject) => {
      this.#settleOpened = { resolve, reject }
    })
    // Whoever waits is told; when everybody has left, the log is.
    this.opened.catch(() => undefined)
    this.ended = this.#run()
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
      await this.#download()
    } catch (error) {
      this.#settleOpened?.reject(this.#tellable(error))
      this.#spool?.fail(error instanceof Error ? error : new Error(String(error)))
      if (error instanceof ContentMismatchError) {
        metrics.mismatches.inc({ type: 'blob' })
        logger.error(
          { err: error, ...about },
          'the upstream sent wrong bytes; nothing of them is kept',
        )
      } else if (!this.#stop.signal.aborted) {
        logger.warn({ err: error, ...about }, 'a download from the upstream was given up')
      }
    } finally {
      metrics.fillsRunning.dec()
      await this.#release()
    }
  }

  /** What clients are told that have no headers yet: to them wrong bytes are one more failing upstream. */
  #tellable(error: unknown): unknown {
    if (!(error instanceof ContentMismatchError)) return error
    const { name } = this.repository.upstream
    return new UpstreamError('bad-response', `${name} sent wrong bytes`, { cause: error })
  }

  async #download(): Promise<void> {
    const first = await this.#firstAnswer()
    const spool = await this.#openSpool(first)
    let blob: UpstreamBlob | undefined = first
    if (spool.receivedBytes < first.startOffset) {
      // The part file went away in between: the rest alone is of no use.
      first.body.destroy()
      blob = undefined
    }
    let fruitless = 0
    for (let attempts = 1; ; attempts++) {
      const before = spool.receivedBytes
      const failure = await this.#receive(spool, blob)
      if (!failure) break
      fruitless = spool.receivedBytes > before ? 0 : fruitless + 1
      if (fruitless >= FRUITLESS_MAX || attempts >= ATTEMPTS_MAX || !isWorthResuming(failure)) {
        throw failure
      }
      await this.#pause(failure, fruitless)
      this.#deps.metrics.fillResumes.inc()
      blob = undefined
    }
    await spool.finish()
    this.#settleOpened?.resolve(spool)
    await this.#keep(spool)
  }

  /** Goes on with what an earlier attempt left, if the upstream agrees. */
  async #firstAnswer(): Promise<UpstreamBlob> {
    const offset = this.#options.isKept ? this.#deps.spools.partBytes(this.digest) : 0
    try {
      return await this.#ask(offset)
    } catch (error) {
      if (offset === 0 || !(error instanceof UpstreamError) || error.kind !== 'bad-response')
        throw error
      // The part may be complete, or longer than the blob: the cheap answer is to begin again.
      return this.#ask(0)
    }
  }

  #ask(offset: number): Promise<UpstreamBlob> {
    const { name, upstream } = this.repository
    return upstream.getBlob(name, this.digest, { offset, signal: this.#stop.signal })
  }

  async #openSpool({ body, sizeBytes: announced, startOffset }: UpstreamBlob): Promise<Spool> {
    const sizeBytes = announced ?? this.#options.expectedSizeBytes
    if (sizeBytes !== undefined && startOffset > sizeBytes) {
      body.destroy()
      throw new UpstreamError(
        'bad-response',
        `${this.repository.upstream.name} sent an impossible range`,
      )
    }
    const { isKept } = this.#options
    const { spools, storage } = this.#deps
    const options = { sizeBytes, resumedBytes: startOffset, isKept }
    // A disk that refuses to open a file is one that keeps nothing.
    const spool =
      (await storage.attempt(() => spools.open(this.digest, options))) ??
      (await spools.open(this.digest, { sizeBytes, resumedBytes: 0, isKept: false }))
    this.#spool = spool
    // No bytes leave nothing to hold back: a claim that there are none is passed on once it is verified.
    if (sizeBytes !== undefined && sizeBytes > 0) this.#settleOpened?.resolve(spool)
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
    try {
      const blob = first ?? (await this.#ask(spool.receivedBytes))
      await this.#copy(spool, blob)
    } catch (error) {
      if (error instanceof ContentMismatchError || error instanceof AbandonedError) throw error
      this.#stop.signal.throwIfAborted()
      if (error instanceof UpstreamError) return error
      const reason = error instanceof Error ? error.message : String(error)
      return this.#broken(`broke off: ${reason}`, error)
    }
    if (spool.sizeBytes === undefined || spool.receivedBytes === spool.sizeBytes) return undefined
    return this.#broken(`ended after ${spool.receivedBytes} of ${spool.sizeBytes} bytes`)
  }

  #broken(what: string, cause?: unknown): UpstreamError {
    return new UpstreamError(
      'unreachable',
      `${this.repository.upstream.name}: the download ${what}`,
      {
        cause,
      },
    )
  }

  async #copy(spool: Spool, { body, sizeBytes, startOffset }: UpstreamBlob): Promise<void> {
    const { metrics } = this.#deps
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
        const written = spool.append(fresh)
        if (written) await written
      }
    } finally {
      body.destroy()
    }
  }

  async #pause(failure: UpstreamError, fruitless: number): Promise<void> {
    const { clock, logger } = this.#deps
    const backoffMs = Math.min(BACKOFF_FIRST_MS * 2 ** fruitless, BACKOFF_MAX_MS)
    const waitMs = Math.max(failure.retryAfterMs ?? 0, backoffMs)
    if (waitMs > RETRY_AFTER_MAX_MS) throw failure
    logger.info({ digest: this.digest, reason: failure.message }, 'a download broke; resuming it')
    await delay(clock, waitMs, { signal: this.#stop.signal })
  }

  /** Readers have everything already: a disk that refuses now costs nobody anything. */
  async #keep(spool: Spool): Promise<void> {
    if (!spool.isKept) return
    const { blobs, onStored, storage } = this.#deps
    await storage.attempt(async () => {
      await spool.commit(blobs)
      await onStored(spool)
    })
  }

  async #release(): Promise<void> {
    const spool = this.#spool
    if (!spool) return
    try {
      await spool.release()
      if (!spool.isCommitted && this.#options.isKept) await this.#deps.spools.giveBack(spool)
    } catch (error) {
      this.#deps.logger.warn(
        { err: error, digest: this.digest },
        'could not tidy up after a download',
      )
    }
  }
}

function isWorthResuming({ kind }: UpstreamError): boolean {
  return WORTH_RESUMING.includes(kind)
}

function differs(announced: number | undefined, expected: number | undefined): boolean {
  return announced !== undefined && expected !== undefined && announced !== expected
}
