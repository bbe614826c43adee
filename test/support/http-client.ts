// An HTTP/1.1 client that hides nothing: it reports the bytes that a client is sent, header names as
// written, and how the connection ended. Ordinary clients turn "FIN short of Content-Length" and "RST"
// into one error, and the difference is what decides whether container clients resume.
//
// It reads from the kernel only what is asked for, so that an exchange that nobody reads is a slow client.

import { connect, type Socket } from 'node:net'
import { nextTurn } from './wait-for.ts'

/**
 * How the body ended. `complete`: Content-Length reached, last chunk seen, or there is no body. `fin`,
 * `rst`: the server ended the connection before that (`fin` is also the regular end of a body that has
 * neither length nor chunks). `aborted`: we left.
 */
export type Ending = 'complete' | 'fin' | 'rst' | 'aborted'

export interface RawResponse {
  /** Undefined when the connection ended before a response began. */
  readonly status: number | undefined
  /** Names and values as received, in order. */
  readonly headers: readonly (readonly [name: string, value: string])[]
  /** First value of a header, whatever its case. */
  header(name: string): string | undefined
  readonly body: Buffer
  readonly ending: Ending
  /** What arrived with the body's last bytes and does not belong to it. */
  readonly trailing: Buffer
}

export interface RawRequestOptions {
  readonly method?: string
  readonly headers?: Readonly<Record<string, string>>
  /** Takes at most this many bytes per turn of the event loop. */
  readonly readBytesPerTick?: number
  /** Leaves once this many bytes of the body have arrived. */
  readonly leaveAfterBytes?: number
}

/** Sends one request and reads the response to its end. */
export async function rawGet(
  url: string | URL,
  options: RawRequestOptions = {},
): Promise<RawResponse> {
  return (await openRaw(url, options)).finish()
}

/**
 * Sends one request and returns when the headers have arrived (or the connection has ended).
 *
 * @throws what the connection throws, other than a reset
 */
export async function openRaw(
  url: string | URL,
  options: RawRequestOptions = {},
): Promise<RawExchange> {
  const target = new URL(url)
  const { method = 'GET', headers = {} } = options
  const incoming = new Incoming(target, options.readBytesPerTick)
  const named = Object.keys(headers).some((name) => name.toLowerCase() === 'host')
  const lines = Object.entries(named ? headers : { Host: target.host, ...headers })
  const head = lines.map(([name, value]) => `${name}: ${value}\r\n`).join('')
  incoming.socket.write(`${method} ${target.pathname}${target.search} HTTP/1.1\r\n${head}\r\n`)
  const exchange = new RawExchange(incoming, method, options.leaveAfterBytes)
  await exchange.readHead()
  return exchange
}

/** A response under way. Nothing is read from the connection but by `read` and `finish`. */
export class RawExchange {
  status: number | undefined
  headers: readonly (readonly [string, string])[] = []
  ending: Ending | undefined
  readonly #incoming: Incoming
  readonly #method: string
  readonly #leaveAfterBytes: number
  #readBytes = 0
  #framing: 'length' | 'chunked' | 'close' = 'close'
  /** Bytes left of the body, or of the chunk; what has neither ends with the connection. */
  #left = Infinity

  constructor(incoming: Incoming, method: string, leaveAfterBytes = Infinity) {
    this.#incoming = incoming
    this.#method = method
    this.#leaveAfterBytes = leaveAfterBytes
  }

  header(name: string): string | undefined {
    return this.headers.find(([given]) => given.toLowerCase() === name.toLowerCase())?.[1]
  }

  /** The next `sizeBytes` of the body; fewer only where it ends. */
  async read(sizeBytes: number): Promise<Buffer> {
    const parts: Buffer[] = []
    for (let wanted = sizeBytes; wanted > 0 && this.ending === undefined;) {
      if (this.#readBytes >= this.#leaveAfterBytes) {
        this.leave()
        break
      }
      const part = await this.#readPart(Math.min(wanted, this.#leaveAfterBytes - this.#readBytes))
      parts.push(part)
      wanted -= part.length
      this.#readBytes += part.length
    }
    return Buffer.concat(parts)
  }

  /** Reads what is left of the body and closes the connection; `body` is what this call has read. */
  async finish(): Promise<RawResponse> {
    const body = await this.read(Infinity)
    this.#incoming.socket.destroy()
    return {
      status: this.status,
      headers: this.headers,
      header: (name) => this.header(name),
      body,
      ending: this.ending ?? 'aborted',
      trailing: this.#incoming.takeBuffered(),
    }
  }

  /** Goes away, as a client does that is interrupted. */
  leave({ by = 'fin' }: { by?: 'fin' | 'rst' } = {}): void {
    this.ending ??= 'aborted'
    if (by === 'rst') this.#incoming.socket.resetAndDestroy()
    else this.#incoming.socket.destroy()
  }

