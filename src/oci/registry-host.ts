// The names of registries: a host, with a port if need be. Parsed once at the edge; what has the type is lower-case,
// is one name for one registry, can stand in a URL as it is, and holds nothing that a path or a log line could be
// broken with.

import { domainToUnicode } from 'node:url'
import { parse } from 'tldts'

/** For example `ghcr.io`, `docker.io` or `registry.corp.example:5000`. */
export type RegistryHost = string & { readonly __brand: 'RegistryHost' }

const LENGTH_MAX = 255
const LABEL = '[a-z\\d](?:[a-z\\d-]*[a-z\\d])?'
/** A name without a dot and without a port could be a part of a repository's name. */
const HOST = new RegExp(
  `^(?:localhost(?::\\d{1,5})?|${LABEL}(?:\\.${LABEL})+(?::\\d{1,5})?|${LABEL}:\\d{1,5})$`,
)

export const DOCKER_HUB = 'docker.io' as RegistryHost
/** What people write for it, the hosts that answer for it among them. */
export const DOCKER_HUB_NAMES: ReadonlySet<string> = new Set([
  DOCKER_HUB,
  'index.docker.io',
  'registry-1.docker.io',
])

/** @returns undefined for what is no host; `docker.io` for all of Docker Hub's names */
export function parseRegistryHost(text: string): RegistryHost | undefined {
  const host = text.toLowerCase()
  if (host.length > LENGTH_MAX || !HOST.test(host) || !isInUrls(host)) return undefined
  return DOCKER_HUB_NAMES.has(host) ? DOCKER_HUB : (host as RegistryHost)
}

/** Not so what looks like IDNA and is none (`xn--a.com`), other ways to write an address (`127.1`), ports without end. */
function isInUrls(host: string): boolean {
  const url = `https://${host}`
  const name = host.replace(/:\d+$/, '')
  return URL.canParse(url) && new URL(url).hostname === name && !isBrokenIdna(name)
}

/** Node 24 has it stand in URLs, which Node 20 does not; but neither can decode it. */
function isBrokenIdna(name: string): boolean {
  const encoded = /(?:^|\.)xn--/
  return encoded.test(name) && encoded.test(domainToUnicode(name))
}

export function isDockerHub(host: RegistryHost): boolean {
  return host === DOCKER_HUB
}

/**
 * Top-level domains in which no public registry can be. The Public Suffix List has some of them.
 *
 * @see https://www.iana.org/assignments/special-use-domain-names
 */
const SPECIAL_USE: ReadonlySet<string> = new Set([
  'alt',
  'arpa',
  'example',
  'internal',
  'invalid',
  'local',
  'localhost',
  'onion',
  'test',
])

/** Whether it is a name in the public DNS: not an address, not `localhost`, nothing below `.internal`, no port. */
export function isPublicName(host: RegistryHost): boolean {
  if (SPECIAL_USE.has(host.slice(host.lastIndexOf('.') + 1))) return false
  const { domain, hostname, isIcann } = parse(host)
  return hostname === host && isIcann === true && domain !== null
}

/** @param pattern a host; `*` for any public name, `*.domain` for all below one */
export function matchesHost(pattern: string, host: RegistryHost): boolean {
  if (pattern === '*') return isPublicName(host)
  return pattern.startsWith('*') ? host.endsWith(pattern.slice(1)) : host === pattern
}

/** As a component of a repository's name, which has no place for a colon; no host has an underscore. */
export function pathNameOf(host: RegistryHost): string {
  return host.replace(':', '_')
}

/** @returns the host that a component of a name, or of a path, stands for */
export function parsePathName(component: string): RegistryHost | undefined {
  return parseRegistryHost(component.replace(/_(?=\d{1,5}$)|%3A(?=\d{1,5}$)/i, ':'))
}
