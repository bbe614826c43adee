// The matrix for people: fault → what clients saw → verdict. A reporter of vitest, since the cells run in
// several processes.

import type { Reporter, TestCase, TestModule } from 'vitest/node'
import { matrix } from './matrix.ts'

export interface MatrixLine {
  readonly fault: string
  readonly about: string
  readonly resource: string
  readonly cells: readonly {
    readonly state: string
    readonly client: string
    readonly saw: readonly string[]
    /** What is not as it should be, a sentence each. */
    readonly deviations: readonly string[]
  }[]
}

/** Vitest takes the default export. */
export default class MatrixReporter implements Reporter {
  onTestRunEnd(modules: readonly TestModule[]): void {
    const lines = modules.flatMap((module) =>
      [...module.children.allTests()].flatMap((test: TestCase) => test.meta().matrixLine ?? []),
    )
    process.stdout.write(`${formatMatrix(lines)}\n`)
  }
}

export function formatMatrix(lines: readonly MatrixLine[]): string {
  const rows = merged(lines)
    .sort((a, b) => a.resource.localeCompare(b.resource) || a.fault.localeCompare(b.fault))
    .map(({ cells, fault, resource }) => [
      resource,
      fault,
      String(cells.length),
      sightings(cells),
      verdict(cells),
    ])
  const table = [['asked for', 'fault', 'cells', 'clients saw', 'verdict'], ...rows]
  const widths = [0, 1, 2, 3].map((column) =>
    Math.max(...table.map((row) => row[column]?.length ?? 0)),
  )
  const text = table.map((row) =>
    row
      .map((cell, column) => cell.padEnd(widths[column] ?? 0))
      .join('  ')
      .trimEnd(),
  )
  return ['', ...text, '', ...deviationsOf(lines), ...totals(lines)].join('\n')
}

/** A resource whose states are in several files has one line all the same. */
function merged(lines: readonly MatrixLine[]): MatrixLine[] {
  const byName = new Map<string, MatrixLine>()
  for (const line of lines) {
    const key = `${line.resource} ${line.fault}`
    const before = byName.get(key)
    byName.set(key, { ...line, cells: [...(before?.cells ?? []), ...line.cells] })
  }
  return [...byName.values()]
}

/** By state, each kind of answer once. Clients that left saw nothing. */
function sightings(cells: MatrixLine['cells']): string {
  const byState = new Map<string, Set<string>>()
  for (const { saw, state } of cells) {
    const seen = byState.get(state) ?? new Set()
    for (const one of saw) seen.add(one)
    byState.set(state, seen)
  }
  return [...byState]
    .filter(([, seen]) => seen.size > 0)
    .map(([state, seen]) => `${state}: ${[...seen].join(', ')}`)
    .join(' · ')
}

function verdict(cells: MatrixLine['cells']): string {
  const wrong = cells.filter(({ deviations }) => deviations.length > 0)
  if (wrong.length === 0) return 'ok'
  return `WRONG: ${wrong.map(({ client, state }) => `${state}/${client}`).join(' ')}`
}

function deviationsOf(lines: readonly MatrixLine[]): string[] {
  const all = lines.flatMap(({ cells }) => cells.flatMap(({ deviations }) => deviations))
  return all.length === 0 ? [] : ['Deviations:', ...all.map((one) => `  ${one}`), '']
}

function totals(lines: readonly MatrixLine[]): string[] {
  const cells = lines.flatMap((line) => line.cells)
  const wrong = cells.filter(({ deviations }) => deviations.length > 0).length
  const { cells: all, leftOut } = matrix()
  const faults = new Set(lines.map(({ fault }) => fault)).size
  return [
    `${cells.length} cells of ${all.length} were run, with ${faults} faults: ${wrong} deviate.`,
    'Combinations that were left out, and why:',
    ...[...leftOut].map(([why, count]) => `${String(count).padStart(6)}  ${why}`),
  ]
}
