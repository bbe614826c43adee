import { mkdir } from 'node:fs/promises'
import * as fc from 'fast-check'
import { describe, expect, it } from 'vitest'

import { digestOf } from '../../src/oci/digest.ts'
import type { ByteSource } from '../../src/storage/byte-source.ts'
import { StoragePaths } from '../../src/storage/paths.ts'
import { LagAllowance } from '../../src/storage/spool/lag-allowance.ts'
import { Spool } from '../../src/storage/spool/spool.ts'
import { FakeClock } from '../support/fake-clock.ts'
import { bytesOf } from '../support/images.ts'
import { SENDER } from '../support/spool-rig.ts'
import { makeDigester } from '../support/storage-thread.ts'
import { makeTempDirectory } from '../support/temp-directory.ts'
import { nextTurn, waitFor, within } from '../support/wait-for.ts'

const SIZE_MAX_BYTES = 3 * 1024 * 1024
const SOURCE = bytesOf(SIZE_MAX_BYTES, 'property')

type Step =
  | { readonly kind: 'append'; readonly part: number }
  | { readonly kind: 'join'; readonly part: number; readonly scratchBytes: number }
  | { readonly kind: 'read' | 'leave'; readonly which: number }
  | { readonly kind: 'tick'; readonly ms: number }
  | { readonly kind: 'turn' }

type Ending = 'finish' | 'finish with wrong bytes' | 'fail'

const fraction = fc.double({ min: 0, max: 1, noNaN: true })
const which = fc.nat({ max: 7 })
const step: fc.Arbitrary<Step> = fc.oneof(
  { weight: 6, arbitrary: fc.record({ kind: fc.constant('append' as const), part: fraction }) },
  {
    weight: 3,
    arbitrary: fc.record({
      kind: fc.constant('join' as const),
      part: fraction,
      scratchBytes: fc.oneof(fc.integer({ min: 1, max: 100 }), fc.constant(256 * 1024)),
    }),
  },
  { weight: 8, arbitrary: fc.record({ kind: fc.constant('read' as const), which }) },
  { weight: 1, arbitrary: fc.record({ kind: fc.constant('leave' as const), which }) },
  {
    weight: 2,
    arbitrary: fc.record({ kind: fc.constant('tick' as const), ms: fc.nat({ max: 20 }) }),
  },
  { weight: 3, arbitrary: fc.record({ kind: fc.constant('turn' as const) }) },
)

const scenario = fc.record({
  // Sizes around what fits memory and what makes a block, and others.
  sizeBytes: fc.oneof(
    fc.constantFrom(1, 2, 128 * 1024, 128 * 1024 + 1, 512 * 1024, 512 * 1024 + 1),
    fc.integer({ min: 1, max: SIZE_MAX_BYTES }),
  ),
  isAnnounced: fc.boolean(),
  isKept: fc.boolean(),
  steps: fc.array(step, { maxLength: 60 }),
  ending: fc.constantFrom<Ending>('finish', 'finish', 'finish with wrong bytes', 'fail'),
})

type Scenario = typeof scenario extends fc.Arbitrary<infer T> ? T : never

/** A client: reads on from its offset, one read at a time, and checks every byte against the source. */
class Client {
  readonly #source: ByteSource
  #scratch: Buffer
  readonly #expected: Buffer
  #position: number
  #reading: Promise<void> | undefined
  #error: unknown
  #hasLeft = false

  constructor(source: ByteSource, expected: Buffer, position: number, scratchBytes: number) {
    this.#source = source
    this.#expected = expected
    this.#position = position
    this.#scratch = Buffer.alloc(scratchBytes)
  }

  get hasLeft(): boolean {
    return this.#hasLeft
  }

  get isThrough(): boolean {
    return this.#position === this.#expected.length
  }

  get error(): unknown {
    return this.#error
  }

