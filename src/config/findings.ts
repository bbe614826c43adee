// What is wrong with a configuration. Everything is collected before anything is thrown, and nothing
// that is reported shows a secret.

import { isMapping, isScalar, PlainScalar, textOf, type Yaml } from './yaml.ts'

/** A configuration that cannot be used: every mistake at once. */
export class ConfigurationError extends Error {
  override readonly name = 'ConfigurationError'
  /** For example `proxy.ttl: expected a duration such as 168h, got "7 dayz"`. */
  readonly problems: readonly string[]
  /** What would have been said otherwise: a misspelt key may be the reason for a problem. */
  readonly warnings: readonly string[]

  constructor(path: string, problems: readonly string[], warnings: readonly string[] = []) {
    super([`${path} cannot be used:`, ...problems].join('\n  '))
    this.problems = problems
    this.warnings = warnings
  }
}

/** Longer values are cut in messages. */
const SHOWN_LENGTH_MAX = 60

export class Findings {
  readonly problems: string[] = []
  readonly warnings: string[] = []
  readonly #wrongPaths = new Set<string>()
  /** YAML path → the variable that set it. */
  readonly #variables = new Map<string, string>()

  /**
   * A second problem at the same place is left out: it follows from the first.
   *
   * @param path in YAML, for example `health.tcp.0.addr`
   */
  problem(path: string, message: string): void {
    if (this.#wrongPaths.has(path)) return
    this.#wrongPaths.add(path)
    const variables = this.#variablesAt(path)
    this.problems.push(`${path}: ${message}${variables ? ` (set by ${variables})` : ''}`)
  }

  /** Whether something within the section at `path` is wrong. */
  hasProblemWithin(path: string): boolean {
    return [...this.#wrongPaths].some((wrong) => isWithin(wrong, path))
  }

  warning(path: string, message: string): void {
    this.warnings.push(`${path}: ${message}`)
  }

  /** Notes where a value comes from, so that a mistake in it names the variable too. */
  cameFrom(path: string, variable: string): void {
    this.#variables.set(path, variable)
  }

  #variablesAt(path: string): string {
    return [...this.#variables]
      .filter(([other]) => isWithin(other, path) || isWithin(path, other))
      .map(([, variable]) => variable)
      .join(', ')
  }
}

function isWithin(path: string, section: string): boolean {
  return path === section || path.startsWith(`${section}.`)
}

/** Appends a key or index to a path. A key that could garble a log line is quoted. */
export function childPath(path: string, key: string | number): string {
  const shown = /^[\w.-]{1,64}$/.test(String(key))
    ? String(key)
    : JSON.stringify(maskSecrets(String(key)).slice(0, SHOWN_LENGTH_MAX))
  return path === '' ? shown : `${path}.${shown}`
}

/** A value as a message shows it, for example `"7 dayz"`, `3600` or `a mapping`. */
export function describe(value: Yaml): string {
  if (value === null) return 'nothing'
  if (isMapping(value)) return 'a mapping'
  if (!isScalar(value)) return 'a list'
  const text = maskSecrets(textOf(value))
  const shown = text.length > SHOWN_LENGTH_MAX ? `${text.slice(0, SHOWN_LENGTH_MAX)}…` : text
  return value instanceof PlainScalar ? shown : JSON.stringify(shown)
}

/** Hides what may be a secret in one value, also in what is no valid URL: a password may have a slash in it. */
export function maskSecrets(text: string): string {
  return maskQuery(text.replace(/^([a-z][a-z\d+.-]*:\/\/)?.*@/is, '$1***@'))
}

/** Hides what follows a path: signed URLs and webhooks have their secret there. */
export function maskQuery(text: string): string {
  return text.replace(/(:\/\/[^?#]*[?#]).+$|([?#])[^?#]*=.*$/s, '$1$2***')
}
