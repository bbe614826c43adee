// Volumes as registry leaves them, made by hand: many blobs are there at once.

import { mkdir, writeFile } from 'node:fs/promises'
import { dirname, join } from 'node:path'
import type { TestBlob } from './images.ts'
import { blobFile } from './layover.ts'

/** Bytes, and the link of a repository to them. */
export async function plantBlob(
  root: string,
  name: string,
  { bytes, digest }: TestBlob,
): Promise<void> {
  const link = `docker/registry/v2/repositories/${name}/_layers/${digest.replace(':', '/')}/link`
  for (const [path, content] of [
    [blobFile(digest), bytes],
    [link, digest],
  ] as const) {
    const file = join(root, path)
    await mkdir(dirname(file), { recursive: true })
    await writeFile(file, content)
  }
}
