// How `npm start` starts the program: what package.json says is what tests and benchmarks measure.

import { readFileSync } from 'node:fs'
import path from 'node:path'

const { scripts } = JSON.parse(
  readFileSync(path.join(import.meta.dirname, '../../package.json'), 'utf8'),
) as { scripts: { start: string } }
const words = scripts.start.split(' ')

/** Of Node. */
export const START_FLAGS: readonly string[] = words.filter((word) => word.startsWith('--'))

/** `NAME=value` each. */
export const START_VARIABLES: readonly string[] = words.filter((word) => /^[A-Z_]+=/.test(word))
