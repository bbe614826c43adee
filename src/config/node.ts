// What a declaration of keys is made of. One tree of nodes says which keys exist, what their values are,
// which are secret and which have no effect; reading, REGISTRY_* variables and printing all walk it.
// Invariant: reading never throws and never stops early, it reports.

import { childPath, describe, type Findings } from './findings.ts'
import { nearestWord } from './nearest-word.ts'
import { isMapping, isScalar, type PlainScalar, type Yaml, type YamlMapping } from './yaml.ts'

/** Where a value stands, and who is told about it. */
export interface Place {
  readonly path: string
  readonly findings: Findings
  readonly root: Section
}

interface Readable<T> {
  /** @param raw undefined when the key is absent; null when it is there without a value */
  read(raw: Yaml | undefined, place: Place): T
}

export interface Scalar<T = unknown> extends Readable<T> {
  readonly kind: 'scalar'
  /** Never shown: not in messages, not when printed. */
  readonly secret: boolean
}

export interface Section<T = unknown> extends Readable<T> {
  readonly kind: 'section'
  readonly fields: Readonly<Record<string, Node>>
  /** `storage: inmemory` stands for `storage: {inmemory: {}}`. */
  readonly shorthand: boolean
  /** Fields whose name in REGISTRY_* variables is not their key: Go's field name counts there. */
  readonly variableNames: Readonly<Record<string, string>>
}

export interface List<T = unknown> extends Readable<readonly T[]> {
  readonly kind: 'list'
  readonly item: Node
}

export interface Dictionary<T = unknown> extends Readable<Readonly<Record<string, T>>> {
  readonly kind: 'dictionary'
  readonly item: Node
}

/** A key whose content is not looked into: it has no effect, or it stops the start. */
export interface Opaque extends Readable<undefined> {
  readonly kind: 'opaque'
  /** What is said when the key asks for something; undefined for keys that are accepted silently. */
  readonly notice: string | undefined
}

export type Node = Scalar | Section | List | Dictionary | Opaque

/** What reading a node gives. */
export type ValueOf<N> = N extends Readable<infer T> ? T : never

type Present<T> = T & ({} | null)

interface ScalarOptions<T> {
  /** Completes the sentence "expected …". */
  readonly expected: string
  /** Undefined means wrong. */
  readonly parse: (raw: string | PlainScalar, place: Place) => T | undefined
  readonly secret?: boolean
}

/** A single value. Empty text counts as absent, as the zero value does in Go. */
export function scalar<T>(options: ScalarOptions<T>): Scalar<T | undefined> {
  const { expected, parse, secret = false } = options
  return {
    kind: 'scalar',
    secret,
    read(raw, place) {
      if (isAbsent(raw)) return undefined
      const value = isScalar(raw) ? parse(raw, place) : undefined
      if (value === undefined) {
        const got = secret ? '' : `, got ${describe(raw)}`
        place.findings.problem(place.path, `expected ${expected}${got}`)
      }
      return value
    },
  }
}

/** The same value, with what is used when it is absent. */
export function withDefault<T>(node: Scalar<T | undefined>, value: T): Scalar<T> {
  return { ...node, read: (raw, place) => node.read(raw, place) ?? value }
}

interface SectionOptions {
  readonly shorthand?: boolean
  readonly variableNames?: Readonly<Record<string, string>>
  /** Makes an unknown key a problem, with this explanation; otherwise it is a warning. */
  readonly unknownKey?: string
}

/** A mapping with known keys. Absent, it reads as one with all keys absent. */
export function section<F extends Readonly<Record<string, Node>>>(
  fields: F,
  { shorthand = false, variableNames = {}, unknownKey }: SectionOptions = {},
): Section<{ readonly [K in keyof F]: ValueOf<F[K]> }> {
  return {
    kind: 'section',
    fields,
    shorthand,
    variableNames,
    read(raw, place) {
      const mapping = mappingOf(raw, shorthand)
      if (!mapping) {
        place.findings.problem(place.path, `expected a mapping, got ${describe(raw ?? null)}`)
      }
      for (const key of mapping?.keys() ?? []) {
        if (!Object.hasOwn(fields, key)) reportUnknownKey(key, fields, place, unknownKey)
      }
      const values = Object.entries(fields).map(([key, node]): [string, unknown] => [
        key,
        node.read(mapping?.get(key), { ...place, path: childPath(place.path, key) }),
      ])
      reportWithoutEffect(fields, mapping, place)
      // The keys are those of `fields`.
      return Object.fromEntries(values) as { readonly [K in keyof F]: ValueOf<F[K]> }
    },
  }
}

/** A list; a single value stands for a list of one. */
export function list<N extends Node>(item: N): List<Present<ValueOf<N>>> {
  return {
    kind: 'list',
    item,
    read(raw, place) {
      if (isAbsent(raw)) return []
      if (isMapping(raw)) {
        place.findings.problem(place.path, 'expected a list, got a mapping')
        return []
      }
      const items: readonly Yaml[] = isScalar(raw) ? [raw] : raw
      return items.flatMap((each, index) => {
        const path = isScalar(raw) ? place.path : childPath(place.path, index)
        const value = readNode(item, each, { ...place, path })
        return value === undefined ? [] : [value]
      })
    },
  }
}

