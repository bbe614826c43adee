// What Layover promises beside its peers, as data, and the verdict on each. Ratios within one run, not
// absolute rates: those say more about the machine than about the server. Where a goal covers several
// variants or scenarios, the worst of them is judged.

import { IN_SERVICE, nameOf } from './scenarios.mjs'

const REGISTRY = 'docker-registry'
const NGINX = 'nginx'

const oneClient = ({ connections }) => connections === 1
const manyClients = ({ connections }) => connections > 1
const inService = ({ label }) => label === IN_SERVICE

/**
 * `metric` of `scenario` (absent: of every scenario that has it), or of those of its variants that are `meant`: on its
 * own, or as a ratio to the same of the target in `to`, or less that of the target in `above`.
 *
 * A single client mostly waits for the way there and back, whoever answers: nginx itself is then forty times
 * docker-registry by tag and fifteen times by digest. So what counts there is how close to nginx it comes.
 */
export const GOALS = [
  { scenario: 'wtag', meant: manyClients, metric: 'rate', to: REGISTRY, atLeast: 50 },
  { scenario: 'wtag', meant: oneClient, metric: 'rate', to: NGINX, atLeast: 0.75 },
  { scenario: 'wdigest', meant: manyClients, metric: 'rate', to: REGISTRY, atLeast: 20 },
  { scenario: 'wdigest', meant: oneClient, metric: 'rate', to: NGINX, atLeast: 0.75 },
  { scenario: 'wsmall', metric: 'rate', to: REGISTRY, atLeast: 15 },
  { scenario: 'wlarge', metric: 'gbPerSecond', to: REGISTRY, atLeast: 1 },
  { scenario: 'wlarge', metric: 'cpuPerGb', to: REGISTRY, atMost: 0.99 },
  { scenario: 'csmall', meant: inService, metric: 'rate', to: REGISTRY, atLeast: 5 },
  { scenario: 'first', metric: 'firstByteMs', above: 'direct', atMost: 15 },
  { scenario: 'behind', metric: 'seconds', to: 'direct', atMost: 1.05 },
  { scenario: 'herd', metric: 'upstreamTimes', atMost: 1 },
  { scenario: 'herd', metric: 'seconds', to: REGISTRY, atMost: 0.067 },
  { scenario: 'herd', metric: 'seconds', to: NGINX, atMost: 1.6 },
  { scenario: 'herd', metric: 'firstByteMs', to: NGINX, atMost: 0.3 },
  { metric: 'mostGets', atMost: 1 },
  { metric: 'rssMb', atMost: 150 },
]

/**
 * Judges the goals of the scenarios that were wanted, be they measured or not.
 *
 * @param results [{ scenario, variant, metrics: { <target>: { <metric>: number } } }]
 * @returns one of { goal, value, where, verdict: 'met' | 'missed' | 'not measured' } for each goal
 */
export function judge(results, wanted) {
  const asked = GOALS.filter(
    (goal) => goal.scenario === undefined || wanted.some(({ id }) => id === goal.scenario),
  )
  return asked.map((goal) => {
    const measured = results
      .filter(({ scenario }) => goal.scenario === undefined || scenario.id === goal.scenario)
      .filter(({ variant }) => goal.meant === undefined || goal.meant(variant))
      .map((result) => ({ value: valueOf(goal, result.metrics), where: nameOf(result) }))
      .filter(({ value }) => Number.isFinite(value))
    if (measured.length === 0) return { goal, verdict: 'not measured' }
    const better = goal.atLeast === undefined ? -1 : 1
    const [worst] = measured.sort((a, b) => better * (a.value - b.value))
    const met =
      goal.atLeast === undefined ? worst.value <= goal.atMost : worst.value >= goal.atLeast
    return { goal, ...worst, verdict: met ? 'met' : 'missed' }
  })
}

function valueOf({ metric, to, above }, metrics) {
  const ours = metrics['layover']?.[metric]
  if (to !== undefined) return round(ours / metrics[to]?.[metric])
  if (above !== undefined) return round(ours - metrics[above]?.[metric])
  return round(ours)
}

/** Three digits: what is judged is what is printed. */
const round = (value) => Math.round(value * 1000) / 1000
