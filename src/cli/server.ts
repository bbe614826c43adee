// Finds the server that runs, by the directory that it serves from, and asks it.

import type { IncomingMessage } from 'node:http'
import path from 'node:path'
import { askAdmin, type AdminQuestion } from '../http/admin-client.ts'
import { adminSocketPath } from '../service.ts'
import { load } from './configuration.ts'
import { EXIT_FAILURE, EXIT_USAGE, type CliDeps } from './deps.ts'

export interface ServerOptions {
  /** The configuration that the server runs with. */
  readonly config?: string
  /** Or its root directory. */
  readonly root?: string
}

/**
 * Asks, and hands on the answer if the server agrees.
 *
 * @param use reads the answer to its end
 * @returns what `use` returns, or the exit code for what went wrong, which has been said
 */
export async function askServer(
  options: ServerOptions,
  question: AdminQuestion,
  deps: CliDeps,
  use: (answer: IncomingMessage) => Promise<number>,
): Promise<number> {
  const root =
    options.root ?? (await load(options.config, deps))?.configuration.storage.rootDirectory
  if (root === undefined) return EXIT_USAGE
  const interrupt = new AbortController()
  void deps.stopRequested.then((signal) => interrupt.abort(new Error(signal)))
  let answer: IncomingMessage
  try {
    answer = await askAdmin(adminSocketPath(root), { ...question, signal: interrupt.signal })
  } catch (error) {
    deps.complain(`${explain(error, path.resolve(root))}\n`)
    return EXIT_FAILURE
  }
  try {
    if (answer.statusCode !== undefined && answer.statusCode < 300) return await use(answer)
    deps.complain(`refused: ${await reasonIn(answer)}\n`)
    return answer.statusCode === 400 ? EXIT_USAGE : EXIT_FAILURE
  } catch (error) {
    deps.complain(`the server broke off: ${messageOf(error)}\n`)
    return EXIT_FAILURE
  }
}

/** Each line of an answer, as JSON. */
export async function* linesIn(answer: IncomingMessage): AsyncGenerator {
  let rest = ''
  for await (const part of answer.setEncoding('utf8')) {
    const lines = (rest + String(part)).split('\n')
    rest = lines.pop() ?? ''
    for (const line of lines) yield JSON.parse(line)
  }
  if (rest !== '') yield JSON.parse(rest)
}

/** The whole answer. */
export async function textIn(answer: IncomingMessage): Promise<string> {
  let text = ''
  for await (const part of answer.setEncoding('utf8')) text += String(part)
  return text
}

async function reasonIn(answer: IncomingMessage): Promise<string> {
  const text = await textIn(answer)
  try {
    return String((JSON.parse(text) as { error?: unknown }).error)
  } catch {
    return `${answer.statusCode} ${text}`
  }
}

function explain(error: unknown, root: string): string {
  const code = error instanceof Error && 'code' in error ? error.code : undefined
  if (code === 'ENOENT' || code === 'ECONNREFUSED' || code === 'ENOTDIR') {
    return (
      `no server runs on ${root}: start it, or name the right directory with --root, ` +
      'or the configuration that it runs with'
    )
  }
  if (code === 'EACCES')
    return `the server on ${root} belongs to another user: run this as that user`
  return `cannot ask the server on ${root}: ${messageOf(error)}`
}

function messageOf(error: unknown): string {
  return error instanceof Error ? error.message : String(error)
}
