// Asks a server through its admin socket, as the commands do.

import { request, type IncomingMessage } from 'node:http'
import { join } from 'node:path'
import type { PurgeItem, PurgeSummary } from '../../src/cache/upkeep/purge-run.ts'
import { askAdmin, type AdminQuestion } from '../../src/http/admin-client.ts'
import { waitFor, within } from './wait-for.ts'

export interface AdminAnswer {
  readonly status: number
  readonly text: string
  readonly json: unknown
}

/** What a whole purge told. */
export interface Purged {
  readonly items: readonly PurgeItem[]
  readonly summary: PurgeSummary
}

export function adminSocketOf(rootDirectory: string): string {
  return join(rootDirectory, 'layover/admin.sock')
}

/** @param body makes it a POST */
export async function ask(
  rootDirectory: string,
  path: string,
  body?: Readonly<Record<string, unknown>>,
): Promise<AdminAnswer> {
  const question: AdminQuestion = { method: body ? 'POST' : 'GET', path, body }
  const answer = await within(path, askAdmin(adminSocketOf(rootDirectory), question))
  return read(answer)
}

async function read(answer: IncomingMessage): Promise<AdminAnswer> {
  let text = ''
  for await (const part of answer.setEncoding('utf8')) text += String(part)
  const isLines = answer.headers['content-type'] === 'application/x-ndjson'
  return { status: answer.statusCode ?? 0, text, json: isLines ? undefined : JSON.parse(text) }
}

/** @throws when it is refused, or does not come to its end */
export async function purge(
  rootDirectory: string,
  order: Readonly<Record<string, unknown>>,
): Promise<Purged> {
  const { status, text } = await ask(rootDirectory, '/admin/purge', order)
  if (status !== 200) throw new Error(`the purge was refused: ${status} ${text}`)
  const lines = text.trimEnd().split('\n')
  const last = JSON.parse(lines.at(-1) ?? '{}') as { summary?: PurgeSummary }
  if (!last.summary) throw new Error(`the purge ended early: ${lines.at(-1)}`)
  return {
    items: lines.slice(0, -1).map((line) => JSON.parse(line) as PurgeItem),
    summary: last.summary,
  }
}

/** Waits until the server knows all that is in its volume: then it can tell and remove. */
export async function untilKnown(rootDirectory: string): Promise<void> {
  await waitFor('the volume to be known', async () => {
    const { json } = await ask(rootDirectory, '/admin/status')
    return (json as { isIndexComplete?: boolean }).isIndexComplete === true
  })
}

/** The same over TCP, with any headers. @param url of the page */
export async function askAt(
  url: string,
  {
    body,
    headers = {},
    method = 'GET',
  }: {
    method?: string
    headers?: Readonly<Record<string, string>>
    body?: string
  } = {},
): Promise<AdminAnswer> {
  const answer = await within(
    url,
    new Promise<IncomingMessage>((resolve, reject) => {
      const asking = request(url, { method, headers }, resolve)
      asking.once('error', reject)
      asking.end(body)
    }),
  )
  return read(answer)
}
