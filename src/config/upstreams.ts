// From `proxy` to the upstreams that there are: every rule that involves more than one of their keys. Reports
// through the findings, and never throws.

import { domainToUnicode } from 'node:url'
import type { Document } from './document.ts'
import { childPath, maskSecrets, type Findings } from './findings.ts'
import type { CredentialsConfiguration, TagRule, UpstreamConfiguration } from './schema.ts'

export const DOCKER_HUB_URL = 'https://registry-1.docker.io'
export const DOCKER_HUB = 'docker.io'

/** Docker Hub's names that people write; its registry answers to neither. */
const DOCKER_HUB_ALIAS = /^https?:\/\/(?:index\.)?docker\.io(?:\/v[12])?$/
const DOCKER_HUB_NAME = /^(?:(?:index|registry-1)\.)?docker\.io$/i

/** Nobody's mirror: what Docker Hub has is not to be asked for there. */
const OTHER_REGISTRIES =
  /^(?:ghcr\.io|quay\.io|gcr\.io|.+\.pkg\.dev|registry\.k8s\.io|mcr\.microsoft\.com|public\.ecr\.aws|registry\.gitlab\.com|nvcr\.io)$/

const TTL_MIN_MS = 1_000
/** Registry's. */
const TTL_DEFAULT_MS = 168 * 3_600_000
/** Any public registry that a client names. */
const ANY = '*'

type UpstreamDocument = Document['proxy']['upstreams'][string]
/** What both kinds of places have. */
type CommonDocument = Omit<UpstreamDocument, 'enabled' | 'ttl' | 'tagttl'>
type Defaults = Pick<UpstreamConfiguration, 'ttlMs' | 'tagTtlMs' | 'tagRules'>

/** Where a registry is reached that is known by its name alone. */
export function registryUrlOf(name: string): string {
  return name === DOCKER_HUB ? DOCKER_HUB_URL : `https://${name}`
}

/** `proxy` itself. */
export function defaultUpstreamOf(
  proxy: Document['proxy'],
  findings: Findings,
): UpstreamConfiguration {
  const remoteUrls = defaultUrlsOf(proxy, findings)
  // A file without it is a plain registry's, and what was pushed there no upstream can give back.
  const ttlDefaultMs = proxy.remoteurl.length === 0 ? 0 : TTL_DEFAULT_MS
  const origin = new URL(remoteUrls.at(-1) ?? DOCKER_HUB_URL)
  const isDockerHub = remoteUrls.some(isDockerHubUrl)
  // It counts more than a password beside it, as in distribution.
  const byCommand = execOf(proxy.exec, 'proxy.exec', findings)
  return {
    ...commonOf(proxy, 'proxy', findings),
    ...(byCommand && { credentials: byCommand }),
    name: origin.host,
    remoteUrls,
    isDockerHub,
    servesDockerHub: isDockerHub || !OTHER_REGISTRIES.test(origin.hostname),
    ttlMs: ttlOf(proxy.ttl ?? ttlDefaultMs, 'proxy.ttl', findings),
    tagTtlMs: proxy.tagttl,
    tagRules: tagRulesOf(proxy.tagrules),
  }
}

/** `proxy.upstreams`, those that are enabled. */
export function otherUpstreamsOf(
  proxy: Document['proxy'],
  main: UpstreamConfiguration,
  findings: Findings,
): UpstreamConfiguration[] {
  const found = new Map<string, UpstreamConfiguration>()
  for (const [written, document] of Object.entries(proxy.upstreams)) {
    const path = childPath('proxy.upstreams', written)
    const name = isDockerHubName(written) ? DOCKER_HUB : written.toLowerCase()
    const isMain = name === main.name || (name === DOCKER_HUB && main.isDockerHub)
    if (isMain) findings.problem(path, 'this is proxy.remoteurl; put its keys under proxy itself')
    if (found.has(name))
      findings.problem(path, `stands twice: it is ${maskSecrets(name)} under another name`)
    if (name === ANY && document.enabled === undefined) {
      findings.warning(path, 'has no effect without enabled: true')
    }
    const upstream = otherOf(name, document, { path, main, findings })
    if (document.enabled ?? name !== ANY) found.set(name, upstream)
  }
  checkHosts([main, ...found.values()], findings)
  return [...found.values()]
}

