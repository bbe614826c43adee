// The digest worker for tests: a real thread, which has to be compiled first (`npm test` does).

import { existsSync } from 'node:fs'
import { onTestFinished } from 'vitest'
import { Digester } from '../../src/storage/digester.ts'

const WORKER_URL = new URL('../../dist/storage/digest-worker.js', import.meta.url)

/**
 * Makes a digester for the running test; its thread ends with it.
 *
 * @throws when the worker has not been compiled
 */
export function makeDigester(): Digester {
  if (!existsSync(WORKER_URL)) throw new Error('the digest worker is missing: run `npm run build`')
  const digester = new Digester({ workerUrl: WORKER_URL })
  onTestFinished(() => digester.close())
  return digester
}