  /** Starts a read, if none is under way and there is something left to want. */
  read(): void {
    if (this.#reading || this.#hasLeft || this.#error !== undefined || this.isThrough) return
    this.#reading = this.#readOnce()
      .catch((error: unknown) => {
        this.#error = error
      })
      .finally(() => {
        this.#reading = undefined
      })
  }

  leave(): void {
    this.#hasLeft = true
    this.#source.close()
  }

  /** Reads to the end, or until that is known to be impossible. */
  async readOut(): Promise<void> {
    // Megabytes a byte at a time would take longer than they tell.
    this.#scratch = Buffer.alloc(100_000)
    while (!this.isThrough && this.#error === undefined && !this.#hasLeft) {
      this.read()
      await within(`byte ${this.#position}`, this.#reading ?? Promise.resolve())
    }
    await this.#reading
    this.#source.close()
  }

  async #readOnce(): Promise<void> {
    const at = this.#position
    const scratch = this.#scratch
    const bytes = await this.#source.read(at, scratch)
    expect(bytes.length).toBeGreaterThan(0)
    expect(bytes.length).toBeLessThanOrEqual(scratch.length)
    expect(Buffer.compare(bytes, this.#expected.subarray(at, at + bytes.length))).toBe(0)
    this.#position = at + bytes.length
  }
}

describe('a spool', () => {
  it('gives every reader the bytes of the source, and nobody the last one before it is verified', async () => {
    const paths = new StoragePaths(await makeTempDirectory())
    await mkdir(paths.spool, { recursive: true })
    const digester = makeDigester()
    await fc.assert(
      fc.asyncProperty(scenario, async (plan) => {
        const clock = new FakeClock()
        const failures: Error[] = []
        const onStorageFailure = (error: Error): void => void failures.push(error)
        const bytes = SOURCE.subarray(0, plan.sizeBytes)
        const isWrong = plan.ending === 'finish with wrong bytes'
        const digest = isWrong ? digestOf(Buffer.concat([bytes, bytes])) : digestOf(bytes)
        const spool = await Spool.open(
          { clock, digester, lag: new LagAllowance(), onStorageFailure },
          {
            digest,
            sizeBytes: plan.isAnnounced ? plan.sizeBytes : undefined,
            file: plan.isKept ? paths.spoolFile(digest, SENDER) : undefined,
            resumedBytes: 0,
          },
        )
        const clients: Client[] = []
        await play(plan, spool, { bytes, clients, clock })
        expect(clients.filter((client) => client.isThrough)).toEqual([])
        await end(plan, spool, { bytes, clock, clients })
        for (const client of clients) {
          if (client.hasLeft) continue
          if (plan.ending === 'finish') expect(client.error).toBeUndefined()
          expect(client.isThrough).toBe(plan.ending === 'finish')
        }
        await waitFor('the spool to close', () => !spool.isJoinable)
        expect(clock.pendingTimers).toBe(0)
        expect(failures).toEqual([])
      }),
      { numRuns: 300 },
    )
  })
})

interface Stage {
  readonly bytes: Buffer
  readonly clients: Client[]
  readonly clock: FakeClock
}

/** Plays the steps. Everything but the ending is over, and nothing has been verified, when it returns. */
async function play(plan: Scenario, spool: Spool, stage: Stage): Promise<void> {
  const { bytes, clients, clock } = stage
  for (const step of plan.steps) {
    const client = 'which' in step ? clients[step.which % Math.max(1, clients.length)] : undefined
    switch (step.kind) {
      case 'append': {
        const from = spool.receivedBytes
        const count = Math.ceil((bytes.length - from) * step.part)
        if (count > 0) await spool.append(bytes.subarray(from, from + count))
        break
      }
      case 'join': {
        const source = spool.reader()
        // A download that is not kept can be joined as long as memory has its first bytes.
        if (!source) expect(plan.isKept).toBe(false)
        const from = Math.min(Math.floor(bytes.length * step.part), bytes.length - 1)
        if (source) clients.push(new Client(source, bytes, from, step.scratchBytes))
        break
      }
      case 'read':
        client?.read()
        break
      case 'leave':
        client?.leave()
        break
      case 'tick':
        await clock.advance(step.ms)
        break
      case 'turn':
        await nextTurn()
        break
    }
  }
  for (let turn = 0; turn < 5; turn++) await nextTurn()
}

async function end(plan: Scenario, spool: Spool, { bytes, clients }: Stage): Promise<void> {
  if (plan.ending === 'fail') spool.fail(new Error('the upstream went away'))
  else {
    const rest = bytes.subarray(spool.receivedBytes)
    if (rest.length > 0) await spool.append(rest)
    const finished = spool.finish()
    if (plan.ending === 'finish') await finished
    else await expect(finished).rejects.toThrow('hash to')
  }
  // Some read on only after the writer has gone.
  const released = spool.release()
  await Promise.all(clients.map((client) => client.readOut()))
  await released
}
