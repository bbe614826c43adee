// How much of the disk the cache may take. Room is reserved before a byte is written; what does not fit makes the
// oldest content go, and if that cannot help, the bytes are passed on without being kept.
//
// Invariant: bytes stored + bytes reserved ≤ the limit. Everything that keeps something asks here first.

import type { Logger } from 'pino'
import { delay, type Clock } from '../clock.ts'
import type { DiskSpace } from '../storage/disk-space.ts'

/** A size, or a part of the file system. */
export type DiskAmount =
  | { readonly kind: 'bytes'; readonly bytes: number }
  | { readonly kind: 'part'; readonly part: number }

export interface DiskLimits {
  /** Of all that the cache has on disk. Undefined: as much as there is. */
  readonly maxSize: DiskAmount | undefined
  /** What it leaves to others. Undefined: nothing. */
  readonly minFree: DiskAmount | undefined
}

export interface DiskBudgetDeps {
  readonly clock: Clock
  readonly logger: Logger
  /** What is stored: see Inventory. */
  readonly usedBytes: () => number
  /** Whether that is all that is stored. While a volume is looked through for the first time it is not. */
  readonly isCounted: () => boolean
  /** Resolves when it is. */
  readonly whenCounted: () => Promise<void>
  /** What the cache takes beside its content: part files, index, quarantine. */
  readonly otherBytes: () => number
  readonly measure: () => Promise<DiskSpace>
  /** Removes the oldest content. @returns how many bytes that freed; 0 when it would not be enough */
  readonly makeRoom: (neededBytes: number) => Promise<number>
}

/** Kept below the limit by the janitor, so that most downloads need not wait for room; at most this part of it. */
const SLACK_PART = 0.02
const SLACK_MAX_BYTES = 1024 ** 3
/** For what is not known to the byte: directories, the growing index, and what other programs write to the disk. */
const MARGIN_MAX_BYTES = 16 * 1024 ** 2
/** … but no larger part of a small limit, or of a small disk, than this. */
const MARGIN_PART = 0.02
/** When no room could be made, it is not tried again for as much before this time … */
const RETRY_AFTER_MS = 10_000
/** … nor so soon that the search takes a larger part of the time than this: all content may be pinned. */
const SEARCH_PART = 0.05
/** Clients wait meanwhile. Small volumes are looked through in this time; the owner of a large one waits. */
const COUNTING_WAIT_MS = 2_000
const MIB = 1024 ** 2

export interface ReserveOptions {
  /** Gives up waiting for room. */
  readonly signal?: AbortSignal
  /** False: does not wait until it is known what is stored. */
  readonly waitsForCount?: boolean
}

/** Why bytes are not kept. */
type Refusal = 'counting' | 'too-large' | 'full'

/** Room on disk, for as long as it is held. */
export class Reservation {
  /** Of the room, already taken on disk. Tells free space that is ours from free space that is not. */
  writtenBytes = 0
  #bytes: number
  readonly #budget: DiskBudget

  constructor(budget: DiskBudget, bytes: number) {
    this.#budget = budget
    this.#bytes = bytes
  }

  get bytes(): number {
    return this.#bytes
  }

  /** For downloads that turn out larger than announced. @returns false when there is no room */
  async grow(bytes: number, options: ReserveOptions = {}): Promise<boolean> {
    const more = await this.#budget.reserve(bytes, options)
    if (!more) return false
    this.#bytes += more.bytes
    this.#budget.replace(more, this)
    return true
  }

  /** Adds what is on disk already, and was counted elsewhere so far. */
  take(bytes: number): void {
    this.#bytes += bytes
    this.writtenBytes += bytes
  }

  /** The bytes are stored and counted, or not kept. Idempotent. */
  release(): void {
    this.#budget.release(this)
  }
}

export class DiskBudget {
  readonly #deps: DiskBudgetDeps
  readonly #limits: DiskLimits
  readonly #reservations = new Set<Reservation>()
  #limitBytes = Number.POSITIVE_INFINITY
  /** One at a time makes room: each would count the same bytes as freed for itself. */
  #turn: Promise<unknown> = Promise.resolve()
  /** So much more than there is was asked for in vain. */
  #hopeless: { excessBytes: number; untilMs: number } | undefined
  readonly #said = new Set<Refusal>()

