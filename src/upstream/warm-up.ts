// The first request of a process pays for what all others use: undici compiles its parser (WebAssembly), TLS
// reads the root certificates, tldts unpacks its list. Paid here, before anybody waits.

import { Socket } from 'node:net'
import { createSecureContext } from 'node:tls'
import { getDomain } from 'tldts'
import { Client } from 'undici'

/** A connection within the process: answers whatever is written to it. */
class LoopbackConnection extends Socket {
  override _read(): void {}

  override _write(_chunk: Buffer, _encoding: BufferEncoding, done: () => void): void {
    this.push('HTTP/1.1 204 No Content\r\nConnection: close\r\n\r\n')
    done()
  }
}

/** Opens no connection. A failure means no more than that the first request pays after all. */
export async function warmUpHttp(): Promise<void> {
  createSecureContext()
  getDomain('registry-1.docker.io', { allowPrivateDomains: true })
  const client = new Client('http://warm-up.invalid', {
    // Not at once: undici is in the middle of asking.
    connect: (_options, callback) => queueMicrotask(() => callback(null, new LoopbackConnection())),
  })
  try {
    const { body } = await client.request({ method: 'GET', path: '/' })
    await body.dump()
  } finally {
    await client.destroy()
  }
}
