// How `npm start` starts the program: what package.json says is what tests and benchmarks measure.

import { readFileSync } from 'node:fs'

const { scripts } = JSON.parse(readFileSync(new URL('../../package.json', import.meta.url), 'utf8'))
const words = scripts.start.split(' ')

/** Of Node. */
export const START_FLAGS = words.filter((word) => word.startsWith('--'))

/** By name. */
export const START_ENVIRONMENT = Object.fromEntries(
  words.filter((word) => /^[A-Z_]+=/.test(word)).map((word) => word.split('=')),
)
