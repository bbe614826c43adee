import { pino } from 'pino'
import { describe, expect, it } from 'vitest'
import { DiskBudget, type DiskLimits } from '../../../src/cache/disk-budget.ts'
import { FakeClock } from '../../support/fake-clock.ts'
import { isStillWaiting } from '../../support/spool-rig.ts'

const MIB = 1024 ** 2
const GIB = 1024 ** 3

const bytes = (count: number) => ({ kind: 'bytes', bytes: count }) as const
const part = (fraction: number) => ({ kind: 'part', part: fraction }) as const

/** A disk of which the test says everything, and a budget that has measured it. */
class Desk {
  readonly clock = new FakeClock()
  readonly messages: string[] = []
  readonly budget: DiskBudget
  totalBytes = 100 * GIB
  freeBytes = 100 * GIB
  usedBytes = 0
  otherBytes = 0
  isCounted = true
  /** Excesses that room was asked for. */
  readonly asked: number[] = []
  /** What may go. */
  oldBytes = Number.POSITIVE_INFINITY
  /** Before room is made. */
  pause: Promise<void> | undefined
  count: () => void = () => undefined

  constructor(limits: Partial<DiskLimits>) {
    const counted = new Promise<void>((resolve) => {
      this.count = () => {
        this.isCounted = true
        resolve()
      }
    })
    const destination = {
      write: (line: string) => this.messages.push((JSON.parse(line) as { msg: string }).msg),
    }
    this.budget = new DiskBudget(
      {
        clock: this.clock,
        logger: pino({ level: 'warn' }, destination),
        usedBytes: () => this.usedBytes,
        otherBytes: () => this.otherBytes,
        isCounted: () => this.isCounted,
        whenCounted: () => counted,
        measure: async () => ({ totalBytes: this.totalBytes, freeBytes: this.freeBytes }),
        makeRoom: (neededBytes) => this.#makeRoom(neededBytes),
      },
      { maxSize: undefined, minFree: undefined, ...limits },
    )
  }

  /** @returns what lets it go on */
  pauseRemoval(): () => void {
    let goOn: (() => void) | undefined
    this.pause = new Promise((resolve) => (goOn = resolve))
    return () => goOn?.()
  }

  async #makeRoom(neededBytes: number): Promise<number> {
    this.asked.push(neededBytes)
    await this.pause
    if (neededBytes > this.oldBytes) return 0
    this.oldBytes -= neededBytes
    this.usedBytes -= neededBytes
    return neededBytes
  }
}

async function deskOf(limits: Partial<DiskLimits>, changes: Partial<Desk> = {}): Promise<Desk> {
  const desk = new Desk(limits)
  Object.assign(desk, changes)
  await desk.budget.measure()
  return desk
}

/** A limit of 100 GiB, and the margin off it. */
const LIMIT_BYTES = 100 * GIB - 16 * MIB
const HUNDRED_GIB = { maxSize: bytes(100 * GIB) }
const HUGE_DISK = { totalBytes: 1000 * GIB, freeBytes: 1000 * GIB }

