// The admin API: what the commands and operators with curl ask of a server that runs. On the admin socket, and on
// the debug listener; never where clients pull from.
//
//   GET  /admin/status   what it is, and how it is
//   GET  /admin/usage    what takes the space: see UsageReport
//   POST /admin/purge    {image | repository, upstream, unusedFor, dryRun, force} → a line of JSON for each thing that
//                        goes or is kept, and at last one with `summary`, or with `error`
//   POST /admin/scrub    begins to read all stored blobs again

import { Hono, type Context } from 'hono'
import { bodyLimit } from 'hono/body-limit'
import type { Logger } from 'pino'
import type { Administration } from '../cache/upkeep/administration.ts'
import { NotReadyError } from '../cache/upkeep/not-ready.ts'
import type { Purging } from '../cache/upkeep/purge.ts'
import { PurgeRequestError, type PurgeRequest } from '../cache/upkeep/purge-selection.ts'

/** No request needs more. */
const BODY_MAX_BYTES = 16 * 1024

export interface AdminDeps {
  readonly logger: Logger
  readonly administration: Administration
  /** Milliseconds in `7d` or `168h`; undefined for anything else. */
  readonly parseAge: (text: string) => number | undefined
}

interface PurgeOrder {
  readonly request: PurgeRequest
  readonly isDryRun: boolean
}

export function adminApp(deps: AdminDeps): Hono {
  const { administration } = deps
  const app = new Hono().basePath('/admin')
  app.get('/status', (c) => c.json(administration.status))
  app.get('/usage', async (c) => c.json(await administration.usage()))
  app.post('*', bodyLimit({ maxSize: BODY_MAX_BYTES, onError: (c) => tooLarge(c) }))
  app.post('/purge', async (c) => {
    const { isDryRun, request } = await orderIn(c, deps)
    const purging = administration.purge.start(request, { isDryRun })
    return c.body(streamOf(purging, deps.logger), 200, { 'Content-Type': 'application/x-ndjson' })
  })
  app.post('/scrub', async (c) => {
    await jsonIn(c)
    const hasStarted = administration.scrubber.startNow()
    if (hasStarted) return c.json({ scrub: administration.scrubber.status }, 202)
    const { isRunning } = administration.scrubber.status
    const error = isRunning
      ? 'it runs already'
      : 'the volume is still being looked through; try again later'
    return c.json({ error, scrub: administration.scrubber.status }, 409)
  })
  app.notFound((c) =>
    c.json({ error: 'no such page; there are status, usage, purge and scrub' }, 404),
  )
  app.onError((error, c) => failed(c, error, deps.logger))
  return app
}

function tooLarge(c: Context): Response {
  return c.json({ error: `a request has at most ${BODY_MAX_BYTES} bytes` }, 413)
}

function failed(c: Context, error: Error, logger: Logger): Response {
  const { message } = error
  if (error instanceof PurgeRequestError) return c.json({ error: message }, 400)
  if (error instanceof NotReadyError) return c.json({ error: message }, 409)
  logger.error({ err: error }, 'an admin request failed')
  return c.json({ error: message }, 503)
}

/** A line for each item. Who reads them no longer ends the purge. */
function streamOf(purging: Purging, logger: Logger): ReadableStream<Uint8Array> {
  // At once: only what has begun can be ended.
  let first: Promise<Step> | undefined = purging.next()
  first.catch(() => undefined)
  const pull = async (controller: ReadableStreamDefaultController<Uint8Array>): Promise<void> => {
    try {
      const { done, value } = await (first ?? purging.next())
      first = undefined
      const end = value ? { summary: value } : { error: 'the server is stopping' }
      controller.enqueue(lineOf(done ? end : value))
      if (done) controller.close()
    } catch (error) {
      logger.error({ err: error }, 'a purge ended early')
      controller.enqueue(lineOf({ error: error instanceof Error ? error.message : String(error) }))
      controller.close()
    }
  }
  const cancel = async (): Promise<void> => {
    await purging.return(undefined)
  }
  return new ReadableStream({ pull, cancel }, { highWaterMark: 0 })
}

type Step = Awaited<ReturnType<Purging['next']>>

function lineOf(json: unknown): Uint8Array {
  return Buffer.from(`${JSON.stringify(json)}\n`)
}

/** @throws {PurgeRequestError} */
async function orderIn(c: Context, { parseAge }: AdminDeps): Promise<PurgeOrder> {
  const { dryRun, force, image, repository, unusedFor, upstream, ...others } = await jsonIn(c)
  const unknown = Object.keys(others)[0]
  // A misspelt dryRun must not remove anything.
  if (unknown !== undefined) throw new PurgeRequestError(`${unknown}: unknown key`)
  const age = textIn('unusedFor', unusedFor)
  const unusedForMs = age === undefined ? undefined : parseAge(age)
  if (age !== undefined && (unusedForMs === undefined || unusedForMs < 0)) {
    throw new PurgeRequestError('unusedFor: expected a duration such as 7d or 168h')
  }
  return {
    request: {
      image: textIn('image', image),
      repository: textIn('repository', repository),
      upstream: textIn('upstream', upstream),
      unusedForMs,
      isForced: flagIn('force', force),
    },
    isDryRun: flagIn('dryRun', dryRun),
  }
}

/** @throws {PurgeRequestError} */
async function jsonIn(c: Context): Promise<Record<string, unknown>> {
  // What a form on a web page cannot send.
  if (!/^application\/json(?:$|[\s;])/i.test(c.req.header('content-type') ?? '')) {
    throw new PurgeRequestError('expected Content-Type: application/json')
  }
  const text = await c.req.text()
  let json: unknown
  try {
    json = text === '' ? {} : JSON.parse(text)
  } catch {
    throw new PurgeRequestError('expected a JSON object')
  }
  if (typeof json !== 'object' || json === null || Array.isArray(json)) {
    throw new PurgeRequestError('expected a JSON object')
  }
  return json as Record<string, unknown>
}

function textIn(key: string, value: unknown): string | undefined {
  if (value === undefined) return undefined
  if (typeof value === 'string' && value !== '') return value
  throw new PurgeRequestError(`${key}: expected text`)
}

function flagIn(key: string, value: unknown = false): boolean {
  if (typeof value === 'boolean') return value
  throw new PurgeRequestError(`${key}: expected true or false`)
}
