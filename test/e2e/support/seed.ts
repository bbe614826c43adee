// What random choices of a test follow from, so that a run can be repeated: E2E_SEED=<number> makes other ones.

import process from 'node:process'

export const SEED = Number(process.env['E2E_SEED'] ?? 20_261_121)