  async readHead(): Promise<void> {
    do {
      const head = await this.#incoming.readThrough('\r\n\r\n')
      if (head === undefined) {
        this.ending = this.#incoming.end ?? 'fin'
        return
      }
      const [statusLine = '', ...lines] = head.trimEnd().split('\r\n')
      this.status = Number(/^HTTP\/1\.[01] (\d{3})/.exec(statusLine)?.[1])
      this.headers = lines.map((line) => {
        const colon = line.indexOf(':')
        return [line.slice(0, colon), line.slice(colon + 1).trim()] as const
      })
    } while (this.status >= 100 && this.status < 200)
    this.#frame(this.status)
  }

  #frame(status: number): void {
    const length = this.header('content-length')
    const hasNoBody = this.#method === 'HEAD' || status === 204 || status === 304
    if (!hasNoBody && /chunked/i.test(this.header('transfer-encoding') ?? '')) {
      this.#framing = 'chunked'
      this.#left = 0
    } else if (hasNoBody || length !== undefined) {
      this.#framing = 'length'
      this.#left = hasNoBody ? 0 : Number(length)
      if (this.#left === 0) this.ending = 'complete'
    }
  }

  async #readPart(wanted: number): Promise<Buffer> {
    if (this.#framing === 'chunked' && this.#left === 0) await this.#startChunk()
    if (this.ending !== undefined) return Buffer.alloc(0)
    const part = await this.#incoming.readSome(Math.min(wanted, this.#left))
    this.#left -= part.length
    if (part.length === 0) this.ending = this.#incoming.end ?? 'fin'
    else if (this.#left === 0 && this.#framing === 'length') this.ending = 'complete'
    else if (this.#left === 0) await this.#incoming.readThrough('\r\n')
    return part
  }

  async #startChunk(): Promise<void> {
    const line = await this.#incoming.readThrough('\r\n')
    this.#left = Number.parseInt(line ?? '', 16)
    if (this.#left > 0) return
    const last = line === undefined ? undefined : await this.#incoming.readThrough('\r\n')
    this.ending = last === undefined ? (this.#incoming.end ?? 'fin') : 'complete'
  }
}

/** The bytes that a connection brings, taken from the kernel only while somebody waits for them. */
class Incoming {
  readonly socket: Socket
  /** How the server ended the connection; undefined while it has not. */
  end: 'fin' | 'rst' | undefined
  #buffered: Buffer = Buffer.alloc(0)
  #error: Error | undefined
  #wake: (() => void) | undefined

  constructor({ hostname, port }: URL, readBytesPerTick?: number) {
    const host = hostname.replace(/^\[|\]$/g, '')
    // Data delivered this way passes no stream buffer, which an error would throw away.
    const onread = {
      buffer: Buffer.alloc(Math.min(readBytesPerTick ?? 65_536, 65_536)),
      callback: (sizeBytes: number, buffer: Uint8Array): boolean => {
        this.#buffered = Buffer.concat([this.#buffered, buffer.subarray(0, sizeBytes)])
        this.#wakeUp()
        return false
      },
    }
    this.socket = connect({ host, port: Number(port || 80), noDelay: true, onread })
    this.socket.on('end', () => this.#ended('fin'))
    this.socket.on('close', () => this.#ended('fin'))
    this.socket.on('error', (error: NodeJS.ErrnoException) => {
      // EPIPE: the request met a connection that was reset while it was written.
      if (error.code !== 'ECONNRESET' && error.code !== 'EPIPE') this.#error = error
      this.#ended('rst')
    })
  }

  /** Up to `limitBytes`, at least one; none at the end of the connection. */
  async readSome(limitBytes: number): Promise<Buffer> {
    if (this.#buffered.length === 0) await this.#more()
    const part = this.#buffered.subarray(0, limitBytes)
    this.#buffered = this.#buffered.subarray(part.length)
    return part
  }

  /** Text up to and with `delimiter`; undefined when the connection ends before it. */
  async readThrough(delimiter: string): Promise<string | undefined> {
    for (;;) {
      const at = this.#buffered.indexOf(delimiter)
      if (at >= 0) {
        const text = this.#buffered.toString('latin1', 0, at + delimiter.length)
        this.#buffered = this.#buffered.subarray(at + delimiter.length)
        return text
      }
      if (!(await this.#more())) return undefined
    }
  }

  takeBuffered(): Buffer {
    const buffered = this.#buffered
    this.#buffered = Buffer.alloc(0)
    return buffered
  }

  async #more(): Promise<boolean> {
    // Resuming in the turn that brought data would make libuv report a reset as an ordinary end: it takes
    // a hang-up after a partial read for one.
    await nextTurn()
    const before = this.#buffered.length
    if (this.end === undefined) {
      const woken = new Promise<void>((resolve) => (this.#wake = resolve))
      this.socket.resume()
      await woken
    }
    if (this.#error) throw this.#error
    return this.#buffered.length > before
  }

  #ended(end: 'fin' | 'rst'): void {
    this.end ??= end
    this.#wakeUp()
  }

  #wakeUp(): void {
    this.#wake?.()
    this.#wake = undefined
  }
}
