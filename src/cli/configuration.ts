// Finds and reads the configuration, and says what is wrong with it.

import { readFile } from 'node:fs/promises'
import { ConfigurationError, loadConfiguration, type LoadedConfiguration } from '../config/load.ts'
import type { CliDeps } from './deps.ts'

/** @returns undefined after having said what is wrong */
export async function load(
  file: string | undefined,
  deps: CliDeps,
): Promise<LoadedConfiguration | undefined> {
  const { complain, environment } = deps
  // Empty is unset, as everywhere: `VARIABLE=` in a compose file.
  const named = environment['REGISTRY_CONFIGURATION_PATH'] || undefined
  const path = file ?? named ?? deps.defaultConfigurationPath
  let text: string
  try {
    text = await readFile(path, 'utf8')
  } catch (error) {
    const reason = error instanceof Error ? error.message : String(error)
    complain(`cannot read the configuration ${path}: ${reason}\n`)
    return undefined
  }
  try {
    return loadConfiguration({ text, path }, environment)
  } catch (error) {
    if (!(error instanceof ConfigurationError)) throw error
    complain(`${error.message}\n`)
    // A misspelt key may be the reason.
    for (const warning of error.warnings) complain(`warning: ${warning}\n`)
    return undefined
  }
}
