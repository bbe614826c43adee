// The application log: pino, as JSON or as registry:2's `time=… level=… msg="…" key=value` text, to stderr.
// Secrets never get here: they are redacted by name as a second line of defence.

import { pino, type DestinationStream, type Logger } from 'pino'
import type { Clock } from '../clock.ts'

export interface LoggerOptions {
  readonly level: 'error' | 'warn' | 'info' | 'debug'
  readonly formatter: 'text' | 'json'
  /** `log.fields`: added to every line. */
  readonly fields: Readonly<Record<string, string | number | boolean>>
}

const REDACTED = [
  'authorization',
  'password',
  'token',
  'secret',
  'cookie',
  'identitytoken',
].flatMap((name) => [name, `*.${name}`, `headers.${name}`])

export interface LoggerDeps {
  readonly clock: Clock
  /** Takes whole lines, one a call. */
  readonly destination: DestinationStream
}

export function createLogger({ clock, destination }: LoggerDeps, options: LoggerOptions): Logger {
  const { fields, formatter, level } = options
  return pino(
    {
      level,
      base: { ...fields },
      timestamp: () => `,"time":"${new Date(clock.now()).toISOString()}"`,
      formatters: { level: (label) => ({ level: label }) },
      // pino's own appends the messages of all causes; ours tell the reason themselves.
      serializers: { err: describeError },
      redact: { paths: REDACTED, censor: '***' },
    },
    formatter === 'json' ? destination : { write: (line) => destination.write(textLine(line)) },
  )
}

function describeError(error: unknown): Record<string, unknown> {
  if (!(error instanceof Error)) return { message: String(error) }
  const { message, name, stack } = error
  const code = 'code' in error ? error.code : undefined
  return { type: name, message, code, stack }
}

/** The order of registry:2's text: time, level, message, then what belongs to it. */
function textLine(json: string): string {
  const { err, level, msg, time, ...rest } = JSON.parse(json) as Record<string, unknown>
  const error =
    typeof err === 'object' && err !== null && 'message' in err ? err.message : undefined
  const pairs = Object.entries({ time, level, msg, ...(error ? { error } : {}), ...rest })
  const isLoud = level === 'error' && typeof err === 'object' && err !== null && 'stack' in err
  const stack = isLoud && rest['isBug'] === true ? `\n${String(err.stack)}` : ''
  return `${pairs.map(([key, value]) => `${key}=${textValue(value)}`).join(' ')}${stack}\n`
}

function textValue(value: unknown): string {
  const text = typeof value === 'string' ? value : (JSON.stringify(value) ?? '')
  return /^[\w./@+-]+$/.test(text) ? text : JSON.stringify(text)
}
