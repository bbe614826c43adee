// Requests as proxies are sent them, `GET http://cache:5000/v2/ HTTP/1.1`: every server has to take them, and the
// authority that stands there counts instead of the Host header (RFC 9112, sections 3.2.2 and 3.2). They are made into
// usual ones before anybody looks at them, so that nothing goes by one host while something else goes by the other.

import type { IncomingMessage } from 'node:http'

/** The authority has no user name, which no such target may have (RFC 9110, section 4.2.4). Then path and query. */
const ABSOLUTE_TARGET = /^https?:\/\/((?:[\w.~-]+|\[[\da-f:.]+\])(?::\d*)?)([/?].*)?$/i

/** What is no such request, or no proper one, stays as it is. */
export function takeAbsoluteTarget(request: IncomingMessage): void {
  const { url = '' } = request
  if (url.startsWith('/')) return
  const [, authority, rest = ''] = ABSOLUTE_TARGET.exec(url) ?? []
  if (authority === undefined) return
  request.url = rest.startsWith('/') ? rest : `/${rest}`
  request.headers.host = authority
  const { rawHeaders } = request
  // Names and values in turn. Hono reads these.
  for (let at = rawHeaders.length - 2; at >= 0; at -= 2) {
    if (rawHeaders[at]?.toLowerCase() === 'host') rawHeaders.splice(at, 2)
  }
  rawHeaders.push('Host', authority)
}
