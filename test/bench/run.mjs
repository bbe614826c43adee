// Layover measured side by side with what it replaces. Every measurement is made of each target in turn,
// within seconds of one another, so that the ratios hold on a machine that is not quiet either.
// A goal that is missed is printed; only something broken (a wrong answer, a server that dies) is an error.

import { mkdir, mkdtemp, stat, writeFile } from 'node:fs/promises'
import { rmSync } from 'node:fs'
import os from 'node:os'
import path from 'node:path'
import { prepareDataset } from './dataset.mjs'
import { buildDownloader } from './drivers.mjs'
import { judge } from './goals.mjs'
import { measure, Patience } from './measure.mjs'
import { helpText, parseOptions, UsageError } from './options.mjs'
import { run, stopAll } from './processes.mjs'
import { describeResult, describeRun, describeVerdicts } from './report.mjs'
import { nameOf, scenarios } from './scenarios.mjs'
import { KINDS, Origin, Target } from './targets.mjs'

const print = (text) => process.stdout.write(`${text}\n`)
const progress = (text) => process.stderr.write(`${text}\n`)

function median(values) {
  const sorted = values.filter(Number.isFinite).sort((a, b) => a - b)
  if (sorted.length === 0) return undefined
  const middle = sorted.length >> 1
  return sorted.length % 2 ? sorted[middle] : (sorted[middle - 1] + sorted[middle]) / 2
}

function check(named, known, what) {
  const unknown = named?.filter((name) => !known.includes(name)) ?? []
  if (unknown.length === 0) return
  throw new UsageError(`no ${what} is called ${unknown.join(', ')}; there are ${known.join(', ')}`)
}

/** Which targets and tools are here; what is not goes into `leftOut`. */
async function takeStock(settings, directory, leftOut) {
  const kinds = []
  for (const kind of KINDS) {
    if (settings.targets && !settings.targets.includes(kind.name)) continue
    const version = await kind.version().catch(() => undefined)
    if (version === undefined) leftOut.push(`${kind.name}: ${kind.missing}`)
    else kinds.push({ ...kind, version })
  }
  const downloader = await buildDownloader(directory)
  const hasWrk = (await run('wrk', ['-v']).catch(() => undefined)) !== undefined
  if (!downloader) leftOut.push('everything but rates of GET: there is no C compiler (cc)')
  if (!hasWrk) {
    leftOut.push(
      `wrk is not installed: ${downloader ? 'the C driver measures' : 'no'} request rates`,
    )
  }
  return { kinds, tools: { downloader, wrk: hasWrk } }
}

function possible({ needs }, tools) {
  return needs.every((need) => tools.downloader || (need === 'wrk or cc' && tools.wrk))
}

/** One sample of one target; the upstream's counters go with it. */
async function sample(lab, scenario, variant, target) {
  await scenario.prepare(lab, target, variant)
  await lab.patience.quiet()
  await lab.origin.resetStats()
  const result = await measure(
    { pid: target.pid, others: [lab.origin.pid] },
    () => scenario.run(lab, target, variant),
    scenario.cold ? () => target.untilIdle() : undefined,
  )
  return { ...result, upstream: await lab.origin.stats() }
}

/** All samples of one variant, the targets taking turns, the order reversed each time. */
async function measureVariant(lab, scenario, variant) {
  const targets = scenario.direct ? [lab.origin, ...lab.targets] : lab.targets
  const samples = Object.fromEntries(targets.map(({ name }) => [name, []]))
  for (let turn = 0; turn < lab.settings.runs; turn++) {
    for (const target of turn % 2 ? targets.toReversed() : targets) {
      if (turn >= (scenario.runs?.[target.name] ?? lab.settings.runs)) continue
      const what = `${nameOf({ scenario, variant })}: ${target.name}, run ${turn + 1}`
      progress(what)
      try {
        const measured = await sample(lab, scenario, variant, target)
        // A server that refuses quickly must not look fast.
        if (measured.errors === 0) samples[target.name].push(measured)
        else lab.broken.push(`${what}: ${measured.errors} answers were wrong or missing`)
      } catch (error) {
        lab.broken.push(`${what}: ${error.message}`)
        await target.stop()
      }
    }
  }
  await lab.origin.throttle({})
  const metrics = Object.fromEntries(
    Object.entries(samples).map(([target, taken]) => [target, medians(scenario.columns, taken)]),
  )
  return { scenario, variant, samples, metrics }
}

