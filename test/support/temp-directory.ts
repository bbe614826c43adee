// Directories for tests. Each is new and empty, and gone when its test is over, whatever became of it.

import { chmod, mkdtemp, readdir, rm } from 'node:fs/promises'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { onTestFinished } from 'vitest'

const made = new Set<string>()

/**
 * Makes an empty directory for the running test; it is removed after it.
 *
 * @returns its absolute path
 * @throws when no test is running: in `beforeAll` use `makeDirectory` and remove it yourself
 */
export async function makeTempDirectory(): Promise<string> {
  const directory = await makeDirectory()
  onTestFinished(() => removeDirectory(directory))
  return directory
}

/** The same for hooks and helpers that outlive one test. */
export async function makeDirectory(): Promise<string> {
  const directory = await mkdtemp(join(tmpdir(), 'layover-test-'))
  made.add(directory)
  return directory
}

/** Those that were made here and never removed. */
export function leftDirectories(): string[] {
  return [...made]
}

/** Removes a directory and all that is in it, also where a test took the permissions away. */
export async function removeDirectory(directory: string): Promise<void> {
  made.delete(directory)
  try {
    await rm(directory, { recursive: true, force: true, maxRetries: 3 })
  } catch {
    await makeRemovable(directory)
    await rm(directory, { recursive: true, force: true, maxRetries: 3 })
  }
}

async function makeRemovable(directory: string): Promise<void> {
  await chmod(directory, 0o700)
  for (const entry of await readdir(directory, { withFileTypes: true })) {
    if (entry.isDirectory()) await makeRemovable(join(directory, entry.name))
  }
}
