// Stands in front of the upstream registry and counts: most of what the cache promises is about how
// often the upstream is asked. It can also slow bodies down, spoil answers, and disappear.

import { Agent, request as httpRequest, type IncomingMessage, type ServerResponse } from 'node:http'
import { pipeline } from 'node:stream/promises'
import { setTimeout as delay } from 'node:timers/promises'
import { answerInstead, spoiled, type Fault } from './faults.ts'
import { LoopbackServer } from './loopback-server.ts'

export interface CountedRequest {
  readonly method: string
  readonly path: string
  /** Tag or digest; undefined for what is neither a manifest nor a blob. */
  readonly reference: string | undefined
  readonly range: string | undefined
  readonly status: number
  bodyBytes: number
}

/** What decides on a fault. */
export interface FaultyRequest {
  readonly method: string
  readonly path: string
}

const OBJECT_PATH = /^\/v2\/.+\/(?:manifests|blobs)\/([^/?]+)(?:\?|$)/

export class CountingProxy {
  readonly server = new LoopbackServer((request, response) => void this.#forward(request, response))
  readonly #target: string
  readonly #agent = new Agent({ keepAlive: true })
  #requests: CountedRequest[] = []
  /** What one body may send in a second; undefined: as fast as it gets. */
  bodyBytesPerSecond: number | undefined
  /** What is wrong with the answer to a request; undefined: nothing. Refusals and silence are not counted. */
  faultOf: (request: FaultyRequest) => Fault | undefined = () => undefined

  constructor(target: string) {
    this.#target = target
  }

  get requests(): readonly CountedRequest[] {
    return this.#requests
  }

  get bodyBytes(): number {
    return this.#requests.reduce((sum, { bodyBytes }) => sum + bodyBytes, 0)
  }

  /** Forgets what was counted so far. */
  reset(): void {
    this.#requests = []
  }

  /**
   * The paths under which content was sent, by digest (of manifests and blobs alike) or tag. The 401
   * that tells where to get a token, and any other refusal, is not content.
   */
  objectGets(): Map<string, string[]> {
    const gets = new Map<string, string[]>()
    for (const { method, path, reference, status } of this.#requests) {
      if (method !== 'GET' || reference === undefined || status >= 300) continue
      gets.set(reference, [...(gets.get(reference) ?? []), path])
    }
    return gets
  }

  close(): void {
    this.#agent.destroy()
  }

  async #forward(request: IncomingMessage, response: ServerResponse): Promise<void> {
    const { method = '', url: path = '' } = request
    const fault = this.faultOf({ method, path })
    if (answerInstead(fault, response)) return
    try {
      const answer = await this.#ask(request, response)
      const status = answer.statusCode ?? 502
      const counted = this.#count(request, status)
      response.writeHead(status, answer.headers)
      response.flushHeaders()
      await pipeline(
        answer,
        (body: AsyncIterable<Buffer>) => spoiled(fault, body, response),
        (body: AsyncIterable<Buffer>) => this.#pace(body, counted),
        response,
      )
    } catch {
      // One of the two sides is gone: so is the other then, and whoever waits sees a broken connection.
      response.destroy()
    }
  }

  #ask(request: IncomingMessage, response: ServerResponse): Promise<IncomingMessage> {
    return new Promise((resolve, reject) => {
      const { method, headers, url = '/' } = request
      const options = { method, headers, agent: this.#agent }
      const forwarded = httpRequest(`http://${this.#target}${url}`, options, resolve)
      forwarded.once('error', reject)
      response.once('close', () => forwarded.destroy())
      forwarded.end()
    })
  }

  #count({ method = '', url = '', headers }: IncomingMessage, status: number): CountedRequest {
    const reference = OBJECT_PATH.exec(url)?.[1]
    const { range } = headers
    const counted = { method, path: url, reference, range, status, bodyBytes: 0 }
    this.#requests.push(counted)
    return counted
  }

  async *#pace(body: AsyncIterable<Buffer>, counted: CountedRequest): AsyncGenerator<Buffer> {
    for await (const chunk of body) {
      counted.bodyBytes += chunk.length
      yield chunk
      if (this.bodyBytesPerSecond !== undefined) {
        await delay((chunk.length / this.bodyBytesPerSecond) * 1000)
      }
    }
  }
}
