// A server of a few lines for one test: remembers every request, answers as the test says, closes with it.

import { createServer, type IncomingMessage, type ServerResponse } from 'node:http'
import type { Server, Socket } from 'node:net'
import { brotliCompressSync, deflateSync, gzipSync } from 'node:zlib'
import { pino, type Logger } from 'pino'
import { onTestFinished } from 'vitest'
import type { Clock } from '../../../src/clock.ts'
import { digestOf } from '../../../src/oci/digest.ts'
import { parseRepositoryName, type RepositoryName } from '../../../src/oci/reference.ts'
import { parseObject, type JsonObject } from '../../../src/upstream/response-body.ts'
import type { RequestObservation } from '../../../src/upstream/transport.ts'
import {
  UpstreamClient,
  type UpstreamDeps,
  type UpstreamOptions,
} from '../../../src/upstream/upstream-client.ts'
import { UpstreamError, type UpstreamErrorKind } from '../../../src/upstream/upstream-error.ts'
import { FakeClock } from '../../support/fake-clock.ts'

export interface Hit {
  readonly method: string
  /** Path and query. */
  readonly path: string
  readonly headers: IncomingMessage['headers']
}

export interface SmallServer {
  readonly url: string
  readonly host: string
  readonly hits: Hit[]
  readonly responses: ServerResponse[]
  /** Every connection there ever was. */
  readonly sockets: Socket[]
  count(prefix: string): number
  /** Gone: connections are refused, and those that are open are dropped. */
  close(): Promise<void>
}

export type Handler = (request: IncomingMessage, response: ServerResponse, hits: Hit[]) => void

/** @param host what it listens on; its URL names 127.0.0.1 */
export async function startServer(handler: Handler, host = '127.0.0.1'): Promise<SmallServer> {
  const hits: Hit[] = []
  const responses: ServerResponse[] = []
  const sockets: Socket[] = []
  const server = createServer((request, response) => {
    hits.push({
      method: request.method ?? '',
      path: request.url ?? '',
      headers: request.headers,
    })
    responses.push(response)
    handler(request, response, hits)
  })
  server.on('connection', (socket) => sockets.push(socket))
  await new Promise<void>((resolve) => server.listen(0, host, resolve))
  const close = (): Promise<void> => {
    for (const socket of sockets) socket.destroy()
    return new Promise<void>((resolve) => server.close(() => resolve()))
  }
  onTestFinished(close)
  const ownHost = hostOf(server)
  return {
    url: `http://${ownHost}`,
    host: ownHost,
    hits,
    responses,
    sockets,
    count: (prefix) => hits.filter(({ path }) => path.startsWith(prefix)).length,
    close,
  }
}

/** `127.0.0.1:<port>` of a server that listens there. */
export function hostOf(server: Server): string {
  const address = server.address()
  if (typeof address !== 'object' || !address) throw new Error('the server does not listen')
  return `127.0.0.1:${address.port}`
}

export function sendJson(response: ServerResponse, body: unknown, status = 200): void {
  response.writeHead(status, { 'content-type': 'application/json' }).end(JSON.stringify(body))
}

export interface TestClient {
  readonly client: UpstreamClient
  readonly clock: FakeClock
  readonly observations: RequestObservation[]
  /** What was logged, parsed. */
  readonly log: JsonObject[]
}

export function makeClient(
  remoteUrl: string,
  options: Partial<UpstreamOptions> = {},
  deps: Partial<Omit<UpstreamDeps, 'clock'>> & { clock?: Clock } = {},
): TestClient {
  const observations: RequestObservation[] = []
  const log: JsonObject[] = []
  const clock = new FakeClock()
  const client = new UpstreamClient(
    {
      clock,
      logger: loggerInto(log),
      onRequest: (observation) => observations.push(observation),
      random: () => 0.5,
      ...deps,
    },
    {
      name: new URL(remoteUrl).host,
      remoteUrl,
      allowedRealms: [],
      environmentProxy: {},
      userAgent: 'layover/1.2.3',
      ...options,
    },
  )
  onTestFinished(() => client.close())
  return { client, clock, observations, log }
}

/** A server, and a client of it. */
export async function startClient(handler: Handler): Promise<TestClient & { server: SmallServer }> {
  const server = await startServer(handler)
  return { server, ...makeClient(server.url) }
}

export function loggerInto(log: JsonObject[]): Logger {
  return pino(
    { level: 'debug' },
    { write: (line: string) => void log.push(parseObject(Buffer.from(line), 'the log')) },
  )
}

export function repositoryOf(text: string): RepositoryName {
  const name = parseRepositoryName(text)
  if (!name) throw new Error(`not a repository name: ${text}`)
  return name
}

/** The error that a call failed with; anything else fails the test. */
export async function failureOf(call: Promise<unknown>): Promise<UpstreamError> {
  const error = await call.then(
    () => undefined,
    (reason: unknown) => reason,
  )
  if (error instanceof UpstreamError) return error
  throw new Error('expected an UpstreamError', { cause: error })
}

export async function kindOf(call: Promise<unknown>): Promise<UpstreamErrorKind> {
  return (await failureOf(call)).kind
}

export const alpine = repositoryOf('library/alpine')
export const content = Buffer.from('0123456789'.repeat(100))
export const digest = digestOf(content)

export const ENCODERS = { gzip: gzipSync, br: brotliCompressSync, deflate: deflateSync }

/** Sends without end, as long as somebody reads. */
export function pour(response: ServerResponse): void {
  if (response.destroyed) return
  response.write(Buffer.alloc(64 * 1024), () => setImmediate(() => pour(response)))
}
