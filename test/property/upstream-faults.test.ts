// Whatever an upstream does wrong, in whatever combination: nobody is given a wrong answer that looks complete, and
// once it is over the next clients get everything. Over real sockets, with the service as a whole.

import { readFile } from 'node:fs/promises'
import { join } from 'node:path'
import * as fc from 'fast-check'
import { expect, it } from 'vitest'
import type { Fault } from '../support/fake-upstream-faults.ts'
import type { RawResponse } from '../support/http-client.ts'
import { blobOf, buildImage, type TestBlob } from '../support/images.ts'
import { startLayover, type Layover } from '../support/layover.ts'
import { waitFor } from '../support/wait-for.ts'

/** A few seconds; the seed of a failing run is in its report. */
const RUNS = 60
/** Something stands still if it takes longer. */
const LIMIT_MS = 100_000

const NAME = 'library/alpine'
const SIZE = 200_000

const position = fc.constantFrom(0, 1, 100, 65_536, 65_537, 150_000, SIZE - 1)

const field: fc.Arbitrary<Fault> = fc.oneof(
  fc.record({ drip: fc.constantFrom({ bytes: 20_000, intervalMs: 1 }) }),
  fc.record({ cutAtByte: position, cutBy: fc.constantFrom('fin', 'rst') }),
  fc.record({ truncateTo: position }),
  fc.record({ appendBytes: fc.constantFrom(1, 100, 70_000) }),
  fc.record({ flipByteAt: position }),
  fc.record({ body: fc.constantFrom('', 'x', 'EVIL') }),
  fc.record({ contentEncoding: fc.constantFrom('gzip', 'deflate', 'br') }),
  fc.record({ framing: fc.constantFrom('chunked', 'close') }),
  fc.record({ contentLength: fc.constantFrom(0, 1, 65_536, SIZE - 1, SIZE + 1, 2 * SIZE) }),
  fc.record({ range: fc.constantFrom('ignored', 'refused', 'shifted') }),
  fc.record({ status: fc.constantFrom(200, 204, 206, 304, 404, 416, 500, 503) }),
)

/** A page would make the report of a failing run unreadable. */
const BODY_TIMES = SIZE / 4 - 1

const part = fc.record({ first: fc.constantFrom(0, 1000, 100_000), isOpen: fc.boolean() })
type Part = { readonly first: number; readonly isOpen: boolean }
const PART_BYTES = 20_000

const scenario = fc.record({
  sizeBytes: fc.constantFrom(0, 1, 100, 65_537, SIZE, SIZE, SIZE),
  fields: fc.array(field, { minLength: 1, maxLength: 3 }),
  times: fc.constantFrom(1, 2, Infinity),
  /** Whether a manifest has told how long the blob is. */
  isNamed: fc.boolean(),
  clients: fc.array(fc.option(part, { nil: undefined }), { minLength: 1, maxLength: 4 }),
  isRangeFirst: fc.boolean(),
})

function isWrong({ appendBytes, body, flipByteAt }: Fault): boolean {
  return appendBytes !== undefined || body !== undefined || flipByteAt !== undefined
}

/** Wrong bytes, or too many, before a break: nothing tells those from right ones before the rest is there. */
function mayLeaveWrongPart(fault: Fault): boolean {
  return isWrong(fault) && (fault.cutAtByte !== undefined || fault.contentLength !== undefined)
}

function rangeOf({ first, isOpen }: Part): string {
  return `bytes=${first}-${isOpen ? '' : first + PART_BYTES - 1}`
}

function sliceOf({ bytes }: TestBlob, asked: Part | undefined): Buffer {
  if (!asked) return bytes
  return bytes.subarray(asked.first, asked.isOpen ? undefined : asked.first + PART_BYTES)
}

function get(layover: Layover, blob: TestBlob, asked: Part | undefined): Promise<RawResponse> {
  const headers = asked && { Range: rangeOf(asked) }
  return layover.get(`/v2/${NAME}/blobs/${blob.digest}`, headers ? { headers } : {})
}

