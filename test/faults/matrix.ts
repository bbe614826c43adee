// The matrix: every fault × what is asked for × what the cache knows × who asks. What makes no sense is left
// out, by a rule that says why; nothing is left out silently.

import {
  CLIENTS,
  RESOURCES,
  STATES,
  meaningOf,
  type ClientKind,
  type FaultRow,
  type Meaning,
  type Resource,
  type State,
} from './fault-row.ts'
import { ROWS_OF_ANSWERS } from './rows-of-answers.ts'
import { ROWS_OF_THE_WIRE } from './rows-of-the-wire.ts'

export interface Cell {
  readonly row: FaultRow
  readonly resource: Resource
  readonly state: State
  readonly client: ClientKind
}

export const ROWS: readonly FaultRow[] = [...ROWS_OF_THE_WIRE, ...ROWS_OF_ANSWERS]

interface Rule {
  readonly why: string
  readonly leavesOut: (cell: Cell) => boolean
}

const NAMED_BY_DIGEST: ReadonlySet<Resource> = new Set(['digest', 'blob'])
const ASKED_BY_HEAD: ReadonlySet<Resource> = new Set(['tag', 'digest', 'blob'])

const RULES: readonly Rule[] = [
  {
    why: 'the fault cannot be had there (no Link in a blob), or is no fault there (a space after JSON)',
    leavesOut: ({ resource, row }) => !row.at.includes(resource),
  },
  {
    why: 'only the download of a blob leaves a part',
    leavesOut: ({ resource, state }) => state === 'part' && resource !== 'blob',
  },
  {
    why: 'only a tag moves',
    leavesOut: ({ resource, state }) => state === 'moved' && resource !== 'tag',
  },
  {
    why: 'what is named by its digest never grows stale',
    leavesOut: ({ resource, state }) => state === 'stale' && NAMED_BY_DIGEST.has(resource),
  },
  {
    why: 'the fault strikes in other states alone (the range of a rest, a tag that moves)',
    leavesOut: ({ row, state }) => row.states !== undefined && !row.states.includes(state),
  },
  {
    why: 'what is refused was never cached',
    leavesOut: ({ row, state }) =>
      row.content !== undefined &&
      row.means.is !== 'harmless' &&
      (state === 'warm' || state === 'stale'),
  },
  {
    why: 'ranges and slow readers are for blobs: all else fits into a socket',
    leavesOut: ({ client, resource }) =>
      (client === 'range' || client === 'slow') && resource !== 'blob',
  },
  {
    why: 'lists and tokens are not asked for by HEAD',
    leavesOut: ({ client, resource }) => client === 'head' && !ASKED_BY_HEAD.has(resource),
  },
  {
    why: 'HEAD has no body that could go wrong',
    leavesOut: ({ client, row }) => client === 'head' && row.shows === 'body',
  },
  {
    why: 'an answer from memory is over before anybody can leave',
    leavesOut: ({ client, resource, state }) =>
      client === 'leaves' && state === 'warm' && resource !== 'blob',
  },
]

export interface Matrix {
  readonly cells: readonly Cell[]
  /** How many combinations each rule has left out. */
  readonly leftOut: ReadonlyMap<string, number>
}

export function matrix(): Matrix {
  const cells: Cell[] = []
  const leftOut = new Map<string, number>()
  for (const cell of combinations()) {
    const rule = RULES.find(({ leavesOut }) => leavesOut(cell))
    if (rule) leftOut.set(rule.why, (leftOut.get(rule.why) ?? 0) + 1)
    else cells.push(cell)
  }
  return { cells, leftOut }
}

function* combinations(): Iterable<Cell> {
  for (const row of ROWS) {
    for (const resource of RESOURCES) {
      for (const state of STATES) {
        for (const client of CLIENTS) yield { row, resource, state, client }
      }
    }
  }
}

/**
 * A few cells for every day. The rule: the n-th fault gives its n-th cell (counting round) of those in which the
 * upstream is asked, so that every fault strikes once; then the first cell of every pair (resource, state) and
 * (resource, client) that is missing.
 */
export function shortForm(cells: readonly Cell[]): Cell[] {
  const chosen = new Set<Cell>()
  ROWS.forEach((row, index) => {
    const own = cells.filter((cell) => cell.row === row && cell.state !== 'warm')
    const cell = own[index % own.length]
    if (cell) chosen.add(cell)
  })
  const seen = new Set([...chosen].flatMap(pairsOf))
  for (const cell of cells) {
    const pairs = pairsOf(cell)
    if (pairs.every((pair) => seen.has(pair))) continue
    chosen.add(cell)
    for (const pair of pairs) seen.add(pair)
  }
  return cells.filter((cell) => chosen.has(cell))
}

function pairsOf({ client, resource, state }: Cell): string[] {
  return [`${resource} ${state}`, `${resource} ${client}`]
}

/** What the fault means for this very cell. */
export function meaningIn({ resource, row, state }: Cell): Meaning {
  const meaning = meaningOf(row, resource)
  return (state === 'part' && row.meansForRest) || meaning
}

export function labelOf({ client, resource, row, state }: Cell): string {
  return `${row.name} × ${resource} × ${state} × ${client}`
}
