// A disk that can be filled to the brim: a tmpfs of a few megabytes.

import { spawnSync } from 'node:child_process'
import { rmSync, writeFileSync } from 'node:fs'
import { join } from 'node:path'
import type { Workspace } from './workspace.ts'

export class SmallDisk {
  readonly directory: string
  readonly #filler: string

  constructor(workspace: Workspace, sizeMiB: number) {
    this.directory = workspace.makeDirectory('small-disk')
    this.#filler = join(this.directory, 'filler')
    const options = ['-t', 'tmpfs', '-o', `size=${sizeMiB}m`, 'tmpfs', this.directory]
    const mounted = spawnSync('mount', options, { encoding: 'utf8' })
    if (mounted.status !== 0) throw new Error(`mount: ${mounted.stderr}`)
    workspace.onClose(() => void spawnSync('umount', [this.directory]))
  }

  /** Leaves no room for a single byte. */
  fill(): void {
    writeFileSync(this.#filler, '')
    const dd = ['if=/dev/zero', `of=${this.#filler}`, 'bs=64k']
    const { stderr } = spawnSync('dd', dd, { encoding: 'utf8' })
    if (!stderr.includes('No space left')) throw new Error(`dd: ${stderr}`)
  }

  makeRoom(): void {
    rmSync(this.#filler, { force: true })
  }
}
