// A TCP connection that sends what it is told, byte for byte, and keeps what comes back: for clients that do not
// behave, of which there may be thousands.

import { connect, type Socket } from 'node:net'
import { onTestFinished } from 'vitest'
import { waitFor } from './wait-for.ts'

export class RawConnection {
  /** What has come back so far. */
  received = ''
  /** Whether the connection is over, and how. */
  ending: 'fin' | 'rst' | undefined
  readonly #socket: Socket

  private constructor(url: string) {
    const { hostname, port } = new URL(url)
    this.#socket = connect({ host: hostname, port: Number(port), allowHalfOpen: true })
    this.#socket.setEncoding('latin1').on('data', (text: string) => (this.received += text))
    this.#socket.on('end', () => {
      this.ending ??= 'fin'
      this.#socket.destroy()
    })
    // Also how a connection ends that was closed while we were still sending.
    this.#socket.on('error', () => (this.ending ??= 'rst'))
  }

  /**
   * Opens a connection; it is closed after the test, if not before.
   *
   * @param bytes sent at once
   */
  static async open(url: string, bytes = ''): Promise<RawConnection> {
    const connection = new RawConnection(url)
    if (bytes !== '') connection.send(bytes)
    onTestFinished(() => connection.close())
    await waitFor('a connection', () => !connection.#socket.connecting)
    return connection
  }

  send(bytes: string | Buffer): void {
    if (typeof bytes === 'string') this.#socket.write(bytes, 'latin1')
    else this.#socket.write(bytes)
  }

  /** Sends a GET, and leaves the connection open. */
  get(path: string): void {
    this.send(requestFor(path))
  }

  /** Sends nothing more, and goes on reading. */
  finish(): void {
    this.#socket.end()
  }

  close(): void {
    this.#socket.destroy()
  }

  async ended(): Promise<string> {
    await waitFor('the connection to end', () => this.ending !== undefined)
    return this.received
  }

  async answered(): Promise<string> {
    await waitFor('an answer', () => this.received.includes('\r\n\r\n'))
    return this.received
  }
}

export function requestFor(path: string): string {
  return `GET ${path} HTTP/1.1\r\nHost: layover\r\n\r\n`
}
