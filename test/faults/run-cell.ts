// One cell: the state is made, the fault strikes, the clients ask, everything is looked at, the fault is over,
// and the next client must be served.

import { answerDeviations, recoveryDeviations, summaryOf } from './answer-checks.ts'
import type { RawResponse } from '../support/http-client.ts'
import { Asking, BEGINNING, MIDDLE, rangeOf, type Asked } from './asking.ts'
import { expectedOf, lastingMs, type Part } from './expectation.ts'
import { labelOf, meaningIn, type Cell } from './matrix.ts'
import { Scene } from './scene.ts'
import type { Station } from './station.ts'
import {
  before,
  counterDeviations,
  diskDeviations,
  logDeviations,
  upstreamDeviations,
} from './trace-checks.ts'

export interface CellResult {
  readonly cell: Cell
  /** What clients saw, each kind of answer once. */
  readonly saw: readonly string[]
  /** Empty: all is as it should be. */
  readonly deviations: readonly string[]
}

export async function runCell(cell: Cell, station: Station, id: number): Promise<CellResult> {
  const scene = new Scene(cell, station, id)
  let saw: string[] = []
  try {
    await scene.prepare()
    await station.idle()
    station.upstream.reset()
    const start = await before(station)
    await scene.strike()
    const isHeld = cell.row.breaksLate && cell.resource === 'blob' && cell.state !== 'warm'
    let asking: Promise<Asked> | undefined
    const held = isHeld
      ? station.breakLate(scene, start.counters, () => (isServedFirst(cell) ? asking : undefined))
      : undefined
    asking = new Asking(cell, scene, station).ask()
    const [asked] = await station.while(Promise.all([asking, held]))
    await station.idle()
    saw = asked.seen.map(summaryOf)
    const deviations = [
      ...answerDeviations(cell, scene, asked),
      ...(await logDeviations(cell, asked, { before: start, station })),
      ...(await counterDeviations(cell, asked, { before: start, station })),
      ...upstreamDeviations(cell, asked, { scene, station }),
      ...(await diskDeviations(cell, scene, station)),
      ...(await recover(cell, scene, station)),
    ]
    return { cell, saw: [...new Set(saw)], deviations: labelled(cell, deviations) }
  } catch (error) {
    const reason = error instanceof Error ? (error.stack ?? error.message) : String(error)
    return { cell, saw: [...new Set(saw)], deviations: labelled(cell, [reason]) }
  } finally {
    await scene.mend()
    station.upstream.clearGates()
  }
}

/** Whether what arrives before the break is all that the client asked for: it need not meet the break. */
function isServedFirst(cell: Cell): boolean {
  if (cell.client !== 'range' || meaningIn(cell).is === 'harmless') return false
  return ['content', 'as-sent'].includes(expectedOf(cell, MIDDLE).outcome)
}

async function recover(cell: Cell, scene: Scene, station: Station): Promise<string[]> {
  await scene.mend()
  station.upstream.clearGates()
  const waitMs = lastingMs(cell)
  if (waitMs > 0) await station.clock.leap(waitMs + 1)
  const { path, right } = scene.afterwards
  const deviations: string[] = []
  for (const part of partsAfterwards(cell)) {
    const ask = (): Promise<RawResponse> => station.layover.get(path, rangeOf(part))
    let response = await ask()
    const mayBeShort = cell.row.leavesWrong && response.ending === 'fin'
    if (mayBeShort) response = await ask()
    deviations.push(...recoveryDeviations(response, { part, right, scene }))
    await station.idle()
  }
  const parts = await scene.parts()
  if (parts.length > 0) deviations.push(`after the next request the spool has ${parts.join(', ')}`)
  return deviations
}

/** Who asks first finds what the fault has left: the whole, or (like the one before) a range. */
function partsAfterwards({ client, resource }: Cell): (Part | undefined)[] {
  if (resource !== 'blob') return [undefined]
  return client === 'range' ? [BEGINNING, undefined] : [undefined, BEGINNING]
}

function labelled(cell: Cell, deviations: readonly string[]): string[] {
  return deviations.map((deviation) => `${labelOf(cell)}: ${deviation}`)
}
