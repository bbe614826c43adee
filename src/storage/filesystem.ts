// The few things that this program does to a file system, each safe against a crash at any moment and
// against the janitor removing an empty directory at the same time. Failures leave as StorageError, with
// the operation and the path; absence is `undefined` or a silent success, never an error.

import { randomUUID } from 'node:crypto'
import {
  mkdir,
  open,
  readFile,
  readdir,
  realpath,
  rename,
  rm,
  rmdir,
  stat,
  unlink,
  type FileHandle,
} from 'node:fs/promises'
import { constants, mkdirSync, statSync, type Dirent } from 'node:fs'
import path from 'node:path'

/** How to open what is read: without waiting for whoever writes to it, should somebody have put a pipe there. */
export const READ = constants.O_RDONLY | (constants.O_NONBLOCK ?? 0)

/** A small file to be written. */
export interface FileContent {
  readonly file: string
  readonly bytes: Uint8Array | string
}

/** What an operator can do about it. */
const HINTS: Readonly<Record<string, string>> = {
  EACCES:
    'EACCES, it belongs to another user: run as that user, or chown -R the volume to this one',
  EPERM: 'EPERM, it belongs to another user: run as that user, or chown -R the volume to this one',
  ENOSPC: 'ENOSPC, the disk is full: make room, or lower proxy.ttl',
  EDQUOT: 'EDQUOT, the quota of the user is used up: raise it, or lower proxy.ttl',
  EIO: 'EIO, the disk does not work: the kernel log (dmesg) says more',
  EROFS: 'EROFS, the file system is read-only: mount it for writing',
  EMFILE: 'EMFILE, too many open files: raise the limit (ulimit -n)',
}

/** The disk refused. `code` is the system's own word for it: ENOSPC, EIO, EROFS, EMFILE, … */
export class StorageError extends Error {
  override readonly name = 'StorageError'
  readonly operation: string
  readonly path: string
  readonly code: string | undefined

  constructor(operation: string, file: string, cause: unknown) {
    const code = systemCode(cause)
    const reason =
      (code && HINTS[code]) ?? code ?? (cause instanceof Error ? cause.message : String(cause))
    super(`could not ${operation} ${file}: ${reason}`, { cause })
    this.operation = operation
    this.path = file
    this.code = code
  }
}

/** `ENOENT` and its like; undefined for what is not a system error. */
export function systemCode(error: unknown): string | undefined {
  const code = error instanceof Error && 'code' in error ? error.code : undefined
  return typeof code === 'string' ? code : undefined
}

/** ENOTDIR: a parent of the path is a file, so the path cannot exist either. */
export function isAbsent(error: unknown): boolean {
  const code = systemCode(error)
  return code === 'ENOENT' || code === 'ENOTDIR'
}

export async function ensureDirectory(directory: string): Promise<void> {
  try {
    await makeDirectory(directory)
  } catch (error) {
    throw new StorageError('create directory', directory, error)
  }
}

/** Node's own `recursive` says ENOENT for ENOSPC, EIO, EROFS and others, and so hides what is wrong. */
async function makeDirectory(directory: string): Promise<void> {
  try {
    await mkdir(directory)
  } catch (error) {
    const parent = path.dirname(directory)
    if (systemCode(error) === 'ENOENT' && parent !== directory) {
      await makeDirectory(parent)
      await mkdir(directory).catch((again: unknown) => acceptExisting(directory, again))
    } else acceptExisting(directory, error)
  }
}

/** The same where nothing can be awaited. @throws the system's error */
export function makeDirectorySync(directory: string): void {
  try {
    mkdirSync(directory)
  } catch (error) {
    const parent = path.dirname(directory)
    if (systemCode(error) !== 'ENOENT' || parent === directory) {
      acceptExisting(directory, error)
      return
    }
    makeDirectorySync(parent)
    try {
      mkdirSync(directory)
    } catch (again) {
      acceptExisting(directory, again)
    }
  }
}

/** @throws `error`, unless it says that the directory is there: somebody else may have been faster */
function acceptExisting(directory: string, error: unknown): void {
  if (systemCode(error) !== 'EEXIST') throw error
  // Through a symbolic link, too. Pruned meanwhile, it is absent, as the error of stat says.
  if (!statSync(directory).isDirectory()) throw error
}

