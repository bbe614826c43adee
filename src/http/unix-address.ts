// Paths of unix sockets. The system takes 107 bytes, and Node cuts a longer one short without a word. A longer path
// is reached through its directory, opened: `/proc/self/fd/<number>/<name>`.

import { open } from 'node:fs/promises'
import path from 'node:path'

/** Of `sun_path`, without the NUL at its end. */
const PATH_MAX_BYTES = 107

/**
 * @param use gets a path that is short enough, which is good until the promise resolves
 * @throws where long paths cannot be had; and what `use` throws
 */
export async function withSocketPath<T>(
  file: string,
  use: (shortPath: string) => Promise<T>,
): Promise<T> {
  if (Buffer.byteLength(file) <= PATH_MAX_BYTES) return use(file)
  const directory = await open(path.dirname(file), 'r')
  try {
    return await use(`/proc/self/fd/${directory.fd}/${path.basename(file)}`)
  } finally {
    await directory.close()
  }
}