function isRight({ body, ending, status }: RawResponse, blob: TestBlob, asked?: Part): boolean {
  // There is nothing beyond the end.
  if (asked && asked.first >= blob.bytes.length) return status === 416
  if (status !== (asked ? 206 : 200) || ending !== 'complete') return false
  return body.equals(sliceOf(blob, asked))
}

/** While the fault lasts: right, or an end or a status that a client notices. */
function expectHonest(
  answer: RawResponse,
  { asked, blob, fault }: { asked: Part | undefined; blob: TestBlob; fault: Fault },
): void {
  expect([200, 206, 404, 416, 503]).toContain(answer.status)
  expect(['complete', 'fin']).toContain(answer.ending)
  // A part of a blob that is on its way cannot be verified.
  const isAsSent = isWrong(fault) && asked?.isOpen === false
  const isWhole = (answer.status ?? 0) < 300 && answer.ending === 'complete'
  if (isWhole && !isAsSent) expect(isRight(answer, blob, asked)).toBe(true)
}

async function wrongParts(layover: Layover, blob: TestBlob): Promise<string[]> {
  const wrong: string[] = []
  for (const name of await layover.files('layover/spool')) {
    const bytes = await readFile(join(layover.rootDirectory, 'layover/spool', name))
    if (!bytes.equals(blob.bytes.subarray(0, bytes.length))) wrong.push(name)
  }
  return wrong
}

async function quiet(layover: Layover): Promise<void> {
  const isQuiet = async (): Promise<boolean> =>
    (await layover.metric('layover_fills_running')) === 0
  await waitFor('the downloads to be over', isQuiet)
}

it('a blob is served right or not to its end, and right once the upstream is', async () => {
  const { layover, upstream } = await startLayover()
  let run = 0
  await fc.assert(
    fc.asyncProperty(scenario, async ({ clients, fields, isNamed, isRangeFirst, ...plan }) => {
      const image = buildImage({ layers: [plan.sizeBytes], seed: `faults ${++run}` })
      const blob = image.layers[0] ?? blobOf(plan.sizeBytes, run)
      upstream.addImage(NAME, `${run}`, image)
      if (isNamed) await layover.get(`/v2/${NAME}/manifests/${run}`)
      const told: Fault = Object.assign({}, ...fields)
      const { body } = told
      const fault = body === undefined ? told : { ...told, body: body.repeat(BODY_TIMES) }
      upstream.fault({ kind: 'blob' }, fault, { times: plan.times })
      const answers = clients.map(async (asked) => ({
        asked,
        answer: await get(layover, blob, asked),
      }))
      for (const { answer, asked } of await Promise.all(answers)) {
        expectHonest(answer, { asked, blob, fault })
      }
      await quiet(layover)
      upstream.clearFaults()

      const isWrongLeft = (await wrongParts(layover, blob)).length > 0
      if (isWrongLeft) expect(mayLeaveWrongPart(fault)).toBe(true)
      const range: Part = { first: 0, isOpen: false }
      const next = isRangeFirst ? [range, undefined] : [undefined, range]
      // Who comes first finds out, and is told by an early end.
      if (isWrongLeft) {
        const first = await get(layover, blob, next[0])
        if (first.ending !== 'fin') expect(isRight(first, blob, next[0])).toBe(true)
      }
      for (const asked of next) {
        expect(isRight(await get(layover, blob, asked), blob, asked)).toBe(true)
      }
      await layover.stored(blob.digest)
      expect(await layover.files('layover/spool')).toEqual([])
      expect(layover.log.filter(({ isBug }) => isBug === true)).toEqual([])
    }),
    { numRuns: RUNS, interruptAfterTimeLimit: LIMIT_MS, markInterruptAsFailure: true },
  )
}, 120_000)
