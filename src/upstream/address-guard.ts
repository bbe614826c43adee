// Where an upstream may send us. It names redirect targets and token realms itself; without this rule, whoever
// can answer in its place reads our network through us (SSRF). The configured host is the operator's choice and
// may be anywhere. Any other has to be at a public address, unless the upstream is itself within the network,
// or the operator lists the host. Checked is the address that is connected to, at the time it is: names may
// lead elsewhere a moment later. Behind a proxy server names are looked up there: only literal addresses and
// localhost are checked then, and the rest is the proxy's to refuse.

import { lookup as systemLookup, type LookupAddress } from 'node:dns'
import { isIP, type LookupFunction } from 'node:net'
import type { Logger } from 'pino'
import { addressScope, type AddressScope } from './address-scope.ts'
import { UpstreamError } from './upstream-error.ts'

export interface AddressGuardOptions {
  /** The upstream's, for messages. */
  readonly name: string
  /** Where the operator's settings for it are, for messages. */
  readonly settingsPath: string
  /** Of the upstream's URL. */
  readonly ownHostname: string
  /** Named by a client, not by the operator: then it has to be public as well. */
  readonly isUntrusted: boolean
  /** Any host may be at a private or loopback address. */
  readonly allowPrivateAddresses: boolean
  /** Hosts that may be anywhere: `host`, or `*.host` for all below it. */
  readonly allowedHosts: readonly string[]
}

export interface AddressGuardDeps {
  readonly logger: Logger
  /** For tests, which have loopback addresses only. */
  readonly scopeOf?: ((address: string) => AddressScope) | undefined
  /** For tests, which have no names of their own. */
  readonly lookup?: typeof systemLookup | undefined
}

/** What else is within reach where the upstream itself is; link-local addresses never are without being listed. */
const REACHABLE: Readonly<Record<AddressScope, readonly AddressScope[]>> = {
  public: [],
  private: ['private'],
  loopback: ['loopback', 'private'],
  'link-local': ['private'],
  unusable: [],
}

export class AddressGuard {
  readonly #options: AddressGuardOptions
  readonly #logger: Logger
  readonly #scopeOf: (address: string) => AddressScope
  readonly #lookup: typeof systemLookup
  /** Where the upstream was when it was last connected to. */
  #ownScope: AddressScope = 'public'
  /** So that the log says it once, not with each request. */
  #warned: string | undefined

  constructor(deps: AddressGuardDeps, options: AddressGuardOptions) {
    this.#logger = deps.logger
    this.#scopeOf = deps.scopeOf ?? addressScope
    this.#lookup = deps.lookup ?? systemLookup
    this.#options = {
      ...options,
      ownHostname: bare(options.ownHostname),
      allowedHosts: options.allowedHosts.map((host) => bare(host.toLowerCase())),
    }
  }

  /**
   * To be called before a request is sent, however it is sent: addresses in URLs are not looked up.
   *
   * @throws {UpstreamError} bad-response
   */
  check(url: URL): void {
    const host = bare(url.hostname)
    const isLocal = /(^|\.)localhost$/.test(host)
    if (isIP(host) === 0 && !isLocal) return
    const address = isLocal ? '127.0.0.1' : host
    if (this.#admitted(host, [{ address }]).length === 0) throw this.#refusal(host, address)
  }

  /** As `dns.lookup`, without the addresses that must not be connected to. */
  readonly lookup: LookupFunction = (hostname, options, done) => {
    this.#lookup(hostname, { ...options, all: true }, (error, found) => {
      if (error) {
        done(error, [])
        return
      }
      const addresses = this.#admitted(bare(hostname), found)
      const [first] = addresses
      if (!first) done(this.#refusal(hostname, addressesOf(found)), [])
      else if (options.all) done(null, addresses)
      else done(null, first.address, first.family)
    })
  }

  /** Those of a host's addresses that may be connected to. */
  #admitted<Found extends { readonly address: string }>(
    host: string,
    found: readonly Found[],
  ): Found[] {
    const { isUntrusted, ownHostname } = this.#options
    if (host !== ownHostname || isUntrusted) {
      return found.filter(({ address }) => this.#admits(host, this.#scopeOf(address)))
    }
    const scopes = found.map(({ address }) => this.#scopeOf(address))
    this.#ownScope = scopes.find((scope) => scope !== 'public') ?? 'public'
    return [...found]
  }

  #admits(host: string, scope: AddressScope): boolean {
    const { allowPrivateAddresses, allowedHosts } = this.#options
    if (scope === 'public') return true
    if (allowedHosts.some((allowed) => matchesHost(host, allowed))) return true
    if (allowPrivateAddresses && (scope === 'private' || scope === 'loopback')) return true
    return REACHABLE[this.#ownScope].includes(scope)
  }

  #refusal(host: string, address: string): UpstreamError {
    const { isUntrusted, name, settingsPath } = this.#options
    const what =
      address === host
        ? `${host}, which is not a public address`
        : `${host}, which is at no public address`
    const remedy = isUntrusted
      ? `give this upstream an entry of its own, or add it to ${settingsPath}.redirecthosts`
      : `add it to ${settingsPath}.redirecthosts (or allowedrealms)`
    const message = `${name} leads to ${what}: if that is right, ${remedy}`
    if (this.#warned !== host) {
      this.#warned = host
      this.#logger.warn({ upstream: name, host, address }, message)
    }
    return new UpstreamError('bad-response', message)
  }
}

function matchesHost(host: string, allowed: string): boolean {
  return allowed.startsWith('*.') ? host.endsWith(allowed.slice(1)) : host === allowed
}

function bare(hostname: string): string {
  return hostname.replace(/^\[|\]$/g, '').replace(/\.$/, '')
}

function addressesOf(found: readonly LookupAddress[]): string {
  return found.map(({ address }) => address).join(', ')
}
