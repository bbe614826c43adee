// The kinds of single values a configuration has. Each says what it expects and reads one value; rules
// that involve two keys are not here.

import { isIPv6 } from 'node:net'

import { parseDuration } from './duration.ts'
import { scalar, type Place, type Scalar } from './node.ts'
import { parseDiskAmount, parseSize, type DiskAmount } from './size.ts'
import { PlainScalar, textOf } from './yaml.ts'

export interface HostAndPort {
  readonly host: string
  readonly port: number
}

/** TCP with `host` undefined listens on all interfaces; a path is that of a Unix socket. */
export type ListenAddress =
  { readonly host: string | undefined; readonly port: number } | { readonly path: string }

/** Any text. A number or boolean is taken as it was written. */
export function text(): Scalar<string | undefined> {
  return scalar({ expected: 'text', parse: textOf })
}

/** Text that is never shown. */
export function secret(): Scalar<string | undefined> {
  return scalar({ expected: 'text', parse: textOf, secret: true })
}

/** Text that may stand in an HTTP header. */
export function headerValue(options: { secret?: boolean } = {}): Scalar<string | undefined> {
  return scalar({
    expected: 'a header value in one line',
    parse: (raw) => (/^[\t\x20-\x7e\x80-\xff]+$/.test(textOf(raw)) ? textOf(raw) : undefined),
    ...options,
  })
}

/** A value that keeps its type, for log lines. */
export function textNumberOrBoolean(): Scalar<string | number | boolean | undefined> {
  return scalar<string | number | boolean>({
    expected: 'text, a number or a boolean',
    parse: (raw) => (raw instanceof PlainScalar ? raw.value : raw),
  })
}

/** YAML 1.2 knows true and false only; distribution reads YAML 1.1, where `yes` and `off` are others. */
export function boolean(): Scalar<boolean | undefined> {
  return scalar({
    expected: 'true or false',
    parse(raw) {
      if (/^(?:true|yes|on|y)$/i.test(textOf(raw))) return true
      return /^(?:false|no|off|n)$/i.test(textOf(raw)) ? false : undefined
    },
  })
}

export function integer(
  min = Number.MIN_SAFE_INTEGER,
  max = Number.MAX_SAFE_INTEGER,
): Scalar<number | undefined> {
  const atLeast = min === Number.MIN_SAFE_INTEGER ? '' : ` of at least ${min}`
  const limits = max === Number.MAX_SAFE_INTEGER ? atLeast : ` from ${min} to ${max}`
  return scalar({
    expected: `a whole number${limits}`,
    parse(raw) {
      const value = /^[+-]?\d+$/.test(textOf(raw)) ? Number(textOf(raw)) : NaN
      return value >= min && value <= max ? value : undefined
    },
  })
}

/** One of some words, whatever their case. */
export function choice<T extends string>(...words: readonly T[]): Scalar<T | undefined> {
  return scalar({
    expected: `one of ${words.join(', ')}`,
    parse: (raw) => words.find((word) => word === textOf(raw).toLowerCase()),
  })
}

interface DurationOptions {
  /** Shown in messages. */
  readonly example: string
  readonly mayBeNegative?: boolean
}

/** Milliseconds. Bare integers are nanoseconds, which hardly anybody means. */
export function duration({
  example,
  mayBeNegative = false,
}: DurationOptions): Scalar<number | undefined> {
  return scalar({
    expected: `a duration such as ${example}`,
    parse(raw, place) {
      const ms = parseDuration(textOf(raw))
      if (ms === undefined || (ms < 0 && !mayBeNegative)) return undefined
      warnOfNanoseconds(textOf(raw), ms, place)
      return ms
    },
  })
}

function warnOfNanoseconds(written: string, ms: number, { path, findings }: Place): void {
  if (ms === 0 || Math.abs(ms) >= 1 || !/^[+-]?\d+$/.test(written)) return
  findings.warning(path, `${written} means ${written} nanoseconds; write ${written}s`)
}

/** Bytes. */
export function size({ example }: { example: string }): Scalar<number | undefined> {
  return scalar({ expected: `a size such as ${example}`, parse: (raw) => parseSize(textOf(raw)) })
}

/** So many bytes, or so much of the file system. */
export function diskAmount(): Scalar<DiskAmount | undefined> {
  return scalar({
    expected: 'a size such as 200GiB, or a part of the disk such as 80%',
    parse(raw, { findings, path }) {
      const written = textOf(raw)
      const amount = parseDiskAmount(written)
      // Nobody limits a disk to so little; written out, millions are meant.
      if (amount && Number(written) > 0 && Number(written) < 1_000_000) {
        findings.warning(path, `${written} means ${written} bytes; write ${written}GiB`)
      }
      return amount
    },
  })
}