function otherOf(
  name: string,
  document: UpstreamDocument,
  { path, main, findings }: { path: string; main: Defaults; findings: Findings },
): UpstreamConfiguration {
  const isPattern = name.startsWith(ANY)
  if (isPattern && document.remoteurl.length > 0) {
    findings.problem(`${path}.remoteurl`, 'stands for many registries, and has no URL of its own')
  }
  if (isPattern && document.hosts.length > 0) {
    findings.problem(`${path}.hosts`, 'a name of this cache can stand for one registry only')
  }
  const common = commonOf(document, path, findings)
  if (name === ANY && common.credentials) {
    findings.problem(path, 'is for registries without credentials; name those that need them')
  } else if (isPattern && common.credentials && !isByHost(common.credentials)) {
    const message =
      'stands for many registries, and a password is for one; use credentials.helper or ' +
      'credentials.dockerconfig, which have one for each'
    findings.problem(path, message)
  }
  const urls = document.remoteurl.map((url, index) =>
    urlOf(url, childPath(`${path}.remoteurl`, index), findings),
  )
  const ownUrl = registryUrlOf(name)
  if (!isPattern && !isHost(name)) {
    findings.problem(
      path,
      'is no host: its port is too large, or it is neither a name nor an address',
    )
  }
  const ownRules = tagRulesOf(document.tagrules)
  return {
    ...common,
    name,
    remoteUrls: isPattern ? [] : urls.length > 0 ? urls : [ownUrl],
    isDockerHub: name === DOCKER_HUB || urls.some(isDockerHubUrl),
    servesDockerHub: name === DOCKER_HUB,
    ttlMs: document.ttl === undefined ? main.ttlMs : ttlOf(document.ttl, `${path}.ttl`, findings),
    tagTtlMs: document.tagttl ?? main.tagTtlMs,
    tagRules: ownRules.length > 0 ? ownRules : main.tagRules,
  }
}

function commonOf(
  document: CommonDocument,
  path: string,
  findings: Findings,
): Omit<
  UpstreamConfiguration,
  'name' | 'remoteUrls' | 'isDockerHub' | 'servesDockerHub' | keyof Defaults
> {
  if (document.skipverify) {
    const message = 'the certificate is not checked: whoever is in between can read and change all'
    findings.warning(`${path}.skipverify`, message)
  }
  if (Boolean(document.certificate) !== Boolean(document.key)) {
    findings.problem(path, 'certificate and key go together; one of them is missing')
  }
  checkPrivate(document, path, findings)
  return {
    settingsPath: path,
    credentials: credentialsOf(document, path, findings),
    caPaths: document.ca,
    certificatePath: document.certificate,
    keyPath: document.key,
    skipsVerification: document.skipverify ?? false,
    timeoutMs: document.timeout || undefined,
    connectTimeoutMs: document.connecttimeout || undefined,
    connectionsMax: document.maxconnections,
    requestsPerSecond: document.requestspersecond,
    httpProxy: document.httpproxy,
    allow: document.allow,
    deny: document.deny,
    allowedRealms: document.allowedrealms,
    redirectHosts: document.redirecthosts.map((host) => host.toLowerCase()),
    allowsPrivateAddresses: document.allowprivateaddresses ?? false,
    hosts: document.hosts.map((host) => host.toLowerCase()),
  }
}

const UNPROTECTED =
  'clients are not authenticated by this version, so everybody could read it: put an authenticating ' +
  'proxy in front and remove the key, or deny what must not be served'

function checkPrivate(document: CommonDocument, path: string, findings: Findings): void {
  if (document.private) findings.problem(`${path}.private`, UNPROTECTED)
  for (const [pattern, { private: isPrivate }] of Object.entries(document.repositories)) {
    const place = `${childPath(`${path}.repositories`, pattern)}.private`
    if (isPrivate) findings.problem(place, UNPROTECTED)
  }
}

function credentialsOf(
  document: CommonDocument,
  path: string,
  findings: Findings,
): CredentialsConfiguration | undefined {
  const { credentials, password, passwordfile, username, usernamefile } = document
  const found: CredentialsConfiguration[] = []
  const hasPassword = password !== undefined || passwordfile !== undefined
  if (!hasPassword && (username ?? usernamefile) !== undefined) {
    findings.problem(`${path}.password`, 'expected a password, since there is a username')
  }
  if (passwordfile !== undefined) {
    if ((username ?? usernamefile) === undefined) {
      findings.problem(`${path}.username`, 'expected a username, since there is a passwordfile')
    }
    const userFile = usernamefile === undefined ? {} : { usernameFile: usernamefile }
    found.push({ kind: 'files', username, ...userFile, passwordFile: passwordfile })
  }
  if (password !== undefined && passwordfile === undefined) {
    if (username !== undefined) found.push({ kind: 'static', username, password })
    else findings.problem(`${path}.username`, 'expected a username, since there is a password')
  }
  if (password !== undefined && passwordfile !== undefined) {
    findings.problem(`${path}.passwordfile`, 'cannot stand beside password; keep one of them')
  }
  const { dockerconfig, exec, helper } = credentials
  if (dockerconfig !== undefined && dockerconfig !== false) {
    found.push({ kind: 'docker-config', file: dockerconfig === true ? undefined : dockerconfig })
  }
  if (helper !== undefined) found.push({ kind: 'helper', helper })
  const byCommand = execOf(exec, `${path}.credentials.exec`, findings)
  if (byCommand) found.push(byCommand)
  if (found.length > 1) {
    findings.problem(
      `${path}.credentials`,
      'there is more than one source of credentials; keep one',
    )
  }
  return found[0]
}

