// The way out: which connection pool a URL is reached through. The process environment is not read here:
// what it says about proxies comes in as options, and is understood as Go programs do (registry:2 is one):
// https_proxy for https only, no_proxy with domains, ports, addresses and CIDR, loopback always direct.
// @see https://pkg.go.dev/golang.org/x/net/http/httpproxy

import { BlockList, isIP, type LookupFunction } from 'node:net'
import { rootCertificates } from 'node:tls'
import { Agent, ProxyAgent, type Dispatcher, type Pool } from 'undici'
import type { AddressGuard } from './address-guard.ts'
import { poolWithPatientEnds } from './paused-end.ts'

export interface EnvironmentProxy {
  readonly httpProxy?: string | undefined
  readonly httpsProxy?: string | undefined
  readonly noProxy?: string | undefined
}

/** How the upstream is known, and we to it. PEM texts. */
export interface TlsOptions {
  /** Trusted beside the public ones. */
  readonly ca?: readonly string[] | undefined
  readonly certificate?: string | undefined
  readonly key?: string | undefined
  /** Takes any certificate: whoever is in between can read the credentials and change tags. */
  readonly skipsVerification?: boolean | undefined
}

export interface ConnectionOptions {
  /** Default: 64. */
  readonly connectionsMax?: number | undefined
  /** Default: 10 s. */
  readonly connectTimeoutMs?: number | undefined
  readonly tls?: TlsOptions | undefined
}

export interface EgressOptions extends ConnectionOptions {
  readonly environmentProxy: EnvironmentProxy
  /** Of the upstream: our certificate, and leniency with others', are for it alone. */
  readonly ownOrigin: string
}

/** Per host. Enough for every fill of a busy cache; registries answer 429 to many more. */
const CONNECTIONS_MAX = 64

/** A host that does not answer a SYN for so long is down; two more tries still fit the call's budget. */
const CONNECT_TIMEOUT_MS = 10_000

/** Below the idle timeouts of common load balancers (60 s), so that we hang up first. */
const KEEP_ALIVE_MS = 30_000

/** Room for long signed URLs in Location, and for nothing absurd. */
const HEADER_SIZE_MAX_BYTES = 32 * 1024

const POOL_OPTIONS = {
  pipelining: 1,
  keepAliveTimeout: KEEP_ALIVE_MS,
  maxHeaderSize: HEADER_SIZE_MAX_BYTES,
} as const

/** What undici hands to `tls.connect`. */
interface ConnectOptions {
  readonly timeout: number
  readonly ca?: string[]
  readonly cert?: string
  readonly key?: string
  readonly rejectUnauthorized?: boolean
  readonly lookup: LookupFunction
}

/** The ways to hosts that are trusted alike. */
interface Routes {
  readonly direct: Dispatcher
  /** By the URL's protocol. */
  readonly proxied: Readonly<Record<string, Dispatcher | undefined>>
}

export class Egress {
  readonly #own: Routes
  /** To where we are sent on. */
  readonly #others: Routes
  readonly #ownOrigin: string
  readonly #noProxy: string
  readonly #guard: AddressGuard

  constructor(options: EgressOptions, guard: AddressGuard) {
    const { connectTimeoutMs = CONNECT_TIMEOUT_MS, tls } = options
    const others: ConnectOptions = {
      timeout: connectTimeoutMs,
      ...(tls?.ca && tls.ca.length > 0 && { ca: [...rootCertificates, ...tls.ca] }),
      lookup: guard.lookup,
    }
    this.#others = routes(options, others)
    const own: ConnectOptions = {
      ...others,
      ...(tls?.certificate !== undefined && { cert: tls.certificate }),
      ...(tls?.key !== undefined && { key: tls.key }),
      ...(tls?.skipsVerification && { rejectUnauthorized: false }),
    }
    this.#own = routes(options, own)
    this.#ownOrigin = options.ownOrigin
    this.#noProxy = options.environmentProxy.noProxy ?? ''
    this.#guard = guard
  }

  /** @throws {UpstreamError} bad-response for an address that must not be connected to */
  dispatcherFor(url: URL): Dispatcher {
    this.#guard.check(url)
    const { direct, proxied } = url.origin === this.#ownOrigin ? this.#own : this.#others
    const proxy = proxied[url.protocol]
    return proxy && !isDirect(url, this.#noProxy) ? proxy : direct
  }

  /** Ends every connection, with what runs on it. */
  async close(): Promise<void> {
    const all = [this.#own, this.#others].flatMap(({ direct, proxied }) => [
      direct,
      ...Object.values(proxied),
    ])
    await Promise.all(all.map(async (dispatcher) => dispatcher?.destroy()))
  }
}

function routes(options: EgressOptions, connect: ConnectOptions): Routes {
  const { connectionsMax: connections = CONNECTIONS_MAX, environmentProxy } = options
  const { httpProxy, httpsProxy } = environmentProxy
  const limits = { ...POOL_OPTIONS, connections }
  const pools = {
    ...limits,
    // Where plain http goes through a proxy, the options are the way there alone.
    factory: (origin: string | URL, given: Pool.Options) =>
      poolWithPatientEnds(origin, { ...limits, ...given }),
  }
  return {
    direct: new Agent({ ...pools, connect }),
    proxied: {
      'http:': proxyAgent(httpProxy, pools, connect),
      'https:': proxyAgent(httpsProxy, pools, connect),
    },
  }
}

function proxyAgent(
  proxy: string | undefined,
  pools: Agent.Options,
  connect: ConnectOptions,
): ProxyAgent | undefined {
  if (!proxy) return undefined
  // The proxy looks names up.
  const { lookup: _lookup, ...requestTls } = connect
  return new ProxyAgent({
    ...pools,
    uri: proxy.includes('://') ? proxy : `http://${proxy}`,
    // http goes through as it is: many proxies tunnel to port 443 only.
    proxyTunnel: false,
    proxyTls: { timeout: requestTls.timeout },
    requestTls,
  })
}

function hostOf(url: URL): string {
  return url.hostname.replace(/^\[|\]$/g, '')
}

/** Whether `noProxy` (as in the environment variable) names the URL's host. */
export function isDirect(url: URL, noProxy: string): boolean {
  const host = hostOf(url)
  const port = url.port || (url.protocol === 'https:' ? '443' : '80')
  if (host === 'localhost' || isInBlock(host, '127.0.0.0/8') || host === '::1') return true
  return noProxy
    .toLowerCase()
    .split(',')
    .map((entry) => entry.trim())
    .some((entry) => entry !== '' && matches(entry, host, port))
}

function matches(entry: string, host: string, port: string): boolean {
  if (entry === '*') return true
  if (entry.includes('/')) return isInBlock(host, entry)
  const [, name = '', onlyPort] =
    /^\[?(.*?)\]?(?::(\d+))?$/.exec(isIP(entry) ? `[${entry}]` : entry) ?? []
  if (onlyPort !== undefined && onlyPort !== port) return false
  if (isIP(name)) return host === name
  const domain = name.replace(/^\*\./, '.')
  return domain.startsWith('.')
    ? host.endsWith(domain)
    : host === domain || host.endsWith(`.${domain}`)
}

function isInBlock(host: string, block: string): boolean {
  const [network = '', bits] = block.split('/')
  const family = isIP(network)
  if (family === 0 || family !== isIP(host) || !/^\d{1,3}$/.test(bits ?? '')) return false
  if (Number(bits) > (family === 4 ? 32 : 128)) return false
  const type = family === 4 ? 'ipv4' : 'ipv6'
  const list = new BlockList()
  list.addSubnet(network, Number(bits), type)
  return list.check(host, type)
}
