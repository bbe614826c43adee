// The files that TLS connections to Redis are made with, read when the process starts.

import { readFile } from 'node:fs/promises'

export interface TlsFiles {
  readonly certificatePath: string | undefined
  readonly keyPath: string | undefined
  readonly rootCaPaths: readonly string[]
}

export interface TlsMaterial {
  readonly certificate: string | undefined
  readonly key: string | undefined
  readonly rootCas: string[]
}

/** @throws the system's error, when one of them cannot be read */
export async function readTlsFiles(files: TlsFiles | undefined): Promise<TlsMaterial | undefined> {
  if (!files) return undefined
  const { certificatePath, keyPath, rootCaPaths } = files
  return {
    certificate: await readText(certificatePath),
    key: await readText(keyPath),
    rootCas: await Promise.all(rootCaPaths.map((path) => readFile(path, 'utf8'))),
  }
}

async function readText(path: string | undefined): Promise<string | undefined> {
  return path === undefined ? undefined : readFile(path, 'utf8')
}