  constructor(deps: DiskBudgetDeps, limits: DiskLimits) {
    this.#deps = deps
    this.#limits = limits
  }

  get limitBytes(): number {
    return this.#limitBytes
  }

  get reservedBytes(): number {
    let sum = 0
    for (const { bytes } of this.#reservations) sum += bytes
    return sum
  }

  /** Everything on disk that is ours. */
  get usedBytes(): number {
    return this.#deps.usedBytes() + this.#deps.otherBytes()
  }

  /** Whether an operator has set a limit: then the janitor keeps some room free. */
  get isLimited(): boolean {
    return this.#limits.maxSize !== undefined || this.#limits.minFree !== undefined
  }

  /** Looks at the disk again: other programs write to it too. @throws {StorageError} */
  async measure(): Promise<void> {
    const { freeBytes, totalBytes } = await this.#deps.measure()
    const { maxSize, minFree } = this.#limits
    let writtenBytes = 0
    for (const reservation of this.#reservations) writtenBytes += reservation.writtenBytes
    const spareBytes = Math.max(marginOf(totalBytes), minFree ? bytesOf(minFree, totalBytes) : 0)
    const diskBytes = this.usedBytes + writtenBytes + freeBytes - spareBytes
    const sizeBytes = maxSize ? bytesOf(maxSize, totalBytes) : Number.POSITIVE_INFINITY
    const limitBytes = Math.min(diskBytes, sizeBytes - marginOf(sizeBytes))
    this.#limitBytes = Math.max(0, Math.floor(limitBytes))
  }

  /** Room for so many bytes, if it is there without removing anything. */
  tryReserve(bytes: number): Reservation | undefined {
    if (!this.#isCounted || this.#excessOf(bytes) > 0) return undefined
    const reservation = new Reservation(this, bytes)
    this.#reservations.add(reservation)
    return reservation
  }

  /**
   * Room for so many bytes, for which older content may have to go.
   *
   * @returns undefined: keep nothing
   * @throws the signal's reason
   */
  async reserve(bytes: number, options: ReserveOptions = {}): Promise<Reservation | undefined> {
    const { signal, waitsForCount = true } = options
    const atOnce = this.tryReserve(bytes)
    if (atOnce) return atOnce
    if (!this.#isCounted && !(waitsForCount && (await this.#waitForCount(signal))))
      return this.#refuse(bytes, 'counting')
    return this.#inTurn(async () => {
      signal?.throwIfAborted()
      return this.#reserveInTurn(bytes)
    })
  }

  /**
   * Writes something small beside what is stored: a link, a tag. Clients are waiting: not long.
   *
   * @param write makes the bytes count as used
   * @returns undefined when there is no room, and nothing was written
   * @throws what `write` throws
   */
  async keep<Result>(bytes: number, write: () => Promise<Result>): Promise<Result | undefined> {
    const room = await this.reserve(bytes, { waitsForCount: false })
    if (!room) return undefined
    try {
      return await write()
    } finally {
      room.release()
    }
  }

  /** Makes room down to the slack below the limit. */
  async trim(): Promise<void> {
    if (!this.isLimited || !this.#isCounted) return
    const slackBytes = Math.floor(Math.min(this.#limitBytes * SLACK_PART, SLACK_MAX_BYTES))
    await this.#inTurn(async () => {
      const excessBytes = this.#excessOf(slackBytes)
      if (excessBytes > 0 && !this.#isHopeless(excessBytes)) await this.#makeRoom(excessBytes)
    })
  }

  /** Two reservations become one. */
  replace(one: Reservation, other: Reservation): void {
    this.#reservations.delete(one)
    this.#reservations.add(other)
  }

  release(reservation: Reservation): void {
    this.#reservations.delete(reservation)
  }

  #inTurn<Result>(action: () => Promise<Result>): Promise<Result> {
    const turn = this.#turn.then(action)
    this.#turn = turn.catch(() => undefined)
    return turn
  }

  async #reserveInTurn(bytes: number): Promise<Reservation | undefined> {
    // What others have freed meanwhile may do: downloads before this one, or other programs.
    await this.#measureOrTell()
    const before = this.tryReserve(bytes)
    if (before) return before
    if (bytes > this.#limitBytes) return this.#refuse(bytes, 'too-large')
    const excessBytes = this.#excessOf(bytes)
    if (this.#isHopeless(excessBytes)) return this.#refuse(bytes, 'full')
    try {
      await this.#makeRoom(excessBytes)
    } catch (error) {
      this.#deps.logger.error({ err: error }, 'could not make room')
    }
    const after = this.tryReserve(bytes)
    if (after) this.#said.clear()
    return after ?? this.#refuse(bytes, 'full')
  }

  async #measureOrTell(): Promise<void> {
    try {
      await this.measure()
    } catch (error) {
      this.#deps.logger.error({ err: error }, 'could not measure the disk')
    }
  }

  async #makeRoom(excessBytes: number): Promise<void> {
    const { clock, makeRoom } = this.#deps
    const startMs = clock.monotonic()
    const freedBytes = await makeRoom(excessBytes)
    const nowMs = clock.monotonic()
    const untilMs = nowMs + Math.max(RETRY_AFTER_MS, (nowMs - startMs) / SEARCH_PART)
    this.#hopeless = freedBytes > 0 ? undefined : { excessBytes, untilMs }
  }

  #isHopeless(excessBytes: number): boolean {
    const hopeless = this.#hopeless
    if (!hopeless || this.#deps.clock.monotonic() >= hopeless.untilMs) return false
    return excessBytes >= hopeless.excessBytes
  }

  /** By how much these bytes would be too many. */
  #excessOf(bytes: number): number {
    return this.usedBytes + this.reservedBytes + bytes - this.#limitBytes
  }

  /** What the disk has room for is known in any case; what the cache takes of it is not. */
  get #isCounted(): boolean {
    return this.#limits.maxSize === undefined || this.#deps.isCounted()
  }

