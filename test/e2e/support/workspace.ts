// What a test file has made outside its own memory: a temp directory, processes, mounts. Everything is
// below one directory with a unique name and is gone when the workspace closes, and also when the run is
// interrupted: nothing of a test outlives it.

import { spawnSync } from 'node:child_process'
import { mkdirSync, mkdtempSync, readdirSync, readFileSync, rmSync, writeFileSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { dirname, join } from 'node:path'
import process from 'node:process'
import { afterAll, afterEach } from 'vitest'

const LOG_TAIL_LINES = 80

export class Workspace {
  readonly directory = mkdtempSync(join(tmpdir(), 'layover-e2e-'))
  readonly #closers: (() => Promise<void> | void)[] = []
  readonly #logs = new Map<string, string>()

  path(...parts: string[]): string {
    return join(this.directory, ...parts)
  }

  /** Makes a directory, with its parents. @returns its path */
  makeDirectory(...parts: string[]): string {
    const directory = this.path(...parts)
    mkdirSync(directory, { recursive: true })
    return directory
  }

  /** Writes text, or anything else as JSON (which is YAML too). @returns the file's path */
  writeFile(name: string, content: unknown): string {
    const path = this.path(name)
    mkdirSync(dirname(path), { recursive: true })
    const text = typeof content === 'string' ? content : JSON.stringify(content, undefined, 2)
    writeFileSync(path, `${text.trimEnd()}\n`)
    return path
  }

  /** A file that is shown when a test fails. @returns its path */
  logFile(name: string): string {
    const path = this.path(`${name}.log`)
    this.#logs.set(name, path)
    return path
  }

  /** Runs when the workspace closes, the last one first. */
  onClose(close: () => Promise<void> | void): void {
    this.#closers.push(close)
  }

  /** The ends of all logs, as one text. */
  logTails(): string {
    const tails = [...this.#logs].map(([name, path]) => {
      const lines = readIfThere(path).trimEnd().split('\n')
      return `--- ${name} (last ${LOG_TAIL_LINES} of ${lines.length} lines)\n${lines.slice(-LOG_TAIL_LINES).join('\n')}`
    })
    return `${tails.join('\n')}\n`
  }

  async close(): Promise<void> {
    for (const close of this.#closers.toReversed()) await close()
    this.wipe()
  }

  /** Ends by force whatever is left. Synchronous, so that it can run while the process exits. */
  wipe(): void {
    for (const pid of processesNaming(this.directory)) killIfThere(pid)
    for (const mountPoint of mountsBelow(this.directory)) spawnSync('umount', ['-l', mountPoint])
    rmSync(this.directory, { recursive: true, force: true, maxRetries: 5 })
  }
}

/** Opens a workspace for the test file that calls this, at its top level. */
export function openWorkspace(): Workspace {
  const workspace = new Workspace()
  const wipe = (): void => workspace.wipe()
  process.once('exit', wipe).once('SIGTERM', exit).once('SIGINT', exit).once('SIGHUP', exit)

  afterEach(({ task }) => {
    if (task.result?.state === 'fail') process.stderr.write(workspace.logTails())
  })
  afterAll(async () => {
    await workspace.close()
    process.off('exit', wipe).off('SIGTERM', exit).off('SIGINT', exit).off('SIGHUP', exit)
  })
  return workspace
}

/** dockerd and podman leave mounts behind, for example of network namespaces. Innermost first. */
function mountsBelow(directory: string): string[] {
  return readIfThere('/proc/self/mounts')
    .split('\n')
    .map((line) => line.split(' ')[1] ?? '')
    .filter((mountPoint) => mountPoint.startsWith(`${directory}/`))
    .toReversed()
}

/** Finds by the unique directory in their arguments also what our children started: shims, monitors. */
function processesNaming(directory: string): number[] {
  return readdirSync('/proc')
    .map(Number)
    .filter((pid) => pid > 0 && pid !== process.pid)
    .filter((pid) => readIfThere(`/proc/${pid}/cmdline`).includes(`${directory}/`))
}

function exit(): never {
  process.exit(1)
}

function killIfThere(pid: number): void {
  try {
    process.kill(pid, 'SIGKILL')
  } catch {
    // It ended in the meantime, which is what we want.
  }
}

function readIfThere(path: string): string {
  try {
    return readFileSync(path, 'utf8')
  } catch {
    return ''
  }
}