function medians(columns, samples) {
  return Object.fromEntries(columns.map(({ metric, of }) => [metric, median(samples.map(of))]))
}

async function measureAll(lab, chosen, leftOut) {
  const results = []
  const deadline = performance.now() + lab.settings.limitMinutes * 60_000
  for (const scenario of chosen) {
    for (const variant of scenario.variants) {
      if (performance.now() > deadline) {
        leftOut.push(`${nameOf({ scenario, variant })}: the time was up (--limit)`)
        continue
      }
      const result = await measureVariant(lab, scenario, variant)
      results.push(result)
      print(describeResult(result))
    }
  }
  return results
}

async function bench(settings, all, directory) {
  const leftOut = []
  const broken = []
  const { kinds, tools } = await takeStock(settings, directory, leftOut)
  const wanted = all.filter(({ id }) => settings.only === undefined || settings.only.includes(id))
  const chosen = wanted.filter((scenario) => possible(scenario, tools))

  progress('preparing the data set')
  const dataset = await prepareDataset(
    settings.data ?? path.join(directory, 'data'),
    settings.sizes,
  )
  const origin = new Origin()
  await origin.start(dataset.directory, directory)
  const targets = kinds.map(
    (kind) => new Target(kind, { directory, origin, priming: dataset.paths.priming }),
  )
  const patience = new Patience(settings.patienceMs)
  const lab = { settings, directory, dataset, origin, targets, tools, patience, broken }

  print(describeRun({ ...settings, targets: kinds, leftOut }))
  const leftOutAtStart = leftOut.length
  const results = await measureAll(lab, chosen, leftOut)
  const verdicts = judge(results, wanted)
  print(describeVerdicts(verdicts))
  for (const target of targets) {
    const log = await stat(target.logFile).catch(() => undefined)
    print(`${target.name} wrote ${((log?.size ?? 0) / 1e6).toFixed(1)} MB of log.`)
    await target.stop()
  }
  for (const what of leftOut.slice(leftOutAtStart)) print(`LEFT OUT: ${what}`)
  for (const what of broken) print(`BROKEN: ${what}`)
  if (settings.out) {
    const about = { at: new Date().toISOString(), node: process.version, cpus: os.cpus().length }
    const json = { ...about, settings, leftOut, broken, verdicts, results }
    await writeFile(settings.out, JSON.stringify(json, undefined, 2))
  }
  return broken.length === 0 ? 0 : 1
}

async function main() {
  const settings = parseOptions(process.argv.slice(2))
  const all = scenarios(settings)
  if (settings.help) {
    print(helpText(all))
    return 0
  }
  if (process.platform !== 'linux') throw new UsageError('needs Linux: costs are read from /proc')
  check(
    settings.only,
    all.map(({ id }) => id),
    'scenario',
  )
  check(
    settings.targets,
    KINDS.map(({ name }) => name),
    'target',
  )

  const directory = await mkdtemp(path.join(os.tmpdir(), 'layover-bench-'))
  process.once('exit', () => {
    stopAll()
    if (!settings.keep) rmSync(directory, { recursive: true, force: true, maxRetries: 5 })
  })
  for (const signal of ['SIGINT', 'SIGTERM']) process.once(signal, () => process.exit(130))
  if (settings.keep) progress(`working in ${directory}`)
  if (settings.data) await mkdir(settings.data, { recursive: true })
  return bench(settings, all, directory)
}

try {
  process.exit(await main())
} catch (error) {
  progress(error instanceof UsageError ? `${error.message} (--help)` : error.stack)
  process.exit(error instanceof UsageError ? 2 : 1)
}
