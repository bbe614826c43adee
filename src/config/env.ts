// REGISTRY_* variables over the file, by the rules of distribution's configuration/parser.go: names are
// split at `_`, applied in lexical order (so REGISTRY_STORAGE before REGISTRY_STORAGE_CACHE), and values
// are YAML. What fits nothing is never fatal: Kubernetes sets REGISTRY_PORT for a Service named registry.

import { childPath, maskSecrets, type Findings } from './findings.ts'
import { mappingOf, type Node, type Section } from './node.ts'
import { isMapping, isScalar, parseYaml, YamlError, type Yaml } from './yaml.ts'

export type Environment = Readonly<Record<string, string | undefined>>

const PREFIX = 'REGISTRY_'

/** Says where the file is, and is no part of it. */
const FILE_VARIABLE = 'REGISTRY_CONFIGURATION_PATH'

/** Which version a file has, only the file can say. */
const VERSION_VARIABLE = 'REGISTRY_VERSION'

/** A document with one value replaced, and the YAML path of that value if it took its place. */
interface Override {
  readonly raw: Yaml
  readonly path: string | undefined
}

/**
 * Applies all REGISTRY_* variables.
 *
 * @returns a new document; `raw` stays as it is
 */
export function applyEnvironment(
  root: Section,
  raw: Yaml,
  environment: Environment,
  findings: Findings,
): Yaml {
  let document = raw
  for (const variable of Object.keys(environment).sort()) {
    const text = environment[variable]
    if (!variable.startsWith(PREFIX) || variable === FILE_VARIABLE || text === undefined) continue
    document = applyVariable(root, document, variable, text, findings)
  }
  return document
}

function applyVariable(
  root: Section,
  document: Yaml,
  variable: string,
  text: string,
  findings: Findings,
): Yaml {
  const names = variable.slice(PREFIX.length).split('_')
  // It may have the key of a mapping in it.
  const shown = maskSecrets(variable)
  try {
    const applied =
      variable === VERSION_VARIABLE
        ? undefined
        : override(root, document, names, () => parseYaml(text))
    if (applied) {
      if (applied.path !== undefined) findings.cameFrom(applied.path, shown)
      return applied.raw
    }
    findings.warnings.push(`ignoring unrecognized environment variable ${shown}`)
  } catch (error) {
    if (!(error instanceof YamlError || error instanceof IndexError)) throw error
    const advice = error instanceof YamlError ? '; put the value in quotes' : ''
    findings.problem(shown, error.message + advice)
  }
  return document
}

/** An index that would leave a gap. */
class IndexError extends Error {
  override readonly name = 'IndexError'
}

/**
 * Where the file has something that names cannot lead into, it is left as it is: reading it will say so.
 *
 * @param value only called when there is a place for it: what is not meant for us need not be YAML
 * @returns undefined when the names lead nowhere
 */
function override(
  node: Node,
  raw: Yaml,
  names: readonly string[],
  value: () => Yaml,
  path = '',
): Override | undefined {
  const [name, ...rest] = names
  if (name === undefined) return { raw: value(), path }
  switch (node.kind) {
    case 'section': {
      const key = keyNamed(name, node)
      const field = key === undefined ? undefined : node.fields[key]
      if (key === undefined || !field) return undefined
      const mapping = mappingOf(raw, node.shorthand)
      if (!mapping) return { raw, path: undefined }
      return overrideKey(field, mapping, key, rest, value, path)
    }
    case 'dictionary': {
      const mapping = mappingOf(raw, false)
      if (!mapping) return { raw, path: undefined }
      return overrideKey(node.item, mapping, existingKey(name, mapping), rest, value, path)
    }
    case 'list':
      return overrideItem(node.item, raw, name, rest, value, path)
    case 'opaque': {
      if (Array.isArray(raw)) return overrideItem(node, raw, name, rest, value, path)
      const mapping = isMapping(raw) ? raw : undefined
      return overrideKey(node, mapping, existingKey(name, mapping), rest, value, path)
    }
    case 'scalar':
      break
  }
  return undefined
}

function overrideKey(
  node: Node,
  mapping: ReadonlyMap<string, Yaml> | undefined,
  key: string,
  rest: readonly string[],
  value: () => Yaml,
  path: string,
): Override | undefined {
  const base = mapping ?? new Map<string, Yaml>()
  const applied = override(node, base.get(key) ?? null, rest, value, childPath(path, key))
  return applied && { ...applied, raw: new Map(base).set(key, applied.raw) }
}

function overrideItem(
  node: Node,
  raw: Yaml,
  name: string,
  rest: readonly string[],
  value: () => Yaml,
  path: string,
): Override | undefined {
  if (!/^\d{1,6}$/.test(name)) return undefined
  const index = Number(name)
  const items = itemsOf(raw)
  if (index > items.length) {
    throw new IndexError(`index ${index} leaves a gap: the list has ${items.length} so far`)
  }
  const applied = override(node, items[index] ?? null, rest, value, childPath(path, index))
  return applied && { ...applied, raw: items.toSpliced(index, 1, applied.raw) }
}

function keyNamed(name: string, { fields, variableNames }: Section): string | undefined {
  return Object.keys(fields).find(
    (key) => (variableNames[key] ?? key).toUpperCase() === name.toUpperCase(),
  )
}

/** A key that is there keeps its case; a new one is lower-case. */
function existingKey(name: string, mapping: ReadonlyMap<string, Yaml> | undefined): string {
  const keys = [...(mapping?.keys() ?? [])]
  return keys.find((key) => key.toUpperCase() === name.toUpperCase()) ?? name.toLowerCase()
}

function itemsOf(raw: Yaml): readonly Yaml[] {
  if (raw === null || isMapping(raw)) return []
  return isScalar(raw) ? [raw] : raw
}