/** Whoever could have a registry below the domain would get the others' password. */
function isByHost({ kind }: CredentialsConfiguration): boolean {
  return kind === 'docker-config' || kind === 'helper'
}

function execOf(
  { command, lifetime }: CommonDocument['credentials']['exec'],
  path: string,
  findings: Findings,
): CredentialsConfiguration | undefined {
  if (command !== undefined) {
    // As in distribution: without a lifetime what the command said is good for ever, with 0 for one request.
    return { kind: 'exec', command, lifetimeMs: lifetime ?? Number.POSITIVE_INFINITY }
  }
  if (lifetime !== undefined) findings.problem(`${path}.command`, 'expected a command, got nothing')
  return undefined
}

function checkHosts(upstreams: readonly UpstreamConfiguration[], findings: Findings): void {
  const owners = new Map<string, string>()
  for (const { hosts, name } of upstreams) {
    for (const host of hosts) {
      const owner = owners.get(host)
      const message = `${host} stands for ${maskSecrets(owner ?? '')} and for ${maskSecrets(name)}; it can stand for one of them`
      if (owner !== undefined) findings.problem('proxy.upstreams', message)
      owners.set(host, name)
    }
  }
}

function tagRulesOf(rules: Readonly<Record<string, number>>): TagRule[] {
  return Object.entries(rules).map(([pattern, ttlMs]) => ({ pattern, ttlMs }))
}

/** A ttl of some microseconds empties the cache it is meant for: `ttl: 3600` is nanoseconds in distribution. */
export function ttlOf(ms: number, path: string, findings: Findings): number {
  if (ms > 0 && ms < TTL_MIN_MS) {
    findings.problem(
      path,
      'expected a second or more; a bare number counts nanoseconds, so write 168h',
    )
  }
  return Math.max(ms, 0)
}

function defaultUrlsOf({ remoteurl: urls, ttl }: Document['proxy'], findings: Findings): string[] {
  const path = 'proxy.remoteurl'
  if (urls.length === 0) {
    const isWrong = findings.hasProblemWithin(path)
    const keeps = ttl === undefined ? ', and nothing expires unless proxy.ttl is set' : ''
    if (!isWrong) findings.warning(path, `not set; Docker Hub, ${DOCKER_HUB_URL}, is used${keeps}`)
    return [DOCKER_HUB_URL]
  }
  return urls.map((url) => urlOf(url, path, findings))
}

function urlOf(url: string, path: string, findings: Findings): string {
  if (DOCKER_HUB_ALIAS.test(url)) {
    findings.warning(path, `${url} is not a registry; ${DOCKER_HUB_URL} is used`)
    return DOCKER_HUB_URL
  }
  if (/^https?:\/\/hub\.docker\.com(?:\/|$)/.test(url)) {
    findings.warning(path, `${url} is a web site; the registry is ${DOCKER_HUB_URL}`)
  } else if (url.endsWith('/v2')) {
    findings.warning(path, `${url} ends with /v2, which is appended to it anyway`)
  }
  return url
}

/** What URLs refuse, or write in another way (`127.1`), no client can name. */
function isHost(name: string): boolean {
  const url = `https://${name}`
  const host = name.replace(/:\d+$/, '')
  return URL.canParse(url) && new URL(url).hostname === host && !isBrokenIdna(host)
}

/** Node 24 has it stand in URLs, which Node 20 does not; but neither can decode it. */
function isBrokenIdna(host: string): boolean {
  const encoded = /(?:^|\.)xn--/
  return encoded.test(host) && encoded.test(domainToUnicode(host))
}

function isDockerHubUrl(url: string): boolean {
  return isDockerHubName(new URL(url).hostname)
}

export function isDockerHubName(host: string): boolean {
  return DOCKER_HUB_NAME.test(host)
}
