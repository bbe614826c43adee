// Programs for tests that speak the protocol of docker-credential-*: small shell scripts in a directory that
// stands for PATH. Each run leaves a line, so that tests can count them.

import { readFile, writeFile } from 'node:fs/promises'
import { join } from 'node:path'
import { makeTempDirectory } from './temp-directory.ts'

export class HelperDirectory {
  readonly path: string

  constructor(path: string) {
    this.path = path
  }

  /** For the process that runs helpers. */
  get environment(): Record<string, string> {
    return { PATH: `${this.path}:/usr/bin:/bin` }
  }

  /**
   * @param script the body of a shell script; `$server` is what was asked about, `$count` which run this is
   * @returns the program's path
   */
  async add(program: string, script: string): Promise<string> {
    const path = join(this.path, program)
    const head = [
      '#!/bin/sh',
      '[ "$1" = get ] || exit 64',
      'server=$(cat)',
      `echo "$server" >> '${path}.runs'`,
      `count=$(wc -l < '${path}.runs' | tr -d ' ')`,
    ]
    await writeFile(path, [...head, script, ''].join('\n'), { mode: 0o755 })
    return path
  }

  /** What each run was asked about. */
  async runs(program: string): Promise<string[]> {
    const text = await readFile(`${join(this.path, program)}.runs`, 'utf8').catch(() => '')
    return text.split('\n').slice(0, -1)
  }
}

export async function makeHelperDirectory(): Promise<HelperDirectory> {
  return new HelperDirectory(await makeTempDirectory())
}

/** A script that answers with a login; shell variables in it are expanded. */
export function answering(username: string, secret: string): string {
  return `printf '{"ServerURL":"%s","Username":"%s","Secret":"%s"}' "$server" "${username}" "${secret}"`
}
