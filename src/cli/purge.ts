// `layover purge`: removes what is named from the cache that runs, and tells line by line what went.

import type { IncomingMessage } from 'node:http'
import type { PurgeItem, PurgeSummary } from '../cache/upkeep/purge-run.ts'
import { EXIT_FAILURE, EXIT_IN_USE, EXIT_OK, EXIT_USAGE, type CliDeps } from './deps.ts'
import { askServer, linesIn, type ServerOptions } from './server.ts'
import { formatBytes } from './table.ts'

export interface PurgeOptions extends ServerOptions {
  readonly upstream?: string
  /** For example `7d`. */
  readonly unusedFor?: string
  readonly dryRun?: true
  readonly force?: true
  readonly json?: true
}

/** Streamed, so the columns are as wide as what they may have to hold. */
const SIZE_WIDTH = 8
const OUTCOME_WIDTH = 9

type Line = PurgeItem | { readonly summary: PurgeSummary } | { readonly error: string }

/** @param image a name, with or without tag or digest, or a pattern */
export async function purge(
  image: string | undefined,
  options: PurgeOptions,
  deps: CliDeps,
): Promise<number> {
  const { dryRun = false, force = false, unusedFor, upstream } = options
  if (image === undefined && upstream === undefined && unusedFor === undefined) {
    deps.complain('nothing selected: name an image or a repository, --upstream or --unused-for\n')
    return EXIT_USAGE
  }
  const body = { image, upstream, unusedFor, dryRun, force }
  const question = { method: 'POST', path: '/admin/purge', body } as const
  return askServer(options, question, deps, (answer) => show(answer, options, deps))
}

async function show(
  answer: IncomingMessage,
  { json }: PurgeOptions,
  deps: CliDeps,
): Promise<number> {
  for await (const line of linesIn(answer)) {
    if (json) deps.print(`${JSON.stringify(line)}\n`)
    const told = line as Line
    if ('error' in told) {
      deps.complain(`ended early: ${told.error}\n`)
      return EXIT_FAILURE
    }
    if ('summary' in told) {
      if (!json) deps.print(summaryText(told.summary))
      return told.summary.inUse > 0 ? EXIT_IN_USE : EXIT_OK
    }
    if (!json) deps.print(itemText(told))
  }
  deps.complain('the server broke off before the end\n')
  return EXIT_FAILURE
}

function itemText({ digest, freedBytes, kind, outcome, repository, tags }: PurgeItem): string {
  const size = freedBytes > 0 ? formatBytes(freedBytes) : '-'
  const what = [repository ?? '(no repository)', digest].filter((part) => part !== undefined)
  const tagged = tags.length > 0 ? ` (${tags.join(', ')})` : ''
  const columns = [
    size.padStart(SIZE_WIDTH),
    outcome.padEnd(OUTCOME_WIDTH),
    kind.padEnd(SIZE_WIDTH),
  ]
  return `${columns.join('  ')}  ${what.join('@')}${tagged}\n`
}

function summaryText(summary: PurgeSummary): string {
  const { freedBytes, inUse, isDryRun, kept, pinned, removed, unlinked, untagged } = summary
  if (removed + unlinked + untagged + kept + inUse + pinned === 0) return 'nothing matches\n'
  const verb = isDryRun ? 'would free' : 'freed'
  const parts = [`${verb} ${formatBytes(freedBytes)} in ${removed} blobs`]
  if (unlinked > 0)
    parts.push(`${unlinked} blobs that other repositories hold too are taken out of these`)
  if (untagged > 0) parts.push(`${untagged} tags of what stays`)
  if (kept > 0) parts.push(`${kept} kept: other stored images name them`)
  if (inUse > 0) parts.push(`${inUse} in use, kept: try again later`)
  if (pinned > 0) parts.push(`${pinned} pinned, kept: name one, or use --force`)
  return `${parts.join('; ')}\n`
}