describe('the limit', () => {
  it('is the size that was set, less a margin for what is not known to the byte', async () => {
    expect((await deskOf(HUNDRED_GIB, HUGE_DISK)).budget.limitBytes).toBe(LIMIT_BYTES)
    const small = await deskOf({ maxSize: bytes(10 * MIB) }, HUGE_DISK)
    expect(small.budget.limitBytes).toBe(Math.floor(9.8 * MIB))
  })

  it('may be a part of the file system', async () => {
    const desk = await deskOf({ maxSize: part(0.8) })
    expect(desk.budget.limitBytes).toBe(80 * GIB - 16 * MIB)
  })

  it('is what the disk has left and the cache has already, where none was set', async () => {
    const desk = await deskOf({}, { usedBytes: 30 * GIB, freeBytes: 10 * GIB, otherBytes: GIB })
    expect(desk.budget.isLimited).toBe(false)
    expect(desk.budget.limitBytes).toBe(41 * GIB - 16 * MIB)
  })

  it.each([
    ['a size', bytes(5 * GIB)],
    ['a part', part(0.05)],
  ])('leaves %s of the disk to others', async (_what, minFree) => {
    const desk = await deskOf({ minFree }, { usedBytes: 30 * GIB, freeBytes: 10 * GIB })
    expect(desk.budget.isLimited).toBe(true)
    expect(desk.budget.limitBytes).toBe(35 * GIB)
  })

  it('is the lower of two', async () => {
    const limits = { maxSize: bytes(50 * GIB), minFree: part(0.1) }
    const roomy = await deskOf(limits)
    expect(roomy.budget.limitBytes).toBe(50 * GIB - 16 * MIB)
    const tight = await deskOf(limits, { usedBytes: 20 * GIB, freeBytes: 30 * GIB })
    expect(tight.budget.limitBytes).toBe(40 * GIB)
  })

  it('follows the disk that others write to', async () => {
    const desk = await deskOf({ minFree: bytes(GIB) }, { freeBytes: 10 * GIB })
    expect(desk.budget.limitBytes).toBe(9 * GIB)
    desk.freeBytes = 0.5 * GIB
    await desk.budget.measure()
    expect(desk.budget.limitBytes).toBe(0)
    expect(desk.budget.tryReserve(0)).toBeDefined()
    expect(desk.budget.tryReserve(1)).toBeUndefined()
  })

  it('takes for its own what running downloads have written', async () => {
    const desk = await deskOf({ minFree: bytes(GIB) }, { freeBytes: 10 * GIB })
    const room = desk.budget.tryReserve(4 * GIB)
    if (!room) throw new Error('there was room')
    room.writtenBytes = 3 * GIB
    desk.freeBytes = 7 * GIB
    await desk.budget.measure()
    expect(desk.budget.limitBytes).toBe(9 * GIB)
    // One part of a download that was counted as a part file so far.
    room.take(GIB)
    desk.freeBytes = 6 * GIB
    await desk.budget.measure()
    expect(desk.budget.limitBytes).toBe(9 * GIB)
    expect(room.bytes).toBe(5 * GIB)
  })
})

describe('room', () => {
  it('is promised as long as there is some, and free again when it is given back', async () => {
    const desk = await deskOf(HUNDRED_GIB, { ...HUGE_DISK, usedBytes: 10 * GIB, otherBytes: GIB })
    const rooms = [40 * GIB, 40 * GIB].map((size) => desk.budget.tryReserve(size))
    expect(desk.budget.reservedBytes).toBe(80 * GIB)
    expect(desk.budget.tryReserve(9 * GIB)).toBeUndefined()
    rooms[0]?.release()
    rooms[0]?.release()
    expect(desk.budget.reservedBytes).toBe(40 * GIB)
    expect(desk.budget.tryReserve(9 * GIB)).toBeDefined()
    expect(desk.asked).toEqual([])
  })

  it('is made by removing what is missing, and no more', async () => {
    const desk = await deskOf(HUNDRED_GIB, { ...HUGE_DISK, usedBytes: LIMIT_BYTES - GIB })
    expect(await desk.budget.reserve(5 * GIB)).toBeDefined()
    expect(desk.asked).toEqual([4 * GIB])
    expect(desk.budget.usedBytes + desk.budget.reservedBytes).toBe(LIMIT_BYTES)
  })

  it('is made for one after the other: what one has freed is not free for the next', async () => {
    const desk = await deskOf(HUNDRED_GIB, { ...HUGE_DISK, usedBytes: LIMIT_BYTES })
    const rooms = await Promise.all([1, 2, 3].map((size) => desk.budget.reserve(size * GIB)))
    expect(rooms.map((room) => room?.bytes)).toEqual([GIB, 2 * GIB, 3 * GIB])
    expect(desk.asked).toEqual([GIB, 2 * GIB, 3 * GIB])
    expect(desk.budget.usedBytes + desk.budget.reservedBytes).toBe(LIMIT_BYTES)
  })

  it('that others have left meanwhile is enough', async () => {
    const desk = await deskOf({ minFree: bytes(GIB) }, { freeBytes: GIB, usedBytes: 10 * GIB })
    desk.freeBytes = 9 * GIB
    expect(await desk.budget.reserve(5 * GIB)).toBeDefined()
    expect(desk.asked).toEqual([])
  })

  it('can be added to', async () => {
    const desk = await deskOf(HUNDRED_GIB, { ...HUGE_DISK, usedBytes: LIMIT_BYTES - 2 * GIB })
    const room = await desk.budget.reserve(GIB)
    expect(await room?.grow(3 * GIB)).toBe(true)
    expect(room?.bytes).toBe(4 * GIB)
    expect(desk.budget.reservedBytes).toBe(4 * GIB)
    desk.oldBytes = 0
    expect(await room?.grow(1)).toBe(false)
    expect(room?.bytes).toBe(4 * GIB)
    room?.release()
    expect(desk.budget.reservedBytes).toBe(0)
  })

  it('is not waited for by who has left', async () => {
    const desk = await deskOf(HUNDRED_GIB, { ...HUGE_DISK, usedBytes: LIMIT_BYTES })
    const goOn = desk.pauseRemoval()
    const first = desk.budget.reserve(GIB)
    const left = new AbortController()
    const second = desk.budget.reserve(GIB, { signal: left.signal })
    left.abort(new Error('stopping'))
    goOn()
    await expect(second).rejects.toThrow('stopping')
    expect(await first).toBeDefined()
    expect(desk.budget.reservedBytes).toBe(GIB)
  })
})

