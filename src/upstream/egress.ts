// The way out: which connection pool a URL is reached through. The process environment is not read here:
// what it says about proxies comes in as options, and is understood as Go programs do (registry:2 is one):
// https_proxy for https only, no_proxy with domains, ports, addresses and CIDR, loopback always direct.
// @see https://pkg.go.dev/golang.org/x/net/http/httpproxy

import { BlockList, isIP } from 'node:net'
import { Agent, ProxyAgent, type Dispatcher } from 'undici'

export interface EnvironmentProxy {
  readonly httpProxy?: string | undefined
  readonly httpsProxy?: string | undefined
  readonly noProxy?: string | undefined
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
  connections: CONNECTIONS_MAX,
  pipelining: 1,
  keepAliveTimeout: KEEP_ALIVE_MS,
  maxHeaderSize: HEADER_SIZE_MAX_BYTES,
} as const

export class Egress {
  readonly #direct = new Agent({ ...POOL_OPTIONS, connect: { timeout: CONNECT_TIMEOUT_MS } })
  readonly #proxies: Readonly<Record<string, ProxyAgent | undefined>>
  readonly #noProxy: string

  constructor({ httpProxy, httpsProxy, noProxy }: EnvironmentProxy) {
    this.#proxies = { 'http:': proxyAgent(httpProxy), 'https:': proxyAgent(httpsProxy) }
    this.#noProxy = noProxy ?? ''
  }

  dispatcherFor(url: URL): Dispatcher {
    const proxy = this.#proxies[url.protocol]
    return proxy && !isDirect(url, this.#noProxy) ? proxy : this.#direct
  }

  /** Ends every connection, with what runs on it. */
  async close(): Promise<void> {
    const all = [this.#direct, ...Object.values(this.#proxies)]
    await Promise.all(all.map(async (dispatcher) => dispatcher?.destroy()))
  }
}

function proxyAgent(proxy: string | undefined): ProxyAgent | undefined {
  if (!proxy) return undefined
  return new ProxyAgent({
    ...POOL_OPTIONS,
    uri: proxy.includes('://') ? proxy : `http://${proxy}`,
    // http goes through as it is: many proxies tunnel to port 443 only.
    proxyTunnel: false,
    proxyTls: { timeout: CONNECT_TIMEOUT_MS },
    requestTls: { timeout: CONNECT_TIMEOUT_MS },
  })
}

/** Whether `noProxy` (as in the environment variable) names the URL's host. */
export function isDirect(url: URL, noProxy: string): boolean {
  const host = url.hostname.replace(/^\[|\]$/g, '')
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
