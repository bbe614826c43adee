// The conformance suite of the OCI distribution specification, as a program that is built beforehand (from
// test/e2e/conformance): the variable OCI_CONFORMANCE names it. It is run read-only, and what it found is read from
// its report.

import { readFile } from 'node:fs/promises'
import { join } from 'node:path'
import process from 'node:process'
import { CommandError, run, type Environment } from './processes.ts'
import type { Workspace } from './workspace.ts'

/** The program; undefined where there is none. */
export const SUITE_PATH: string | undefined = process.env['OCI_CONFORMANCE']

/** One line where the suite is left out, saying what would bring it in. */
export function leftOutSuite(): string[] {
  if (SUITE_PATH !== undefined) return []
  return ['left out: the OCI conformance suite (OCI_CONFORMANCE does not name its program)']
}

/** What the suite is told that it will find. */
export interface ReadOnlyContent {
  readonly repository: string
  readonly tags: readonly string[]
  /** Digests. */
  readonly manifest: string
  readonly blob: string
}

/** Tests by what became of them. One that ran several times counts by its worst run. */
export interface SuiteResult {
  readonly passed: ReadonlySet<string>
  readonly failed: ReadonlySet<string>
}

/** @param address the registry's `host:port` @throws when nothing passed */
export async function runSuite(
  workspace: Workspace,
  address: string,
  content: ReadOnlyContent,
): Promise<SuiteResult> {
  const reports = workspace.makeDirectory('conformance')
  const output = await outputOf(workspace, {
    OCI_TEST_PULL: '1',
    OCI_TEST_CONTENT_DISCOVERY: '1',
    OCI_ROOT_URL: `http://${address}`,
    OCI_NAMESPACE: content.repository,
    OCI_TAG_NAME: content.tags[0] ?? '',
    OCI_TAG_LIST: content.tags.join(','),
    OCI_MANIFEST_DIGEST: content.manifest,
    OCI_BLOB_DIGEST: content.blob,
    OCI_REPORT_DIR: reports,
  })
  const report = await readFile(join(reports, 'junit.xml'), 'utf8').catch(() => '')
  const result = readReport(report)
  if (result.passed.size === 0) throw new Error(`nothing passed:\n${output}`)
  return result
}

/** It fails when a test does: what failed is in its report either way. */
async function outputOf(workspace: Workspace, environment: Environment): Promise<string> {
  try {
    return await run(workspace, SUITE_PATH ?? '', [], environment)
  } catch (error) {
    if (error instanceof CommandError && error.output !== '') return error.output
    throw error
  }
}

/** Reads elements such as `<testcase name="…" classname="…" status="passed" …>`. */
function readReport(report: string): SuiteResult {
  const [passed, failed] = [new Set<string>(), new Set<string>()]
  const cases = report.matchAll(
    /<testcase name="OCI \S+ Conformance Tests ([^"]+)"[^>]* status="(\w+)"/g,
  )
  for (const [, test = '', status] of cases) {
    if (status === 'passed') passed.add(test)
    else if (status !== 'skipped') failed.add(test)
  }
  for (const test of failed) passed.delete(test)
  return { passed, failed }
}