  /** @throws the signal's reason */
  async #waitForCount(signal: AbortSignal | undefined): Promise<boolean> {
    const { clock, whenCounted } = this.#deps
    const given = new AbortController()
    const signals = signal ? [signal, given.signal] : [given.signal]
    const patience = delay(clock, COUNTING_WAIT_MS, { signal: AbortSignal.any(signals) })
    // Who is not waited for any more need not be heard.
    patience.catch(() => undefined)
    await Promise.race([whenCounted(), patience])
    given.abort()
    return this.#isCounted
  }

  /** Each reason is told once, until room could be made again: a full cache is asked all day. */
  #refuse(bytes: number, refusal: Refusal): undefined {
    if (this.#said.has(refusal)) return undefined
    this.#said.add(refusal)
    const mib = Math.ceil(bytes / MIB)
    const limitMib = Math.floor(this.#limitBytes / MIB)
    const reasons: Readonly<Record<Refusal, string>> = {
      counting: `no room for ${mib} MiB before the volume has been looked through`,
      'too-large':
        `${mib} MiB are more than the ${limitMib} MiB that the cache may take: ` +
        'raise storage.maxsize, or make room on the disk',
      full:
        `no room for ${mib} MiB within ${limitMib} MiB: all that is older is pinned or in use, or too little; ` +
        'raise storage.maxsize, make room on the disk, or pin less',
    }
    this.#deps.logger.warn(
      { sizeBytes: bytes, limitBytes: this.#limitBytes, usedBytes: this.usedBytes },
      `served but not kept: ${reasons[refusal]}`,
    )
    return undefined
  }
}

function marginOf(bytes: number): number {
  return Math.min(MARGIN_MAX_BYTES, bytes * MARGIN_PART)
}

function bytesOf(amount: DiskAmount, totalBytes: number): number {
  return amount.kind === 'bytes' ? amount.bytes : amount.part * totalBytes
}
