// Durations as Go writes them (`168h`, `1h30m`, `1.5s`), because operators' files are full of them.
// Counted in whole nanoseconds as Go does, so that what is read and printed again stays the same.

const NANOSECONDS: Readonly<Record<string, bigint>> = {
  ns: 1n,
  us: 1_000n,
  µs: 1_000n, // U+00B5, the micro sign
  μs: 1_000n, // U+03BC, the Greek letter
  ms: 1_000_000n,
  s: 1_000_000_000n,
  m: 60_000_000_000n,
  h: 3_600_000_000_000n,
}

const DAY_MS = 24 * 3_600_000

/** Go's Duration is an int64: about 292 years. */
const LONGEST_NS = 2n ** 63n - 1n

/** No duration is longer than this; it bounds the arithmetic on hostile input. */
const TEXT_LENGTH_MAX = 100

const BARE_INTEGER = /^[+-]?\d+$/
const DURATION = /^[+-]?(?:(?:\d+(?:\.\d*)?|\.\d+)(?:ns|us|µs|μs|ms|s|m|h))+$/
const PART = /(\d*)(?:\.(\d*))?(ns|us|µs|μs|ms|s|m|h)/g

/**
 * Reads a duration. A bare integer counts nanoseconds, as in distribution.
 *
 * @returns milliseconds, with a fraction where needed; undefined for anything else
 * @see https://pkg.go.dev/time#ParseDuration
 */
export function parseDuration(text: string): number | undefined {
  const totalNs = parseNanoseconds(text)
  if (totalNs === undefined || totalNs > LONGEST_NS) return undefined
  const totalMs = millisecondsOf(totalNs)
  return text.startsWith('-') && totalMs !== 0 ? -totalMs : totalMs
}

const AGE = /^(\d{1,6})d(.*)$/

/** Reads a duration as people say it: with days, which Go does not have. `7d`, `1d12h`, `168h`. */
export function parseAge(text: string): number | undefined {
  const [, days, rest] = AGE.exec(text) ?? []
  if (days === undefined) return BARE_INTEGER.test(text) ? undefined : parseDuration(text)
  const restMs = rest === '' ? 0 : parseDuration(rest ?? '')
  return restMs === undefined || restMs < 0 ? undefined : Number(days) * DAY_MS + restMs
}

/**
 * Writes milliseconds the way Go prints a Duration: `168h0m0s`, `1.5s`, `100ms`, `0s`.
 *
 * @see https://pkg.go.dev/time#Duration.String
 */
export function formatDuration(ms: number): string {
  const sign = ms < 0 ? '-' : ''
  const whole = Math.floor(Math.abs(ms))
  const ns = BigInt(whole) * 1_000_000n + BigInt(Math.round((Math.abs(ms) - whole) * 1e6))
  if (ns === 0n) return '0s'
  if (ns < 1_000n) return `${sign}${ns}ns`
  if (ns < 1_000_000n) return `${sign}${decimal(ns, 1_000n)}µs`
  if (ns < 1_000_000_000n) return `${sign}${decimal(ns, 1_000_000n)}ms`
  const minutes = ns / 60_000_000_000n
  const seconds = `${decimal(ns % 60_000_000_000n, 1_000_000_000n)}s`
  if (minutes === 0n) return sign + seconds
  if (minutes < 60n) return `${sign}${minutes}m${seconds}`
  return `${sign}${minutes / 60n}h${minutes % 60n}m${seconds}`
}

/** The amount without its sign. */
function parseNanoseconds(text: string): bigint | undefined {
  if (text.length > TEXT_LENGTH_MAX) return undefined
  if (BARE_INTEGER.test(text)) return BigInt(text.replace(/^[+-]/, ''))
  if (!DURATION.test(text)) return undefined
  let totalNs = 0n
  for (const [, whole = '', fraction = '', unit = ''] of text.matchAll(PART)) {
    const unitNs = NANOSECONDS[unit] ?? 0n
    totalNs += BigInt(whole || '0') * unitNs
    totalNs += (BigInt(fraction || '0') * unitNs) / 10n ** BigInt(fraction.length)
  }
  return totalNs
}

function millisecondsOf(ns: bigint): number {
  return Number(ns / 1_000_000n) + Number(ns % 1_000_000n) / 1e6
}

/** `amount / unit` without trailing zeros. `unit` is a power of ten. */
function decimal(amount: bigint, unit: bigint): string {
  const fraction = (amount % unit).toString().padStart(unit.toString().length - 1, '0')
  return `${amount / unit}.${fraction}`.replace(/\.?0+$/, '')
}
