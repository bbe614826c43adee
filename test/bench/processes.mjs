// Child processes: servers that run until they are stopped, and commands that end by themselves. All are
// ended by their own pid, also when the benchmark itself is interrupted.

import { spawn } from 'node:child_process'
import { closeSync, openSync, readFileSync } from 'node:fs'
import { once } from 'node:events'
import { createServer } from 'node:net'
import { setTimeout as sleep } from 'node:timers/promises'

const STOP_PATIENCE_MS = 10_000
const START_PATIENCE_MS = 20_000

const running = new Set()

/** Starts a server; what it prints goes to a file. It ends with this process at the latest. */
export function startServer(command, args, { logFile, env = {} }) {
  const log = openSync(logFile, 'a')
  const child = spawn(command, args, {
    stdio: ['ignore', log, log],
    env: { ...process.env, ...env },
  })
  closeSync(log)
  track(child)
  return child
}

function track(child) {
  running.add(child)
  child.once('error', () => running.delete(child))
  child.once('exit', () => running.delete(child))
}

/** Resolves once `url` answers 200. Throws with the end of the log if the server does not get there. */
export async function untilItAnswers(child, url, logFile) {
  const deadline = performance.now() + START_PATIENCE_MS
  for (;;) {
    const ended = child.pid === undefined || child.exitCode !== null || child.signalCode !== null
    if (ended || performance.now() > deadline) {
      const tail = readFileSync(logFile, 'utf8').slice(-2000)
      throw new Error(
        `${child.spawnfile} ${ended ? 'ended' : 'does not answer'} at ${url}:\n${tail}`,
      )
    }
    const response = await fetch(url).catch(() => undefined)
    await response?.arrayBuffer()
    if (response?.status === 200) return
    await sleep(20)
  }
}

export async function stopServer(child) {
  if (!running.has(child)) return
  const ended = once(child, 'exit')
  child.kill('SIGTERM')
  const impatient = setTimeout(() => child.kill('SIGKILL'), STOP_PATIENCE_MS)
  await ended
  clearTimeout(impatient)
}

/** For the way out, where nothing can be waited for. */
export function stopAll() {
  for (const child of running) child.kill('SIGTERM')
}

/** Runs a command to its end. Never throws for an exit code: that is the caller's to judge. */
export async function run(command, args, { limitMs = 300_000 } = {}) {
  const child = spawn(command, args, { stdio: ['ignore', 'pipe', 'pipe'], timeout: limitMs })
  track(child)
  let stdout = ''
  let stderr = ''
  child.stdout.on('data', (chunk) => (stdout += chunk))
  child.stderr.on('data', (chunk) => (stderr += chunk))
  const [code] = await once(child, 'close')
  return { code, stdout, stderr }
}

/** A port of 127.0.0.1 that nobody listened on a moment ago. */
export async function freePort() {
  const probe = createServer().listen(0, '127.0.0.1')
  await once(probe, 'listening')
  const { port } = probe.address()
  probe.close()
  await once(probe, 'close')
  return port
}
