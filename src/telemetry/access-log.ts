// One line for each request that answers the operator's first question: where did this come from, the cache
// or the upstream, and how long did it take? As text it is Apache's combined format, as registry:2 writes it,
// followed by what a cache has to say; with `log.formatter: json` it is one object a line.

import type { DestinationStream } from 'pino'
import type { CacheOutcome } from './metrics.ts'

export interface AccessEntry {
  /** Milliseconds since the epoch. */
  readonly timeMs: number
  readonly requestId: string
  readonly remoteAddress: string
  readonly method: string
  readonly uri: string
  readonly httpVersion: string
  readonly status: number
  /** Of the body that was sent, whether the client got it all or not. */
  readonly sentBytes: number
  readonly referer: string | undefined
  readonly userAgent: string | undefined
  readonly durationMs: number
  /** Time to first byte: until the headers went out. */
  readonly ttfbMs: number | undefined
  readonly cache: CacheOutcome | undefined
  readonly upstream: string | undefined
  readonly repository: string | undefined
  readonly reference: string | undefined
  readonly digest: string | undefined
  /** The client left before it had everything, or the answer could not be completed. */
  readonly isAborted: boolean
  readonly error: string | undefined
}

export interface AccessLogOptions {
  readonly formatter: 'text' | 'json'
  /** `log.fields`: in JSON they are part of every line. */
  readonly fields: Readonly<Record<string, string | number | boolean>>
}

export class AccessLog {
  readonly #destination: DestinationStream
  readonly #options: AccessLogOptions
  /** Formatting a date costs more than the rest of the line; it changes once a second. */
  #second = 0
  #secondText = ''

  constructor(deps: { destination: DestinationStream }, options: AccessLogOptions) {
    this.#destination = deps.destination
    this.#options = options
  }

  write(entry: AccessEntry): void {
    const line = this.#options.formatter === 'json' ? this.#json(entry) : this.#text(entry)
    this.#destination.write(line)
  }

  #json(entry: AccessEntry): string {
    const { durationMs, isAborted, timeMs, ttfbMs, ...rest } = entry
    const line = {
      level: 'info',
      time: new Date(timeMs).toISOString(),
      ...this.#options.fields,
      msg: 'access',
      ...rest,
      durationMs: round(durationMs),
      ttfbMs: ttfbMs === undefined ? undefined : round(ttfbMs),
      aborted: isAborted || undefined,
    }
    return `${JSON.stringify(line)}\n`
  }

  #text(entry: AccessEntry): string {
    const { httpVersion, method, referer = '', remoteAddress, sentBytes, status, uri } = entry
    let line = `${remoteAddress} - - [${this.#time(entry.timeMs)}] "${method} ${quotable(uri)} HTTP/${httpVersion}"`
    line += ` ${status} ${sentBytes} "${quotable(referer)}" "${quotable(entry.userAgent ?? '')}"`
    if (entry.cache) line += ` cache=${entry.cache}`
    if (entry.upstream) line += ` upstream=${entry.upstream}`
    if (entry.repository) line += ` repository=${entry.repository}`
    // The digest of a blob stands in its path already.
    if (entry.digest && !uri.includes(entry.digest)) line += ` digest=${entry.digest}`
    line += ` duration=${round(entry.durationMs)}ms`
    if (entry.ttfbMs !== undefined) line += ` ttfb=${round(entry.ttfbMs)}ms`
    if (entry.isAborted) line += ' aborted=true'
    if (entry.error) line += ` error="${quotable(entry.error)}"`
    return `${line} id=${entry.requestId}\n`
  }

  #time(timeMs: number): string {
    const second = Math.floor(timeMs / 1000)
    if (second !== this.#second) {
      this.#second = second
      this.#secondText = combinedTime(new Date(second * 1000))
    }
    return this.#secondText
  }
}

const MONTHS = ['Jan', 'Feb', 'Mar', 'Apr', 'May', 'Jun', 'Jul', 'Aug', 'Sep', 'Oct', 'Nov', 'Dec']

/** `21/Nov/2026:01:11:06 +0000` */
function combinedTime(date: Date): string {
  const [year, , day] = date.toISOString().slice(0, 10).split('-')
  return `${day}/${MONTHS[date.getUTCMonth()]}/${year}:${date.toISOString().slice(11, 19)} +0000`
}

/** To a tenth of a millisecond: a hit takes less than one. */
function round(durationMs: number): number {
  return Math.round(durationMs * 10) / 10
}

/** What a client sends must not end the quotes, nor the line. */
function quotable(text: string): string {
  return /^[ !#-[\]-~]*$/.test(text) ? text : JSON.stringify(text).slice(1, -1)
}
