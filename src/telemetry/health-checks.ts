// The checks that `health.file`, `health.http` and `health.tcp` configure, with registry's meaning: operators
// use them to take a server out of rotation.

import { access } from 'node:fs/promises'
import { connect } from 'node:net'
import { request } from 'undici'
import type { HealthCheck } from './health.ts'

/** When the configuration does not limit a check; it must end before the next one begins to pile up. */
const TIMEOUT_DEFAULT_MS = 5_000

interface Schedule {
  readonly intervalMs: number
  readonly threshold: number
}

/** Unhealthy while the file exists. */
export function fileCheck({ path, ...schedule }: Schedule & { path: string }): HealthCheck {
  return {
    ...schedule,
    name: `file_${path}`,
    async run() {
      const isThere = await access(path).then(
        () => true,
        () => false,
      )
      if (isThere) throw new Error(`the file ${path} exists`)
    },
  }
}

export interface HttpCheckOptions extends Schedule {
  readonly url: string
  readonly headers: Readonly<Record<string, readonly string[]>>
  readonly expectedStatus: number
  readonly timeoutMs: number | undefined
}

/** Unhealthy unless a HEAD is answered with the expected status. */
export function httpCheck(options: HttpCheckOptions): HealthCheck {
  const { expectedStatus, headers, intervalMs, threshold, url } = options
  const timeoutMs = options.timeoutMs ?? TIMEOUT_DEFAULT_MS
  // Whoever asks how this cache is doing need not know what is in the query, or before the host.
  const { host, pathname, protocol, search } = new URL(url)
  const shown = `${protocol}//${host}${pathname}${search && '?***'}`
  const sent = Object.fromEntries(
    Object.entries(headers).map(([name, values]) => [name, [...values]]),
  )
  return {
    name: `http_${shown}`,
    intervalMs,
    threshold,
    async run() {
      const { body, statusCode } = await request(url, {
        method: 'HEAD',
        headers: sent,
        headersTimeout: timeoutMs,
        bodyTimeout: timeoutMs,
      })
      await body.dump()
      if (statusCode !== expectedStatus) {
        throw new Error(`${shown} answered ${statusCode}, expected ${expectedStatus}`)
      }
    },
  }
}

export interface TcpCheckOptions extends Schedule {
  readonly host: string
  readonly port: number
  readonly timeoutMs: number | undefined
}

/** Unhealthy unless a connection can be made. */
export function tcpCheck({ host, port, ...options }: TcpCheckOptions): HealthCheck {
  const { intervalMs, threshold, timeoutMs = TIMEOUT_DEFAULT_MS } = options
  const address = `${host}:${port}`
  return {
    name: `tcp_${address}`,
    intervalMs,
    threshold,
    run: () =>
      new Promise((resolve, reject) => {
        const socket = connect({ host, port, timeout: timeoutMs })
        const end = (error?: Error): void => {
          socket.destroy()
          if (error) reject(new Error(`${address}: ${error.message}`, { cause: error }))
          else resolve()
        }
        socket.once('connect', () => end())
        socket.once('error', end)
        socket.once('timeout', () => end(new Error('no connection in time')))
      }),
  }
}
