// The way in: a file's text and the environment become a configuration, or every reason why not.
// Pure: who calls reads the file and passes the environment.

import { DOCUMENT } from './document.ts'
import { applyEnvironment, type Environment } from './env.ts'
import { ConfigurationError, Findings } from './findings.ts'
import { toConfiguration } from './normalize.ts'
import type { Configuration } from './schema.ts'
import { isMapping, parseYaml, YamlError, type Yaml } from './yaml.ts'

export { ConfigurationError } from './findings.ts'

export interface ConfigurationSource {
  /** YAML; undefined when there is no file: then defaults and the environment count. */
  readonly text: string | undefined
  /** For messages. */
  readonly path: string
}

export interface LoadedConfiguration {
  readonly configuration: Configuration
  /** One line each, for the log. */
  readonly warnings: readonly string[]
}

/**
 * Reads a `config.yml` of registry:2 or registry:3, or one with our own keys beside theirs, and applies
 * REGISTRY_* variables.
 *
 * @throws {ConfigurationError} with all problems at once
 */
export function loadConfiguration(
  { text, path }: ConfigurationSource,
  environment: Environment,
): LoadedConfiguration {
  const findings = new Findings()
  const file = text === undefined ? new Map() : parseFile(text, path)
  const raw = applyEnvironment(DOCUMENT, file, environment, findings)
  const document = DOCUMENT.read(raw, { path: '', findings, root: DOCUMENT })
  if (text !== undefined && isVersionMissing(file)) {
    findings.problem('version', 'expected 0.1, got nothing')
  }
  const configuration = toConfiguration(document, environment, findings)
  const { problems, warnings } = findings
  if (problems.length > 0) throw new ConfigurationError(path, problems, warnings)
  return { configuration, warnings }
}

function parseFile(text: string, path: string): Yaml {
  try {
    const file = parseYaml(text)
    if (isMapping(file)) return file
  } catch (error) {
    if (!(error instanceof YamlError)) throw error
    throw new ConfigurationError(path, [`${path}: not valid YAML: ${error.message}`])
  }
  throw new ConfigurationError(path, [`${path}: expected a mapping that starts with version: 0.1`])
}

function isVersionMissing(file: Yaml): boolean {
  return isMapping(file) && (file.get('version') ?? '') === ''
}
