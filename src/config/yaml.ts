// YAML text to plain values. Invariant: nothing is lost that a reader may need. A number or boolean
// keeps the text it was written as, since a password `0123` or a name `1.10` is not the number.

import {
  CORE_SCHEMA,
  NOT_RESOLVED,
  YAMLException,
  boolCoreTag,
  defineMappingTag,
  defineScalarTag,
  floatCoreTag,
  intCoreTag,
  load,
  mergeTag,
  type ScalarTagDefinition,
} from 'js-yaml'

/** An unquoted number or boolean. */
export class PlainScalar {
  readonly text: string
  readonly value: number | boolean

  constructor(text: string, value: number | boolean) {
    this.text = text
    this.value = value
  }
}

export type YamlMapping = ReadonlyMap<string, Yaml>
export type Yaml = string | PlainScalar | null | readonly Yaml[] | YamlMapping

/** Text that is not YAML, or more of it than a configuration can need. */
export class YamlError extends Error {
  override readonly name = 'YamlError'
}

/** Far beyond any configuration; bounds what is parsed. */
const SIZE_MAX_BYTES = 1024 * 1024

/** Anchors are for a few repeated blocks. More would let a small file stand for an enormous one. */
const ALIASES_MAX = 100

/** A map by text: YAML may have any key, and a JavaScript object must not have `__proto__`. */
const textKeyedMap = defineMappingTag<Map<string, unknown>>('tag:yaml.org,2002:map', {
  create: () => new Map(),
  addPair(map, key, value) {
    const text = keyText(key)
    if (text === undefined) return 'a key must be text'
    map.set(text, value)
    return ''
  },
  has: (map, key) => map.has(keyText(key) ?? ''),
  keys: (map) => map.keys(),
  get: (map, key) => map.get(keyText(key) ?? ''),
  identify: (data) => data instanceof Map,
})

const SCHEMA = CORE_SCHEMA.withTags(
  mergeTag,
  textKeyedMap,
  keepText(boolCoreTag),
  keepText(intCoreTag),
  keepText(floatCoreTag),
)

/**
 * Reads one YAML 1.2 document, with `<<` merge keys.
 *
 * @returns null for a text without content, as `yaml.Unmarshal` of Go leaves the zero value
 * @throws {YamlError} with line and column, and without quoting the text: it may hold a secret
 */
export function parseYaml(text: string): Yaml {
  if (Buffer.byteLength(text) > SIZE_MAX_BYTES) throw new YamlError('larger than 1 MiB')
  if (!hasContent(text)) return null
  try {
    // SCHEMA makes nothing else.
    return load(text, { schema: SCHEMA, maxAliases: ALIASES_MAX }) as Yaml
  } catch (error) {
    if (!(error instanceof YAMLException)) throw error
    const place = error.mark ? `line ${error.mark.line + 1}, column ${error.mark.column + 1}: ` : ''
    throw new YamlError(place + error.reason.replaceAll(/"[^"]*"/g, '"…"'))
  }
}

export function isMapping(value: unknown): value is YamlMapping {
  return value instanceof Map
}

export function isScalar(value: unknown): value is string | PlainScalar {
  return typeof value === 'string' || value instanceof PlainScalar
}

/** What was written, whatever YAML takes it for. */
export function textOf(scalar: string | PlainScalar): string {
  return typeof scalar === 'string' ? scalar : scalar.text
}

function hasContent(text: string): boolean {
  return text.split('\n').some((line) => /^\s*[^\s#]/.test(line))
}

function keyText(key: unknown): string | undefined {
  return isScalar(key) ? textOf(key) : undefined
}

function keepText(tag: ScalarTagDefinition<number> | ScalarTagDefinition<boolean>) {
  return defineScalarTag<PlainScalar>(tag.tagName, {
    implicit: tag.implicit,
    implicitFirstChars: tag.implicitFirstChars,
    resolve(source, isExplicit, tagName) {
      const value = tag.resolve(source, isExplicit, tagName)
      return value === NOT_RESOLVED ? value : new PlainScalar(source, value)
    },
    identify: () => false,
  })
}
