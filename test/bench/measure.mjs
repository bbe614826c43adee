// What a piece of work cost: CPU seconds and memory of a server's process tree, from /proc, and how much
// of the machine others used meanwhile. Wall times are only worth quoting when the latter is small; CPU
// per request or per gigabyte stays usable on a shared machine.

import { readdirSync, readFileSync, writeFileSync } from 'node:fs'
import { setTimeout as sleep } from 'node:timers/promises'

/** USER_HZ: the same on every architecture that Node runs on. */
const TICKS_PER_SECOND = 100
const MEMORY_SAMPLE_MS = 50

function read(file) {
  try {
    return readFileSync(file, 'utf8')
  } catch {
    return '' // The process ended between two looks.
  }
}

/** Fields of /proc/<pid>/stat from the third on (proc(5)), since the second may hold blanks. */
function statFields(pid) {
  const stat = read(`/proc/${pid}/stat`)
  return stat === '' ? undefined : stat.slice(stat.lastIndexOf(')') + 2).split(' ')
}

/** A process and everything it started: nginx works in children of its master. */
export function processTree(pid) {
  const children = new Map()
  for (const entry of readdirSync('/proc')) {
    const parent = /^\d+$/.test(entry) ? statFields(entry)?.[1] : undefined
    if (parent === undefined) continue
    children.set(Number(parent), [...(children.get(Number(parent)) ?? []), Number(entry)])
  }
  const tree = [pid]
  for (let i = 0; i < tree.length; i++) tree.push(...(children.get(tree[i]) ?? []))
  return tree
}

export function cpuSeconds(pids) {
  let ticks = 0
  for (const pid of pids) {
    const fields = statFields(pid)
    if (fields !== undefined) ticks += Number(fields[11]) + Number(fields[12])
  }
  return ticks / TICKS_PER_SECOND
}

function statusMegabytes(pids, key) {
  let kilobytes = 0
  for (const pid of pids) {
    const line = new RegExp(`^${key}:\\s+(\\d+)`, 'm').exec(read(`/proc/${pid}/status`))
    kilobytes += Number(line?.[1] ?? 0)
  }
  return kilobytes / 1024
}

/** Lets the kernel's own high-water mark start anew; where that is not allowed, sampling must do. */
function resetPeakMemory(pids) {
  try {
    for (const pid of pids) writeFileSync(`/proc/${pid}/clear_refs`, '5')
    return true
  } catch {
    return false
  }
}

function machine() {
  const [user, nice, system, idle, iowait, irq, softirq, steal] = read('/proc/stat')
    .split('\n', 1)[0]
    .trim()
    .split(/\s+/)
    .slice(1, 9)
    .map((ticks) => Number(ticks) / TICKS_PER_SECOND)
  return { busy: user + nice + system + irq + softirq, steal, idle: idle + iowait }
}

/** CPU seconds of this process and of the commands it ran to their end (the drivers). */
function ownCpuSeconds() {
  return statFields('self')
    .slice(11, 15)
    .reduce((sum, ticks) => sum + Number(ticks) / TICKS_PER_SECOND, 0)
}

/** Waits, up to a budget for the whole run, until the machine has been idle for a moment. */
export class Patience {
  static #WINDOW_MS = 300
  static #BUSY_CORES_MAX = 0.25
  #leftMs

  constructor(budgetMs) {
    this.#leftMs = budgetMs
  }

  async quiet() {
    do {
      const before = machine()
      await sleep(Patience.#WINDOW_MS)
      const busy = machine().busy - before.busy
      if (busy / (Patience.#WINDOW_MS / 1000) <= Patience.#BUSY_CORES_MAX) return
      this.#leftMs -= Patience.#WINDOW_MS
    } while (this.#leftMs > 0)
  }
}

/**
 * Waits until a server has nothing left to do: docker-registry stores what it proxied after the client
 * has it, and Layover may still be hashing for others.
 *
 * @param active says how many answers the upstream still gives
 * @returns seconds until it became idle; the limit if it did not
 */
export async function untilIdle(pid, active, { limitSeconds = 40 } = {}) {
  const windowMs = 200
  const startedMs = performance.now()
  let idleSinceMs
  for (;;) {
    const windowStartMs = performance.now()
    const before = cpuSeconds(processTree(pid))
    await sleep(windowMs)
    const idle = cpuSeconds(processTree(pid)) - before <= 0.01 && (await active()) === 0
    idleSinceMs = idle ? (idleSinceMs ?? windowStartMs) : undefined
    if (idleSinceMs !== undefined && performance.now() - idleSinceMs >= 2 * windowMs) {
      return (idleSinceMs - startedMs) / 1000
    }
    if (performance.now() - startedMs > limitSeconds * 1000) return limitSeconds
  }
}

/**
 * Does `work` and adds up what it cost.
 *
 * @param servers.pid the server that is measured
 * @param servers.others pids of helpers, which are not foreign load
 * @param afterwards what to wait for besides, still at the server's expense; its result is `settledSeconds`
 */
export async function measure({ pid, others }, work, afterwards = async () => 0) {
  const server = processTree(pid)
  const helpers = others.flatMap(processTree).filter((helper) => !server.includes(helper))
  const exact = resetPeakMemory(server)
  let sampledMb = 0
  const sampler = setInterval(() => {
    sampledMb = Math.max(sampledMb, statusMegabytes(server, 'VmRSS'))
  }, MEMORY_SAMPLE_MS)

  const look = () => ({
    ms: performance.now(),
    machine: machine(),
    server: cpuSeconds(server),
    ours: cpuSeconds(server) + cpuSeconds(helpers) + ownCpuSeconds(),
  })
  try {
    const before = look()
    const result = await work()
    const after = look()
    const settledSeconds = await afterwards()

    const seconds = (after.ms - before.ms) / 1000
    const foreign = after.machine.busy - before.machine.busy - (after.ours - before.ours)
    return {
      ...result,
      settledSeconds,
      cpuSeconds: cpuSeconds(server) - before.server,
      rssMb: exact ? statusMegabytes(server, 'VmHWM') : sampledMb,
      foreignCores: Math.max(0, foreign / seconds),
      stealCores: (after.machine.steal - before.machine.steal) / seconds,
    }
  } finally {
    clearInterval(sampler)
  }
}
