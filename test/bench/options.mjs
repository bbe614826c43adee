// Command line of the benchmark, and what `--quick` means.

import { parseArgs } from 'node:util'
import { FULL_SIZES, QUICK_SIZES } from './dataset.mjs'

const GIB = 1024 ** 3

const FULL = {
  sizes: FULL_SIZES,
  runs: 3,
  seconds: 2,
  connections: [1, 16, 64],
  largeConnections: [1, 4, 16],
  largeVolumeBytes: 16 * GIB,
  patienceMs: 60_000,
  limitMinutes: 15,
}

const QUICK = {
  sizes: QUICK_SIZES,
  runs: 1,
  seconds: 1,
  connections: [16],
  largeConnections: [16],
  largeVolumeBytes: 4 * GIB,
  patienceMs: 5_000,
  limitMinutes: 4,
}

const HELP = `usage: npm run bench -- [options]        or: node test/bench/run.mjs [options]

Measures Layover side by side with docker-registry (in proxy mode) and nginx (proxy_cache), on loopback
and in a temporary directory. Linux. Needs cc and wrk; what is missing is left out, and said.

  --quick             small data, one run, one number of connections: two minutes instead of fifteen
  --only=ID,...       these scenarios only
  --targets=NAME,...  these targets only: layover, docker-registry, nginx
  --runs=N            measurements of each kind, of which the median counts (3; quick: 1)
  --seconds=N         length of each measurement of a request rate (2; quick: 1)
  --limit=MINUTES     leaves out what has not begun by then (15; quick: 4)
  --out=FILE          all figures, as JSON
  --data=DIR          builds the data set there, or takes the one that is there, and leaves it
  --keep              leaves the temporary directory (caches, logs, configurations)
  --help

Scenarios:`

export class UsageError extends Error {}

/**
 * @returns settings: one of the two tables above, overridden, with `only`, `targets`, `out`, `data`,
 *   `keep`, `quick` and `help`
 * @throws {UsageError} an option that does not exist or has no sensible value
 */
export function parseOptions(args) {
  const { values } = parse(args)
  const settings = { ...(values.quick ? QUICK : FULL), quick: false, keep: false, ...values }
  settings.only = list(values.only)
  settings.targets = list(values.targets)
  settings.runs = positive('runs', values.runs) ?? settings.runs
  settings.seconds = positive('seconds', values.seconds) ?? settings.seconds
  settings.limitMinutes = positive('limit', values.limit) ?? settings.limitMinutes
  return settings
}

function parse(args) {
  const text = { type: 'string' }
  const flag = { type: 'boolean' }
  const options = { only: text, targets: text, runs: text, seconds: text, limit: text }
  try {
    return parseArgs({
      args,
      options: { ...options, out: text, data: text, quick: flag, keep: flag, help: flag },
    })
  } catch (error) {
    throw new UsageError(error.message)
  }
}

const list = (value) => value?.split(',').filter(Boolean)

function positive(name, value) {
  if (value === undefined) return undefined
  const number = Number(value)
  if (!Number.isInteger(number) || number < 1) {
    throw new UsageError(`--${name} must be a whole number from 1 on, not "${value}"`)
  }
  return number
}

export function helpText(scenarios) {
  return [HELP, ...scenarios.map(({ id, title }) => `  ${id.padEnd(9)} ${title}`), ''].join('\n')
}
