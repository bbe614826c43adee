// The downloads that are under way: one for each digest, which all who ask share, whatever repository they ask
// under; and, beside one that can't be joined any more, a few that serve one client each. Nobody joins under the
// name of a repository that is not known to hold the blob, or while it may wait for the one who wants to join.

import type { Clock } from '../clock.ts'
import type { Digest } from '../oci/digest.ts'
import { RegistryError } from '../oci/registry-error.ts'
import type { ByteSource } from '../storage/byte-source.ts'
import type { Spool } from '../storage/spool/spool.ts'
import { UpstreamError } from '../upstream/upstream-error.ts'
import type { BlobAnswer, Freshness } from './answer.ts'
import { BlobFill, type BlobFillDeps, type BlobFillOptions, type BlobKeeper } from './blob-fill.ts'
import { clientError, isAbsence } from './failure.ts'
import type { Inventory } from './inventory.ts'
import type { Membership } from './membership.ts'
import type { Repository } from './repositories.ts'
import { FAR_AHEAD_BYTES, TailSource } from './tail-source.ts'

/** Each holds up to 8 MiB for its slowest reader, and asks the upstream for all of the bytes again. */
const UNSHARED_MAX = 16
/** Ranges far ahead of a download, each with a connection of its own for as long as its client reads. */
const TAILS_MAX = 16
/** Until one of them is over, or the shared download; or until another process has started. */
const RETRY_AFTER_MS = 10_000

/** What one client asked for. */
export interface Asked {
  readonly repository: Repository
  readonly digest: Digest
  readonly deadlineMs: number
}

interface RunningFill {
  readonly fill: BlobFill
  /** Who may have a link when the bytes are stored. */
  readonly repositories: Map<string, Repository>
}

export interface BlobFillsDeps extends BlobFillDeps {
  readonly clock: Clock
  readonly inventory: Inventory
  readonly membership: Membership
  /** Asks the upstream whether it has the blob under the repository's name. @throws {UpstreamError} */
  readonly ask: (asked: Asked) => Promise<unknown>
  /** Begins again: what was under way is over. */
  readonly findAgain: (asked: Asked) => Promise<BlobAnswer>
  /** Called with the bytes in place, before the repositories are told. */
  readonly onStored: (digest: Digest, spool: Spool) => Promise<void>
}

export class BlobFills {
  readonly #deps: BlobFillsDeps
  readonly #running = new Map<Digest, RunningFill>()
  /** Downloads for one client each, beside one that can't be joined. */
  readonly #unshared = new Set<BlobFill>()
  #tails = 0
  /** Requests whose clients were cut off go on for a moment. */
  #isStopping = false

  constructor(deps: BlobFillsDeps) {
    this.#deps = deps
  }

  has(digest: Digest): boolean {
    return this.#running.has(digest)
  }

