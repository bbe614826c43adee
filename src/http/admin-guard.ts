// Keeps web pages away from the admin API where it is reached over TCP. A browser on a machine that reaches the debug
// listener would send requests for any page that asks it to: such requests say so in their headers, or name a host
// that is not ours (DNS rebinding), or cannot have the content type that is demanded.

import { isIP } from 'node:net'
import type { MiddlewareHandler } from 'hono'
import type { ListenAddress } from './listener.ts'

/** @param listen operators may call it by this host, besides addresses, `localhost` and names without a dot */
export function adminGuard(listen: ListenAddress): MiddlewareHandler {
  const ownHost = 'host' in listen ? listen.host?.toLowerCase() : undefined
  return async (c, next) => {
    if (c.req.header('origin') !== undefined || c.req.header('sec-fetch-site') !== undefined) {
      return c.json({ error: 'the admin API is not for web pages' }, 403)
    }
    const host = hostIn(c.req.header('host'))
    if (!isTrusted(host, ownHost)) {
      const error = `refused for the host ${host.slice(0, 255)}: use an address instead of a name, or the command line`
      return c.json({ error }, 403)
    }
    await next()
    return undefined
  }
}

/** Without the port, and without the brackets of IPv6. */
function hostIn(header = ''): string {
  return header
    .replace(/:\d+$/, '')
    .replace(/^\[(.*)\]$/, '$1')
    .toLowerCase()
}

/** Nobody else can make these lead here: names without a dot are looked up in the local network only. */
function isTrusted(host: string, ownHost: string | undefined): boolean {
  if (isIP(host) !== 0 || host === ownHost) return true
  return /^[a-z\d_-]+$/.test(host) || host.endsWith('.localhost')
}
