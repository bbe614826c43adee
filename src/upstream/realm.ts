// Where tokens may be asked for. An upstream names its token endpoint itself; without this rule, whoever
// can answer a request in its place would be sent the credentials (CVE-2026-33540).

import { isIP } from 'node:net'
import { getDomain } from 'tldts'

/**
 * Whether credentials and token requests may go to `realm`: the upstream's own host and port, a host of the
 * same registrable domain, or one that the operator listed; over https, unless the upstream itself is not.
 *
 * @param allowedRealms `host` (on the standard port), `host:port`, or an `https://host/path` prefix
 */
export function isAllowedRealm(
  realm: URL,
  upstream: URL,
  allowedRealms: readonly string[],
): boolean {
  if (
    realm.protocol !== 'https:' &&
    !(realm.protocol === 'http:' && upstream.protocol === 'http:')
  ) {
    return false
  }
  if (realm.username !== '' || realm.password !== '') return false
  if (realm.hostname === upstream.hostname && portOf(realm) === portOf(upstream)) return true
  if (isSameDomain(realm.hostname, upstream.hostname)) return true
  return allowedRealms.some((allowed) => isListed(realm, allowed))
}

/** Without its port. @param allowed an item of `allowedRealms` */
export function hostOfRealm(allowed: string): string {
  const text = allowed.includes('://') ? allowed : `https://${allowed}`
  return URL.canParse(text) ? new URL(text).hostname.replace(/^\[|\]$/g, '') : allowed
}

function portOf(url: URL): string {
  return url.port || (url.protocol === 'https:' ? '443' : '80')
}

/** Private suffixes count: two tenants of one hosting domain are strangers to each other. */
export function isSameDomain(a: string, b: string): boolean {
  if (isAddress(a) || isAddress(b)) return false
  const domain = getDomain(a, { allowPrivateDomains: true })
  return domain !== null && domain === getDomain(b, { allowPrivateDomains: true })
}

function isAddress(hostname: string): boolean {
  return isIP(hostname.replace(/^\[|\]$/g, '')) !== 0 || /(^|\.)localhost\.?$/.test(hostname)
}

function isListed(realm: URL, allowed: string): boolean {
  const isPrefix = allowed.includes('://')
  const text = isPrefix ? allowed : `${realm.protocol}//${allowed}`
  if (!URL.canParse(text)) return false
  const entry = new URL(text)
  if (realm.origin !== entry.origin) return false
  const directory = entry.pathname.endsWith('/') ? entry.pathname : `${entry.pathname}/`
  return `${realm.pathname}/`.startsWith(directory)
}
