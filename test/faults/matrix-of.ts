// Runs a share of the matrix as tests: one test for each fault and resource, with all its cells one after the
// other. What is not expected is a failure; what was seen goes to the reporter, which prints the table.

import { afterAll, describe, expect, inject, it } from 'vitest'
import { STATES, type Resource, type State, type StationKind } from './fault-row.ts'
import { ROWS, matrix, shortForm, type Cell } from './matrix.ts'
import { runCell, type CellResult } from './run-cell.ts'
import { Station } from './station.ts'
import type { MatrixLine } from './report.ts'

declare module 'vitest' {
  interface ProvidedContext {
    /** `short`: for every day; `whole`: every cell. */
    matrixForm: 'short' | 'whole'
  }
  interface TaskMeta {
    matrixLine?: MatrixLine
  }
}

/** Every cell has content of its own. */
let cellsRun = 0

export function describeMatrix(
  resources: readonly Resource[],
  states: readonly State[] = STATES,
): void {
  const { cells } = matrix()
  const all = inject('matrixForm') === 'whole' ? cells : shortForm(cells)
  const chosen = all.filter(({ state }) => states.includes(state))
  const stations = new Stations()
  afterAll(() => stations.stop())
  for (const resource of resources) {
    describe(`while a ${resource} is asked for`, () => {
      for (const row of ROWS) {
        const own = chosen.filter((cell) => cell.row === row && cell.resource === resource)
        if (own.length === 0) continue
        it(`${row.name} (${row.about}): ${own.length} cells`, async ({ task }) => {
          const results = await runCells(own, stations)
          task.meta.matrixLine = lineOf(results)
          const deviations = results.flatMap((result) => result.deviations)
          expect(deviations, deviations.join('\n')).toEqual([])
        })
      }
    })
  }
}

async function runCells(cells: readonly Cell[], stations: Stations): Promise<CellResult[]> {
  const results: CellResult[] = []
  for (const cell of cells) {
    const kind = cell.row.station ?? 'anonymous'
    const result = await runCell(cell, await stations.get(kind), cellsRun++)
    results.push(result)
    // What went wrong may go on: the next cell begins with a clean one.
    if (result.deviations.length > 0) await stations.discard(kind)
  }
  return results
}

function lineOf(results: readonly CellResult[]): MatrixLine {
  const [first] = results
  if (!first) throw new Error('a line of the matrix has at least one cell')
  const { resource, row } = first.cell
  return {
    fault: row.name,
    about: row.about,
    resource,
    cells: results.map(({ cell, deviations, saw }) => {
      return { state: cell.state, client: cell.client, saw, deviations }
    }),
  }
}

/** Those that are needed, each started once. */
class Stations {
  readonly #stations = new Map<StationKind, Station>()

  async get(kind: StationKind): Promise<Station> {
    const station = this.#stations.get(kind) ?? (await Station.start(kind))
    this.#stations.set(kind, station)
    return station
  }

  async discard(kind: StationKind): Promise<void> {
    const station = this.#stations.get(kind)
    this.#stations.delete(kind)
    // It is known to be amiss; what it left is told with the cell.
    await station?.stop().catch(() => undefined)
  }

  /** @throws when a station left something behind */
  async stop(): Promise<void> {
    for (const station of this.#stations.values()) await station.stop()
  }
}
