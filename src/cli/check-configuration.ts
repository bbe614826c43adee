// `layover check-config`: what a configuration means, or what is wrong with it.

import { formatConfiguration } from '../config/format.ts'
import { load } from './configuration.ts'
import { EXIT_OK, EXIT_USAGE, type CliDeps } from './deps.ts'

export async function checkConfiguration(file: string | undefined, deps: CliDeps): Promise<number> {
  const loaded = await load(file, deps)
  if (!loaded) return EXIT_USAGE
  for (const warning of loaded.warnings) deps.complain(`warning: ${warning}\n`)
  deps.print(formatConfiguration(loaded.configuration))
  return EXIT_OK
}
