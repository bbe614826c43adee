// Configurations as operators have them: a file, variables beside it, or both.

import { existsSync, readFileSync } from 'node:fs'

import { ConfigurationError, loadConfiguration } from '../../../src/config/load.ts'
import type { Configuration } from '../../../src/config/schema.ts'

const FOLDER = new URL('../../fixtures/configs/', import.meta.url)

export interface Outcome {
  readonly configuration: Configuration | undefined
  readonly warnings: readonly string[]
  readonly problems: readonly string[]
}

/** Loads `<name>.yml` with the variables of `<name>.env`; either may be missing. */
export function loadFixture(name: string): Outcome {
  const variables = (read(`${name}.env`) ?? '').split('\n').flatMap((line) => {
    const [, key, value] = /^(\w[^=]*)=(.*)$/.exec(line) ?? []
    return key === undefined ? [] : [[key, value ?? ''] as const]
  })
  return load(read(`${name}.yml`), Object.fromEntries(variables))
}

/** Loads text, and catches the one error that is to be expected. */
export function load(text: string | undefined, environment: Record<string, string> = {}): Outcome {
  try {
    return { ...loadConfiguration({ text, path: 'config.yml' }, environment), problems: [] }
  } catch (error) {
    if (!(error instanceof ConfigurationError)) throw error
    return { configuration: undefined, warnings: error.warnings, problems: error.problems }
  }
}

/** A file with these lines, and all that it needs to be without warnings. */
export function file(...lines: readonly string[]): string {
  const isProxySet = lines.some((line) => line.startsWith('proxy:'))
  const proxy = isProxySet ? [] : ['proxy: {remoteurl: "https://registry.example.com"}']
  return ['version: 0.1', ...lines, ...proxy].join('\n')
}

function read(name: string): string | undefined {
  const url = new URL(name, FOLDER)
  return existsSync(url) ? readFileSync(url, 'utf8') : undefined
}
