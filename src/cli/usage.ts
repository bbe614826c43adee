// `layover du`: what takes the space.

import type { AgeRow, UsageReport, UsageRow } from '../cache/upkeep/usage-report.ts'
import { EXIT_OK, type CliDeps } from './deps.ts'
import { askServer, textIn, type ServerOptions } from './server.ts'
import { formatBytes, formatTable } from './table.ts'

export interface UsageOptions extends ServerOptions {
  /** This table only, with all of its rows. */
  readonly by?: 'upstream' | 'repository' | 'age'
  readonly json?: true
}

/** Rows of the overview; `--by repository` has all of them. */
const SHOWN_MAX = 20

export async function showUsage(options: UsageOptions, deps: CliDeps): Promise<number> {
  const question = { method: 'GET', path: '/admin/usage' } as const
  return askServer(options, question, deps, async (answer) => {
    const text = await textIn(answer)
    if (options.json) deps.print(`${text}\n`)
    else deps.print(render(JSON.parse(text) as UsageReport, options))
    return EXIT_OK
  })
}

function render(report: UsageReport, { by }: UsageOptions): string {
  if (by === 'upstream') return usageTable('UPSTREAM', report.upstreams)
  if (by === 'repository') return usageTable('REPOSITORY', report.repositories)
  if (by === 'age') return ageTable(report.ages)
  const shown = report.repositories.slice(0, SHOWN_MAX)
  const rest = report.repositories.length - shown.length
  const more = rest > 0 ? `and ${rest} more: layover du --by repository\n` : ''
  return [
    totals(report),
    usageTable('UPSTREAM', report.upstreams),
    usageTable('REPOSITORY', shown) + more,
    ageTable(report.ages),
  ].join('\n')
}

function totals({ blobs, contentBytes, ...report }: UsageReport): string {
  const { limitBytes, reservedBytes, unlinkedBytes, usedBytes } = report
  const besideBytes = Math.max(0, usedBytes - contentBytes)
  const limit = limitBytes === undefined ? '' : ` of ${formatBytes(limitBytes)} that it may take`
  return formatTable([
    [formatBytes(usedBytes), `on disk${limit}`],
    [formatBytes(contentBytes), `in ${blobs} blobs, each counted once`],
    [formatBytes(unlinkedBytes), 'of them in blobs that no repository holds'],
    [
      formatBytes(besideBytes),
      'at most in tags, links, directories, the index and unfinished downloads',
    ],
    [formatBytes(reservedBytes), 'reserved for downloads that run'],
  ])
}

function usageTable(title: string, rows: readonly UsageRow[]): string {
  return formatTable([
    ['TOTAL', 'ONLY HERE', 'BLOBS', title],
    ...rows.map(({ blobs, name, ownBytes, totalBytes }) => {
      return [formatBytes(totalBytes), formatBytes(ownBytes), String(blobs), name]
    }),
  ])
}

function ageTable(rows: readonly AgeRow[]): string {
  return formatTable([
    ['TOTAL', 'BLOBS', 'LAST USED'],
    ...rows.map(({ blobs, name, totalBytes }) => {
      return [formatBytes(totalBytes), String(blobs), `${name} ago`]
    }),
  ])
}