describe('what there is no room for', () => {
  it('is refused at once when it is larger than the limit, and nothing goes for it', async () => {
    const desk = await deskOf(HUNDRED_GIB, { ...HUGE_DISK, usedBytes: 50 * GIB })
    expect(await desk.budget.reserve(101 * GIB)).toBeUndefined()
    expect(desk.asked).toEqual([])
    expect(desk.messages).toEqual([
      'served but not kept: 103424 MiB are more than the 102384 MiB that the cache may take: ' +
        'raise storage.maxsize, or make room on the disk',
    ])
  })

  it('is refused when all is pinned or in use, and the log says what to do, once', async () => {
    const desk = await deskOf(HUNDRED_GIB, { ...HUGE_DISK, usedBytes: LIMIT_BYTES, oldBytes: 0 })
    for (const size of [GIB, 2 * GIB]) expect(await desk.budget.reserve(size)).toBeUndefined()
    expect(desk.messages).toEqual([
      'served but not kept: no room for 1024 MiB within 102384 MiB: all that is older is pinned or in use, ' +
        'or too little; raise storage.maxsize, make room on the disk, or pin less',
    ])
    desk.oldBytes = 10 * GIB
    await desk.clock.advance(10_000)
    expect(await desk.budget.reserve(GIB)).toBeDefined()
    desk.oldBytes = 0
    expect(await desk.budget.reserve(GIB)).toBeUndefined()
    expect(desk.messages).toHaveLength(2)
  })

  it('is not searched for again for a while, unless it is less', async () => {
    const desk = await deskOf(HUNDRED_GIB, { ...HUGE_DISK, usedBytes: LIMIT_BYTES, oldBytes: GIB })
    expect(await desk.budget.reserve(3 * GIB)).toBeUndefined()
    expect(await desk.budget.reserve(3 * GIB)).toBeUndefined()
    expect(await desk.budget.reserve(4 * GIB)).toBeUndefined()
    expect(desk.asked).toEqual([3 * GIB])
    // The same room is missing for less, when there is less of it.
    desk.usedBytes -= GIB
    expect(await desk.budget.reserve(4 * GIB)).toBeUndefined()
    expect(desk.asked).toEqual([3 * GIB])
    expect(await desk.budget.reserve(2 * GIB)).toBeDefined()
    expect(desk.asked).toEqual([3 * GIB, GIB])
  })

  it('is searched for the less often the longer a search takes', async () => {
    const desk = await deskOf(HUNDRED_GIB, { ...HUGE_DISK, usedBytes: LIMIT_BYTES, oldBytes: 0 })
    const goOn = desk.pauseRemoval()
    const refused = desk.budget.reserve(GIB)
    await desk.clock.advance(5_000)
    goOn()
    expect(await refused).toBeUndefined()
    await desk.clock.advance(99_999)
    await desk.budget.reserve(GIB)
    expect(desk.asked).toHaveLength(1)
    await desk.clock.advance(1)
    await desk.budget.reserve(GIB)
    expect(desk.asked).toHaveLength(2)
  })

  it('costs no more than that when making room fails', async () => {
    const desk = await deskOf(HUNDRED_GIB, { ...HUGE_DISK, usedBytes: LIMIT_BYTES })
    desk.pause = Promise.reject(new Error('the disk is broken'))
    desk.pause.catch(() => undefined)
    expect(await desk.budget.reserve(GIB)).toBeUndefined()
    expect(desk.messages[0]).toBe('could not make room')
    desk.pause = undefined
    expect(await desk.budget.reserve(GIB)).toBeDefined()
  })
})

