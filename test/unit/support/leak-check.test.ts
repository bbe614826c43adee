// The check that runs after each test file (test/support/leak-check.ts), on files that leave something behind.

import { spawn } from 'node:child_process'
import { createRequire } from 'node:module'
import { dirname, join } from 'node:path'
import process from 'node:process'
import { afterAll, beforeAll, describe, expect, it } from 'vitest'
import { removeDirectory } from '../../support/temp-directory.ts'

const CONFIG = join(import.meta.dirname, '../../fixtures/leaks/vitest.config.ts')
const VITEST = join(
  dirname(createRequire(import.meta.url).resolve('vitest/package.json')),
  'vitest.mjs',
)

interface FileResult {
  readonly name: string
  readonly status: 'passed' | 'failed'
  /** What failed the file itself. */
  readonly message: string
  readonly assertionResults: readonly { readonly failureMessages: readonly string[] }[]
}

/** By name, without folder and ending. */
const results = new Map<string, FileResult>()

beforeAll(async () => {
  const child = spawn(process.execPath, [VITEST, 'run', '--config', CONFIG, '--reporter=json'], {
    stdio: ['ignore', 'pipe', 'ignore'],
  })
  const output: Buffer[] = await child.stdout.toArray()
  const report = JSON.parse(Buffer.concat(output).toString()) as { testResults: FileResult[] }
  for (const result of report.testResults) {
    results.set(/([\w-]+)\.leak\.ts$/.exec(result.name)?.[1] ?? result.name, result)
  }
}, 120_000)

afterAll(async () => {
  const directory = /the directory (\S+)/.exec(results.get('directory')?.message ?? '')?.[1]
  if (directory !== undefined) await removeDirectory(directory)
})

describe('the check for leaks', () => {
  it.each([
    ['server', /^a server, made\n.*server\.leak\.ts/m],
    ['connection', /^a connection, made\n.*connection\.leak\.ts/m],
    ['upstream-connection', /^a connection, made\n.*undici/m],
    ['process', /^a process, made\n.*process\.leak\.ts/m],
    ['thread', /^a thread, made\n.*thread\.leak\.ts/m],
    ['timer', /^a timer, made\n.*timer\.leak\.ts/m],
    ['unref-timer', /^a timer, made\n.*clock\.ts/m],
    ['interval', /^a timer, made\n.*interval\.leak\.ts/m],
    ['open-file', /^an open file: .*spool\.part/m],
    ['directory', /^the directory .*layover-test-/m],
    ['rejection', /^a rejection that nobody handled: Error: nobody handles this/m],
    ['warning', /^a warning: MaxListenersExceededWarning/m],
  ])('fails a file that leaves: %s', (name, leak) => {
    const { message, status } = results.get(name) ?? {}

    expect(status).toBe('failed')
    expect(message).toContain('this file leaves behind:')
    expect(message).toMatch(leak)
  })

  it('fails a test whose cache has left a file in the spool', () => {
    const { assertionResults = [], status } = results.get('spool') ?? {}

    expect(status).toBe('failed')
    expect(assertionResults.flatMap(({ failureMessages }) => failureMessages).join()).toContain(
      'timed out waiting for the spool to be empty',
    )
  })

  it('lets a file pass that leaves nothing, or something that ends soon', () => {
    expect(results.get('none')).toMatchObject({ status: 'passed', message: '' })
  })

  it('was tried with every kind that it looks for', () => {
    expect(results.size).toBe(14)
  })
})
