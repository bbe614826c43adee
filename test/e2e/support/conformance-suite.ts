// The conformance suite of the OCI distribution specification, as a program that is built elsewhere: the
// variable OCI_CONFORMANCE names it. It is run read-only, and what it found is read from its output.

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
  readonly manifests: readonly string[]
  readonly blobs: readonly string[]
  /** Digests of what something refers to. */
  readonly subjects: readonly string[]
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
  const output = await outputOf(workspace, {
    ...READ_ONLY,
    OCI_REGISTRY: address,
    OCI_RESULTS_DIR: workspace.makeDirectory('conformance'),
    OCI_REPO1: content.repository,
    OCI_RO_DATA_TAGS: content.tags.join(' '),
    OCI_RO_DATA_MANIFESTS: content.manifests.join(' '),
    OCI_RO_DATA_BLOBS: content.blobs.join(' '),
    OCI_RO_DATA_REFERRERS: content.subjects.join(' '),
  })
  const result = readOutput(output)
  if (result.passed.size === 0) throw new Error(`nothing passed:\n${output}`)
  return result
}

/** It fails when a test does: what failed is in its output either way. */
async function outputOf(workspace: Workspace, environment: Environment): Promise<string> {
  try {
    return await run(workspace, SUITE_PATH ?? '', [], environment)
  } catch (error) {
    if (error instanceof CommandError && error.output !== '') return error.output
    throw error
  }
}

const READ_ONLY = {
  OCI_TLS: 'disabled',
  OCI_API_PUSH: 'false',
  OCI_API_BLOBS_DELETE: 'false',
  OCI_API_MANIFESTS_DELETE: 'false',
  OCI_API_TAGS_DELETE: 'false',
}

/** Reads lines such as `  OCI Conformance Test/empty/tag list: Pass`. */
function readOutput(output: string): SuiteResult {
  const [passed, failed] = [new Set<string>(), new Set<string>()]
  for (const [, test = '', status] of output.matchAll(/^ *OCI Conformance Test\/(.+): (\w+)$/gm)) {
    if (status === 'Pass') passed.add(test)
    if (status === 'FAIL' || status === 'Error') failed.add(test)
  }
  for (const test of failed) passed.delete(test)
  return { passed, failed }
}
