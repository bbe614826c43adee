// Makes single system calls of a running program fail, as a broken disk or an exhausted limit does: strace is
// attached to it, and answers in the kernel's place.

import { spawn } from 'node:child_process'
import { waitFor } from '../../support/wait-for.ts'
import { fencedEnvironment } from './processes.ts'
import type { Workspace } from './workspace.ts'

export interface SyscallFault {
  /** For example `openat`. */
  readonly call: string
  /** For example `EIO`. */
  readonly error: string
  /** Only calls that name this file, or a descriptor of it. */
  readonly path: string
}

/** Runs `action` while every such call of the program fails. @throws when strace cannot be attached */
export async function withSyscallFault<Result>(
  workspace: Workspace,
  pid: number,
  { call, error, path }: SyscallFault,
  action: () => Promise<Result>,
): Promise<Result> {
  const inject = ['-e', `trace=${call}`, '-e', `inject=${call}:error=${error}`, '-P', path]
  const child = spawn('strace', ['-f', '-p', `${pid}`, ...inject], {
    env: fencedEnvironment(workspace),
    stdio: ['ignore', 'ignore', 'pipe'],
  })
  let said = ''
  child.stderr.setEncoding('utf8').on('data', (text: string) => (said += text))
  const ended = new Promise<void>((resolve) => void child.once('close', () => resolve()))
  child.once('error', (reason) => (said += reason.message))
  try {
    await waitFor(
      'strace to be attached',
      () => {
        if (child.exitCode !== null) throw new Error(`strace has ended: ${said}`)
        return said.includes('attached')
      },
      { deadlineMs: 20_000 },
    )
    return await action()
  } finally {
    // It lets go of the program before it ends.
    child.kill('SIGINT')
    await ended
  }
}