/**
 * A mapping with the operator's own keys. A key without a value, or with an empty list, is left out.
 *
 * @param key what a key must be; any text when left out
 */
export function dictionary<N extends Node>(
  item: N,
  key?: { readonly expected: string; readonly pattern: RegExp },
): Dictionary<Present<ValueOf<N>>> {
  return {
    kind: 'dictionary',
    item,
    read(raw, place) {
      const mapping = mappingOf(raw, false)
      if (!mapping) {
        place.findings.problem(place.path, `expected a mapping, got ${describe(raw ?? null)}`)
      }
      const values = new Map<string, Present<ValueOf<N>>>()
      for (const [name, each] of mapping ?? []) {
        const path = childPath(place.path, name)
        if (key && !key.pattern.test(name)) place.findings.problem(path, `expected ${key.expected}`)
        const value = readNode(item, each, { ...place, path })
        if (value === undefined || (Array.isArray(value) && value.length === 0)) continue
        values.set(name, value)
      }
      return Object.fromEntries(values)
    },
  }
}

/** Accepted, without effect. One warning for all such keys of a section that share a notice. */
export function ignored(notice?: string): Opaque {
  return { kind: 'opaque', notice, read: () => undefined }
}

/**
 * Something that protects, and is not done: going on without it would be worse than not starting.
 *
 * @param options.evenEmpty for keys whose mere name asks for it
 */
export function refused(notice: string, { evenEmpty = false } = {}): Opaque {
  return {
    kind: 'opaque',
    notice: undefined,
    read(raw, { path, findings }) {
      if (raw !== undefined && (evenEmpty || asksForSomething(raw))) findings.problem(path, notice)
      return undefined
    },
  }
}

/** The type of a declaration says what reading it gives; TypeScript loses that in the union. */
function readNode<N extends Node>(node: N, raw: Yaml, place: Place): ValueOf<N> {
  return node.read(raw, place) as ValueOf<N>
}

/** @returns undefined for what is no mapping */
export function mappingOf(raw: Yaml | undefined, shorthand: boolean): YamlMapping | undefined {
  if (isAbsent(raw)) return new Map()
  if (shorthand && typeof raw === 'string') return new Map([[raw, null]])
  return isMapping(raw) ? raw : undefined
}

function isAbsent(raw: Yaml | undefined): raw is undefined | null | '' {
  return raw === undefined || raw === null || raw === ''
}

/** Switched off is as good as absent. Deep content is taken as it is, so that the look stays short. */
function asksForSomething(raw: Yaml | undefined, depth = 0): boolean {
  if (isAbsent(raw)) return false
  if (isScalar(raw)) return typeof raw === 'string' || raw.value !== false
  const children = isMapping(raw) ? [...raw.values()] : raw
  return depth > 3
    ? children.length > 0
    : children.some((each) => asksForSomething(each, depth + 1))
}

function reportUnknownKey(
  key: string,
  fields: Readonly<Record<string, Node>>,
  place: Place,
  explanation: string | undefined,
): void {
  const path = childPath(place.path, key)
  const suggestion = nearestWord(key, Object.keys(fields)) ?? placesOf(key, place.root)
  const hint = suggestion && `did you mean ${suggestion}?`
  if (explanation !== undefined) {
    place.findings.problem(path, hint ? `unknown key; ${hint}` : explanation)
  } else {
    place.findings.warning(path, `unknown key, ignored${hint ? `; ${hint}` : ''}`)
  }
}

/** Where a key of this name is known: the shallowest places, items of lists left out. */
function placesOf(key: string, root: Section): string | undefined {
  let level: (readonly [path: string, node: Node])[] = Object.entries(root.fields)
  while (level.length > 0) {
    level = level.flatMap(([path, node]) =>
      node.kind === 'section'
        ? Object.entries(node.fields).map(([name, child]) => [`${path}.${name}`, child] as const)
        : [],
    )
    const found = level.map(([path]) => path).filter((path) => path.endsWith(`.${key}`))
    if (found.length > 0) return found.join(' or ')
  }
  return undefined
}

function reportWithoutEffect(
  fields: Readonly<Record<string, Node>>,
  mapping: YamlMapping | undefined,
  place: Place,
): void {
  const pathsByNotice = new Map<string, string[]>()
  for (const [key, node] of Object.entries(fields)) {
    if (node.kind !== 'opaque' || node.notice === undefined) continue
    if (!asksForSomething(mapping?.get(key))) continue
    const paths = pathsByNotice.get(node.notice) ?? []
    pathsByNotice.set(node.notice, [...paths, childPath(place.path, key)])
  }
  for (const [notice, paths] of pathsByNotice) place.findings.warning(paths.join(', '), notice)
}
