// Property tests try the same cases each time: a test that fails now and then is one that nobody believes.
// FAST_CHECK_SEED=<number> tries others.

import process from 'node:process'
import { configureGlobal } from 'fast-check'

const SEED = 20_261_121

configureGlobal({ seed: Number(process.env['FAST_CHECK_SEED'] ?? SEED) })
