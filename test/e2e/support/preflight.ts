// Runs once before the first test: says what the tests will not do on this machine, and stops early
// where nothing could work.

import { existsSync } from 'node:fs'
import process from 'node:process'
import { IS_COMPARISON, PROGRAM_PATH } from './cache.ts'
import { leftOutClients } from './clients.ts'
import { leftOutSuite } from './conformance-suite.ts'
import { BUSYBOX_PATH } from './images.ts'
import { isInstalled } from './processes.ts'

const NEEDED_PROGRAMS = [
  'docker-registry',
  'openssl',
  'curl',
  'redis-server',
  'redis-cli',
  'strace',
]

export function setup(): void {
  const missing = NEEDED_PROGRAMS.filter((program) => !isInstalled(program))
  if (!existsSync(BUSYBOX_PATH)) missing.push(`${BUSYBOX_PATH} (busybox-static)`)
  if (missing.length > 0) throw new Error(`not installed: ${missing.join(', ')}`)
  if (!IS_COMPARISON && !existsSync(PROGRAM_PATH))
    throw new Error('nothing to test: run `npm run build` first')
  if (process.getuid?.() !== 0) throw new Error('dockerd and containerd need root')
  for (const line of [...leftOutClients(), ...leftOutSuite()]) process.stderr.write(`${line}\n`)
}