  /** Ends all downloads, and begins no more. */
  async stop(): Promise<void> {
    this.#isStopping = true
    const shared = [...this.#running.values()].map(({ fill }) => fill)
    await Promise.all([...shared, ...this.#unshared].map((fill) => fill.stop()))
  }

  /** Joins the download that is running, or starts it. @throws {RegistryError} @throws {UpstreamError} */
  async answer(asked: Asked): Promise<BlobAnswer> {
    const { digest, repository } = asked
    if (this.#isStopping) throw notNow('the cache is stopping')
    const running = this.#running.get(digest)
    if (!running) return this.#answerFromFill(asked, this.#start(asked), 'miss')
    if (repository.via !== undefined && !running.fill.hasBegun && !running.fill.hasFailed) {
      // It came through other caches, one of which our upstream may be: then the download waits for its answer. To
      // ask in its own name tells.
      await this.#deps.ask(asked)
      running.repositories.set(repository.storedName, repository)
    }
    if (running.fill.hasFailed) {
      await running.fill.ended
      return this.#deps.findAgain(asked)
    }
    if (!running.repositories.has(repository.storedName)) {
      const isArriving = isFrom(running, repository)
      const proof = this.#deps.membership.isProven(repository, digest, 'blob', { isArriving })
      if (!(await proof)) await this.#deps.ask(asked)
      running.repositories.set(repository.storedName, repository)
    }
    return this.#join(asked, running.fill)
  }

  async #join(asked: Asked, fill: BlobFill): Promise<BlobAnswer> {
    try {
      return await this.#answerFromFill(asked, fill, 'coalesced')
    } catch (error) {
      const { storedName, via } = asked.repository
      // Nothing is there under the name that the download was begun under; under this one there is.
      const isAbsent = isAbsence(error) && fill.repository.storedName !== storedName
      // It was begun by a cache that leads back to itself.
      const isLoop = isLoopError(error) && fill.repository.via !== via
      if (!isAbsent && !isLoop) throw error
      await fill.ended
      return this.#deps.findAgain(asked)
    }
  }

  #start(asked: Asked): BlobFill {
    const { digest, repository } = asked
    const repositories = new Map([[repository.storedName, repository]])
    const keeper = this.#keeperOf(digest, repository, repositories)
    const fill = new BlobFill(this.#deps, { ...this.#fillOptions(asked), keeper })
    this.#running.set(digest, { fill, repositories })
    void fill.ended.then(() => this.#running.delete(digest))
    return fill
  }

  #fillOptions(asked: Asked): Omit<BlobFillOptions, 'keeper'> {
    const { digest, repository } = asked
    const expectedSizeBytes = this.#deps.membership.namedSizeBytes(repository, digest)
    return { ...asked, expectedSizeBytes }
  }

  async #answerFromFill(
    asked: Asked,
    fill: BlobFill,
    outcome: Freshness['outcome'],
  ): Promise<BlobAnswer> {
    const spool = await fill.opened.catch((error: unknown) => {
      if (fill.isBetterElsewhere) return undefined
      throw error
    })
    if (!spool) {
      // Nothing of it has been sent to anybody.
      await fill.ended
      return this.#deps.findAgain(asked)
    }
    const reader = spool.reader()
    if (reader) {
      return {
        sizeBytes: spool.sizeBytes ?? 0,
        freshness: { outcome, asOfMs: this.#deps.clock.now(), isStored: spool.isKept },
        open: (first, last) => {
          // What an earlier attempt left, nobody vouches for yet, and nothing would follow that is held back.
          const isDoubtful = spool.isDoubtful(first, last)
          const neededBytes = isDoubtful ? (spool.sizeBytes ?? 0) : first
          const isFar = neededBytes - spool.receivedBytes >= FAR_AHEAD_BYTES
          if (!isFar || !spool.isKept || this.#tails >= TAILS_MAX) {
            return isDoubtful ? reader.waitForTheWhole() : reader
          }
          reader.close()
          this.#tails++
          const onClose = (): void => void this.#tails--
          const join = (): ByteSource | undefined => {
            return isDoubtful ? spool.reader()?.waitForTheWhole() : spool.reader()
          }
          return new TailSource({ join, onClose }, asked)
        },
        confirmed: () =>
          fill.verified.catch((error: unknown) => {
            throw clientError(error, asked.repository.upstream.name, 'BLOB_UNKNOWN')
          }),
        discard: () => reader.close(),
      }
    }
    // Over already: the blob is stored by now, or another attempt begins.
    if (spool.isOver) {
      await fill.ended
      return this.#deps.findAgain(asked)
    }
    // The disk failed, and what this client needs first is no longer in memory: it gets a download of its own.
    if (this.#isStopping) throw notNow('the cache is stopping')
    if (this.#unshared.size >= UNSHARED_MAX) {
      // It takes the place of the first that is over, or finds the blob stored; its deadline is kept elsewhere.
      await Promise.race([fill, ...this.#unshared].map((each) => each.ended))
      return this.#deps.findAgain(asked)
    }
    const options = { ...this.#fillOptions(asked), keeper: undefined }
    const own = new BlobFill(this.#deps, options)
    this.#unshared.add(own)
    void own.ended.then(() => this.#unshared.delete(own))
    return this.#answerFromFill(asked, own, 'bypass')
  }

  /** @param first whose link is written with the bytes; there is room for that one */
  #keeperOf(
    digest: Digest,
    first: Repository,
    repositories: ReadonlyMap<string, Repository>,
  ): BlobKeeper {
    const { inventory, membership } = this.#deps
    return {
      // No more than the last byte's block is not full.
      filesBytes: inventory.costOf(1, first.storedName),
      links: () => [membership.linkFile(first, digest, 'blob')],
      onStored: async (spool, { areLinked }) => {
        await this.#deps.onStored(digest, spool)
        for (const repository of repositories.values()) {
          if (areLinked && repository === first) membership.noteLinked(first, digest, 'blob')
          // The disk is asked again, or for the first time.
          else await membership.link(repository, digest, 'blob')
        }
      },
    }
  }
}

/** Whether the upstream that sends the bytes, or has said that it has them, is the repository's. */
function isFrom({ repositories }: RunningFill, { upstream }: Repository): boolean {
  // One that a client named may have been made anew since: it is told by where its repositories are stored.
  return [...repositories.values()].some(
    (each) => each.upstream.storedPrefix === upstream.storedPrefix,
  )
}

function isLoopError(error: unknown): boolean {
  return error instanceof UpstreamError && error.kind === 'loop'
}

function notNow(reason: string): RegistryError {
  return new RegistryError('UNAVAILABLE', { detail: { reason }, retryAfterMs: RETRY_AFTER_MS })
}
