#!/usr/bin/env node
// The process: arguments, environment and signals in, exit code out. The only file that touches them.

import { readFileSync } from 'node:fs'
import { constants } from 'node:os'
import { fileURLToPath } from 'node:url'
import { setFlagsFromString } from 'node:v8'
import { runCli } from './cli.ts'
import { delay, systemClock } from './clock.ts'
import { openDestination } from './telemetry/log-destination.ts'

/** Ctrl-C reaches all processes of a terminal, and npm hands it on besides: a repeat so soon is the same one. */
const SAME_SIGNAL_MS = 1_000
/** And the signal's number: what a process ended by it exits with. */
const EXIT_BY_SIGNAL = 128
/** The same, of SIGPIPE: nobody reads what is printed. */
const EXIT_UNREAD = 141
/** For whoever reads the logs to take what is left. */
const LAST_LINES_LIMIT_MS = 1_000

// undici's HTTP parser is WebAssembly. To optimize it takes 35 MB for a moment, at the first request, and gains what no
// measurement shows.
setFlagsFromString('--no-wasm-tier-up')
setFlagsFromString('--no-wasm-dynamic-tiering')

const manifestUrl = new URL('../package.json', import.meta.url)
const { version } = JSON.parse(readFileSync(manifestUrl, 'utf8')) as { version: string }
const logDestination = openDestination(2, { isBuffered: false })
const accessDestination = openDestination(1, { isBuffered: true })

const stopRequested = new Promise<string>((resolve) => {
  let askedMs: number | undefined
  for (const signal of ['SIGTERM', 'SIGINT'] as const) {
    process.on(signal, () => {
      const nowMs = systemClock.monotonic()
      askedMs ??= nowMs
      // Whoever asks twice does not want to wait.
      if (nowMs - askedMs > SAME_SIGNAL_MS) void end(EXIT_BY_SIGNAL + constants.signals[signal])
      resolve(signal)
    })
  }
})

async function end(code: number): Promise<never> {
  const ends = Promise.all([accessDestination.end(), logDestination.end()])
  const isRead = await Promise.race([
    ends.then(() => true),
    delay(systemClock, LAST_LINES_LIMIT_MS).then(() => false),
  ])
  // A thread that writes to a pipe that nobody reads would be waited for, whatever else ends.
  if (!isRead) process.kill(process.pid, 'SIGKILL')
  process.exit(code)
}

/** The stream is made when something is printed: a server writes to the descriptor by other means. */
function print(text: string): void {
  if (process.stdout.listenerCount('error') === 0) {
    // Whoever reads it has seen enough: `layover du | head`.
    process.stdout.on('error', () => process.exit(EXIT_UNREAD))
  }
  process.stdout.write(text)
}

const exitCode = await runCli(process.argv.slice(2), {
  clock: systemClock,
  environment: process.env,
  version,
  storageWorkerUrl: new URL('./storage/storage-worker.js', import.meta.url),
  defaultConfigurationPath: fileURLToPath(new URL('../proxy.yml', import.meta.url)),
  print,
  complain: (text) => void process.stderr.write(text),
  logDestination,
  accessDestination,
  stopRequested,
  onBug: (report) => {
    // One request's bug must not end everybody's downloads; what state it left is checked when it is read.
    process.on('unhandledRejection', report)
    process.on('uncaughtException', report)
  },
})
await end(exitCode)