/** As `ensureDirectory`, for a directory of which nothing is worth keeping: what is in its place has to go. */
export async function ensureOwnDirectory(directory: string): Promise<void> {
  try {
    await ensureDirectory(directory)
  } catch (error) {
    const code = systemCode(error instanceof Error ? error.cause : undefined)
    if (code !== 'EEXIST' && code !== 'ENOTDIR') throw error
    await removeTree(directory)
    await ensureDirectory(directory)
  }
}

/** @returns undefined when the file is not there */
export async function readSmallFile(file: string): Promise<Buffer | undefined> {
  try {
    return await readFile(file)
  } catch (error) {
    if (isAbsent(error)) return undefined
    throw new StorageError('read', file, error)
  }
}

/**
 * Opens a file to write and read it. It is made anew unless its content is to be kept, and its directory with it, should
 * somebody have removed that.
 *
 * @throws the system's error
 */
export async function openFile(
  file: string,
  { keepsContent }: { keepsContent: boolean },
): Promise<FileHandle> {
  if (keepsContent) return open(file, 'r+')
  try {
    return await open(file, 'w+')
  } catch (error) {
    if (!isAbsent(error)) throw error
    await makeDirectory(path.dirname(file))
    return open(file, 'w+')
  }
}

/** Times that a directory may vanish under us before we give up; once is already rare. */
export const MOVE_TRIES_MAX = 20

/** Renames `from` to `to`, making the directory; it may be pruned as empty during any of these steps. */
export async function moveInto(from: string, to: string): Promise<void> {
  for (let tries = 1; ; tries++) {
    try {
      await ensureDirectory(path.dirname(to))
      await rename(from, to)
      return
    } catch (error) {
      if (isAbsent(error) && tries < MOVE_TRIES_MAX) continue
      throw error instanceof StorageError ? error : new StorageError('rename', to, error)
    }
  }
}

/**
 * Removes a large file: it is out of the way at once, though removing it takes a while.
 *
 * @param temporaryDirectory on the same file system
 */
export async function discardFile(file: string, temporaryDirectory: string): Promise<void> {
  const discarded = path.join(temporaryDirectory, randomUUID())
  try {
    await rename(file, discarded)
  } catch (error) {
    // It, or the temporary directory.
    if (isAbsent(error)) return void (await removeFile(file))
    throw new StorageError('remove', file, error)
  }
  await removeFile(discarded)
}

/** @returns false when there was no such file */
export async function removeFile(file: string): Promise<boolean> {
  try {
    await unlink(file)
    return true
  } catch (error) {
    if (isAbsent(error)) return false
    throw new StorageError('remove', file, error)
  }
}

/** @returns when the file or directory was last written to; undefined when it is not there */
export async function modifiedAtMs(file: string): Promise<number | undefined> {
  try {
    return (await stat(file)).mtimeMs
  } catch (error) {
    if (isAbsent(error)) return undefined
    throw new StorageError('stat', file, error)
  }
}

/** Removes a file, or a directory and all that is in it. Nothing there is fine. */
export async function removeTree(target: string): Promise<void> {
  try {
    await rm(target, { recursive: true, force: true })
  } catch (error) {
    if (!isAbsent(error)) throw new StorageError('remove', target, error)
  }
}

/**
 * Removes `directory` and then its parents, as long as they are empty, but never `root` itself.
 * Whoever writes at the same time makes its directory again (see `moveInto`).
 */
export async function pruneEmptyDirectories(directory: string, root: string): Promise<void> {
  for (
    let current = directory;
    current.startsWith(root + path.sep);
    current = path.dirname(current)
  ) {
    try {
      await rmdir(current)
    } catch (error) {
      if (isAbsent(error)) continue
      const code = systemCode(error)
      if (code === 'ENOTEMPTY' || code === 'EEXIST') return
      throw new StorageError('remove directory', current, error)
    }
  }
}

/** @returns where a path leads when all symbolic links are followed; undefined: nowhere, or round in a circle */
export async function realPath(file: string): Promise<string | undefined> {
  try {
    return await realpath(file)
  } catch (error) {
    if (isAbsent(error) || systemCode(error) === 'ELOOP') return undefined
    throw new StorageError('follow', file, error)
  }
}

/** @returns the entries, unsorted; none when the directory is not there */
export async function listDirectory(directory: string): Promise<Dirent[]> {
  try {
    return await readdir(directory, { withFileTypes: true })
  } catch (error) {
    if (isAbsent(error)) return []
    throw new StorageError('list', directory, error)
  }
}
