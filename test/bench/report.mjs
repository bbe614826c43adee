// The results as text: a table for each measurement, with ratios to the peers, then the verdicts.

import os from 'node:os'
import { IN_SERVICE } from './scenarios.mjs'

const PEERS = ['docker-registry', 'nginx']
/** Cores that others used while we measured, from which on wall times should not be quoted. */
const NOISE_CORES_MAX = 0.3

/** What the run stood on: without it, figures mean nothing to anybody else. */
export function describeRun({ targets, leftOut, quick, sizes, runs }) {
  const cpu = os.cpus()[0]?.model.trim() ?? 'unknown'
  const lines = [
    `${os.cpus().length} × ${cpu}, ${Math.round(os.totalmem() / 1024 ** 3)} GiB, ` +
      `${os.type()} ${os.release()}, Node ${process.versions.node}`,
    'Clients, server and upstream share these cores. Medians; targets take turns within each measurement.',
    ...targets.map(({ name, version, settings }) => `${name} ${version}: ${settings}`),
    `Runs: ${runs}. Data: ${JSON.stringify(sizes)}`,
    'Every cold run starts on an empty cache, in a server that has just pulled a few dozen other blobs; ' +
      `"${IN_SERVICE}", ${sizes.otherBlobs} of them.`,
  ]
  if (quick)
    lines.push('QUICK: small data, one run. For orientation; the goals are meant for a full run.')
  for (const what of leftOut) lines.push(`LEFT OUT: ${what}`)
  return lines.join('\n')
}

/** One measurement: a row for each target. */
export function describeResult({ scenario, variant, metrics, samples }) {
  const { columns, rank } = scenario
  const header = ['', ...columns.map(({ label }) => label), ...PEERS.map((peer) => `vs ${peer}`)]
  const rows = Object.entries(metrics).map(([target, values]) => [
    target,
    ...columns.map(({ metric, digits }) => number(values[metric], digits)),
    ...PEERS.map((peer) =>
      peer === target ? '' : ratio(values[rank.metric] / metrics[peer]?.[rank.metric]),
    ),
  ])
  const title = [scenario.title, variant.label].filter(Boolean).join(', ')
  const ranked = columns.find(({ metric }) => metric === rank.metric)
  const note = `ratios of ${ranked.label}: ${rank.better} is better${noise(samples)}`
  return `\n${scenario.id}: ${title}\n${align([header, ...rows])}\n  (${note})`
}

function noise(samples) {
  const all = Object.values(samples).flat()
  const foreign = Math.max(...all.map((sample) => sample.foreignCores))
  const steal = Math.max(...all.map((sample) => sample.stealCores))
  if (Math.max(foreign, steal) < NOISE_CORES_MAX) return ''
  return `; NOISY: others used up to ${foreign.toFixed(1)} cores, the host took ${steal.toFixed(1)}`
}

export function describeVerdicts(verdicts) {
  const rows = verdicts.map(({ goal, value, where, verdict }) => [
    goalName(goal),
    goal.atLeast === undefined ? `≤ ${limit(goal)}` : `≥ ${limit(goal)}`,
    value === undefined ? '-' : limit({ ...goal, atMost: value, atLeast: undefined }),
    where ?? '',
    verdict,
  ])
  return `\nGoals\n${align([['', 'wanted', 'measured', 'worst in', 'verdict'], ...rows])}`
}

const METRIC_NAMES = {
  rate: 'rate',
  gbPerSecond: 'GB/s',
  cpuPerGb: 'CPU s per GB',
  firstByteMs: 'first byte (p50)',
  seconds: 'time',
  upstreamTimes: 'upstream bytes per byte of the blob',
  mostGets: 'upstream GETs of one blob',
  rssMb: 'peak memory (MB)',
}

function goalName({ scenario, metric, to, above }) {
  const relation = to ? `, times that of ${to}` : above ? `, ms above ${above}` : ''
  return `${scenario ?? 'everywhere'}: ${METRIC_NAMES[metric]}${relation}`
}

function limit({ to, metric, atLeast, atMost }) {
  const value = atLeast ?? atMost
  return `${significant(value)}${to || metric === 'upstreamTimes' ? '×' : ''}`
}

function number(value, digits) {
  return Number.isFinite(value) ? value.toFixed(digits) : '-'
}

function ratio(value) {
  return Number.isFinite(value) ? `${significant(value)}×` : '-'
}

const significant = (value) => String(Number(value.toPrecision(3)))

/** First column left, the others right. */
function align(rows) {
  const widths = rows[0].map((_, i) => Math.max(...rows.map((row) => row[i].length)))
  return rows
    .map((row) =>
      row
        .map((cell, i) => (i === 0 ? cell.padEnd(widths[i]) : cell.padStart(widths[i])))
        .join('  ')
        .trimEnd(),
    )
    .map((line) => `  ${line}`)
    .join('\n')
}
