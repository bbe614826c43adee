// Credentials in files of their own, as orchestrators mount secrets: read again while the process runs, so
// that a rotated password needs no restart.

import { open } from 'node:fs/promises'
import { CredentialsError, loginOf, type Login } from './login.ts'

/** A service account's key is 2 KiB, a docker config.json of a large company a few more. */
const FILE_SIZE_MAX_BYTES = 256 * 1024

/** How soon a changed file is noticed when the old credentials still work; refused ones are read at once. */
export const FILE_LIFETIME_MS = 10_000
/** The same once they were refused: somebody is about to correct them. */
export const REFUSED_FILE_LIFETIME_MS = 1_000

export interface CredentialFiles {
  readonly username: string | undefined
  readonly usernameFile?: string | undefined
  readonly passwordFile: string
}

/** @throws {CredentialsError} */
export async function readLoginFiles(files: CredentialFiles): Promise<Login> {
  const { passwordFile, usernameFile } = files
  const username =
    usernameFile === undefined ? files.username : await readSecret(usernameFile, 'username')
  const login = loginOf(username ?? '', await readSecret(passwordFile, 'password'))
  if (login) return login
  throw new CredentialsError(`${passwordFile} is there, but no username: set one beside it`)
}

/** Without the line break that editors and `echo` leave at the end. */
async function readSecret(path: string, what: string): Promise<string> {
  const text = (await readSmallFile(path)).replace(/\r?\n$/, '')
  if (text === '') throw new CredentialsError(`${path} is empty: it should hold the ${what}`)
  return text
}

/** @throws {CredentialsError} */
export async function readSmallFile(path: string): Promise<string> {
  const bytes = Buffer.alloc(FILE_SIZE_MAX_BYTES + 1)
  let sizeBytes: number
  try {
    const file = await open(path)
    try {
      sizeBytes = await readInto(bytes, (part) => file.read(part))
    } finally {
      await file.close()
    }
  } catch (error) {
    const code = error instanceof Error && 'code' in error ? String(error.code) : 'unknown error'
    throw new CredentialsError(`${path} cannot be read: ${code}`, { cause: error })
  }
  if (sizeBytes <= FILE_SIZE_MAX_BYTES) return bytes.toString('utf8', 0, sizeBytes)
  throw new CredentialsError(
    `${path} is larger than ${FILE_SIZE_MAX_BYTES} bytes: is it the right file?`,
  )
}

async function readInto(
  bytes: Buffer,
  read: (part: Buffer) => Promise<{ bytesRead: number }>,
): Promise<number> {
  let sizeBytes = 0
  while (sizeBytes < bytes.length) {
    const { bytesRead } = await read(bytes.subarray(sizeBytes))
    if (bytesRead === 0) break
    sizeBytes += bytesRead
  }
  return sizeBytes
}