describe('a volume that is not counted yet', () => {
  it('gets nothing new for which a size could be broken', async () => {
    const desk = await deskOf(HUNDRED_GIB, { ...HUGE_DISK, isCounted: false })
    expect(desk.budget.tryReserve(1)).toBeUndefined()
    const refused = desk.budget.reserve(1)
    expect(await isStillWaiting(refused)).toBe(true)
    await desk.clock.advance(2_000)
    expect(await refused).toBeUndefined()
    expect(desk.messages).toEqual([
      'served but not kept: no room for 1 MiB before the volume has been looked through',
    ])
    await desk.budget.trim()
    expect(desk.asked).toEqual([])
  })

  it('is waited for, a moment', async () => {
    const desk = await deskOf(HUNDRED_GIB, { ...HUGE_DISK, isCounted: false })
    const rooms = [1, 2, 3].map(() => desk.budget.reserve(1))
    desk.count()
    for (const room of rooms) expect(await room).toBeDefined()
    expect(desk.clock.pendingTimers).toBe(0)
  })

  it('is not waited for by who has left', async () => {
    const desk = await deskOf(HUNDRED_GIB, { ...HUGE_DISK, isCounted: false })
    const left = new AbortController()
    const refused = desk.budget.reserve(1, { signal: left.signal })
    left.abort(new Error('stopping'))
    await expect(refused).rejects.toThrow('stopping')
    expect(desk.clock.pendingTimers).toBe(0)
  })

  it('is taken as it is where only the disk is the limit', async () => {
    const desk = await deskOf({ minFree: bytes(GIB) }, { isCounted: false })
    expect(desk.budget.tryReserve(1)).toBeDefined()
  })
})

describe('trimming', () => {
  it('keeps a little room below the limit, so that most downloads need not wait', async () => {
    const desk = await deskOf(HUNDRED_GIB, { ...HUGE_DISK, usedBytes: LIMIT_BYTES })
    await desk.budget.trim()
    expect(desk.asked).toEqual([GIB])
    await desk.budget.trim()
    expect(desk.asked).toEqual([GIB])
  })

  it('takes a small part of a small limit', async () => {
    const desk = await deskOf({ maxSize: bytes(100 * MIB) }, { ...HUGE_DISK, usedBytes: 98 * MIB })
    await desk.budget.trim()
    expect(desk.asked).toEqual([Math.floor(98 * MIB * 0.02)])
  })

  it('does nothing where an operator has set no limit', async () => {
    const desk = await deskOf({}, { usedBytes: 100 * GIB, freeBytes: 0 })
    await desk.budget.trim()
    expect(desk.asked).toEqual([])
  })

  it('does not search each time for what is not there', async () => {
    const desk = await deskOf(HUNDRED_GIB, { ...HUGE_DISK, usedBytes: LIMIT_BYTES, oldBytes: 0 })
    await desk.budget.trim()
    await desk.budget.trim()
    expect(desk.asked).toHaveLength(1)
    await desk.clock.advance(10_000)
    await desk.budget.trim()
    expect(desk.asked).toHaveLength(2)
  })
})
