// Names the tests that passed at a second try only: somebody has to look at them, though nobody has to wait. Printed at
// the end, and appended to the file that FLAKY_REPORT names.

import { appendFileSync } from 'node:fs'
import process from 'node:process'
import type { Reporter, TestCase } from 'vitest/node'

export default class FlakyReport implements Reporter {
  readonly #lines: string[] = []

  onTestCaseResult(test: TestCase): void {
    if (test.diagnostic()?.flaky !== true) return
    this.#lines.push(`FLAKY ${test.module.relativeModuleId} ${test.fullName}\n`)
    for (const { message } of test.result().errors ?? []) this.#lines.push(`    ${message}\n`)
  }

  onTestRunEnd(): void {
    const text = this.#lines.join('')
    process.stdout.write(text)
    const file = process.env['FLAKY_REPORT']
    if (file !== undefined) appendFileSync(file, text)
  }
}