/** A pattern for repositories, with one for tags after a colon. */
export function imagePattern(): Scalar<string | undefined> {
  return scalar({
    expected: 'a repository such as library/node or ci/*, or with its tags: library/node:20-*',
    parse: (raw) => (IMAGE_PATTERN.test(textOf(raw)) ? textOf(raw) : undefined),
  })
}

/** Lower case, as repositories are; `*` is anything but a slash, `**` anything, `?` one character. */
const IMAGE_PATTERN = /^[a-z0-9._\-/*?]{1,255}(?::[\w.\-*?]{1,128})?$/

/** An address to connect to. */
export function hostAndPort(defaultPort?: number): Scalar<HostAndPort | undefined> {
  return scalar({
    expected: defaultPort === undefined ? 'host:port' : `host:port or a host`,
    parse(raw) {
      const address = parseHostAndPort(textOf(raw), defaultPort)
      return address?.host && address.port > 0 ? { ...address, host: address.host } : undefined
    },
  })
}

/** An address to listen on, for example `:5000`. */
export function listenAddress(): Scalar<ListenAddress | undefined> {
  return scalar({
    expected: LISTEN_ADDRESS_EXPECTED,
    parse: (raw) => parseListenAddress(textOf(raw)),
  })
}

export const LISTEN_ADDRESS_EXPECTED = 'an address such as :5000 or 127.0.0.1:5000'

/** @returns undefined for anything but `:5000`, `host:5000` or `[::1]:5000` */
export function parseListenAddress(address: string): ListenAddress | undefined {
  return parseHostAndPort(address, undefined)
}

/** An http or https URL without a trailing slash. */
export function url(): Scalar<string | undefined> {
  return scalar({
    expected: 'an http or https URL without credentials, query or fragment',
    parse(raw) {
      const parsed = parseHttpUrl(textOf(raw))
      const isBare = parsed && !parsed.username && !parsed.password && !/[?#]/.test(textOf(raw))
      return isBare ? parsed.href.replace(/\/+$/, '') : undefined
    },
  })
}

/** Any http or https URL, as it was written. */
export function checkedUrl(): Scalar<string | undefined> {
  return scalar({
    expected: 'an http or https URL',
    parse: (raw) => parseHttpUrl(textOf(raw)) && textOf(raw),
  })
}

/** A path of a URL: empty, or with a leading and without a trailing slash. */
export function urlPath(): Scalar<string | undefined> {
  return scalar({
    expected: 'a path such as /x',
    parse(raw) {
      const parts = textOf(raw)
        .split('/')
        .filter((part) => part !== '')
      const isPlain = parts.every((part) => /^[\w~.-]+$/.test(part) && !/^\.\.?$/.test(part))
      return isPlain ? parts.map((part) => `/${part}`).join('') : undefined
    },
  })
}

/** Where a token may be asked for: `host`, `host:port` or `https://host/path`. */
export function realm(): Scalar<string | undefined> {
  return scalar({
    expected: 'host, host:port or https://host/path',
    parse(raw) {
      const written = textOf(raw)
      const parsed = parseHttpUrl(written.includes('://') ? written : `https://${written}`)
      if (!parsed || parsed.username || parsed.password || /[?#]/.test(written)) return undefined
      if (written.includes('://')) return parsed.protocol === 'https:' ? parsed.href : undefined
      return parseHostAndPort(written, 0)?.host && written.toLowerCase()
    },
  })
}

function parseHttpUrl(written: string): URL | undefined {
  if (/\s/.test(written) || !/^(?:https?):\/\/[^/]/i.test(written)) return undefined
  return URL.canParse(written) ? new URL(written) : undefined
}

function parseHostAndPort(
  address: string,
  defaultPort: number | undefined,
): { host: string | undefined; port: number } | undefined {
  const [, bracketed, plain, digits] =
    /^(?:\[([\da-f:.]+(?:%\w+)?)\]|([\w.-]*))(?::(\d{1,5}))?$/i.exec(address) ?? []
  const port = digits === undefined ? defaultPort : Number(digits)
  if (port === undefined || port > 65_535) return undefined
  if (bracketed && !isIPv6(bracketed)) return undefined
  return { host: bracketed || plain || undefined, port }
}
