// How the clients keep layers: overlay file systems where the kernel and the temp directory's own file
// system allow it, else plain copies, which work everywhere and are slower.

import { spawnSync } from 'node:child_process'
import type { Workspace } from './workspace.ts'

export function layeredStorage(workspace: Workspace): 'overlay' | 'vfs' {
  const [lower, upper, work, merged] = ['lower', 'upper', 'work', 'merged'].map((name) =>
    workspace.makeDirectory('overlay-probe', name),
  )
  const options = `lowerdir=${lower},upperdir=${upper},workdir=${work}`
  const mount = spawnSync('mount', ['-t', 'overlay', 'overlay', '-o', options, merged ?? ''])
  if (mount.status !== 0) return 'vfs'
  spawnSync('umount', [merged ?? ''])
  return 'overlay'
}
