// Where an upstream may send us. It names redirect targets and token realms itself; without this rule, whoever
// can answer in its place reads our network through us (SSRF). The configured host is the operator's choice and
// may be anywhere. Any other has to be at a public address, unless it is the upstream's own, or of its own domain while
// the upstream is itself within the network, or the operator lists the host. Checked is the address that is connected to, at the time it is: names may
// lead elsewhere a moment later. Behind a proxy server names are looked up there: only literal addresses and
// localhost are checked then, and the rest is the proxy's to refuse.

import { lookup as systemLookup, type LookupAddress } from 'node:dns'
import { isIP, type LookupFunction } from 'node:net'
import type { Logger } from 'pino'
import { addressScope, type AddressScope } from './address-scope.ts'
import { isSameDomain } from './realm.ts'
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

export class AddressGuard {
  readonly #options: AddressGuardOptions
  readonly #logger: Logger
  readonly #scopeOf: (address: string) => AddressScope
  readonly #lookup: typeof systemLookup
  /** Where the upstream was when it was last connected to. */
  #ownAddresses: readonly string[] = []
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
    if (this.#admitted(host, [{ address }]).length === 0) throw this.#refusal(host, [address])
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
      if (!first) done(this.#refusal(hostname, found.map(addressOf)), [])
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
      return found.filter(({ address }) => this.#admits(host, address))
    }
    this.#ownAddresses = found.map(({ address }) => address)
    return [...found]
  }

  #admits(host: string, address: string): boolean {
    const { allowPrivateAddresses, allowedHosts } = this.#options
    const scope = this.#scopeOf(address)
    if (scope === 'public') return true
    if (allowedHosts.some((allowed) => matchesHost(host, allowed))) return true
    if (allowPrivateAddresses && (scope === 'private' || scope === 'loopback')) return true
    return this.#isOwn(host, address, scope)
  }

  /** Whether it is the upstream under another name, or, within the network, of its domain; link-local only the former. */
  #isOwn(host: string, address: string, scope: AddressScope): boolean {
    const { ownHostname } = this.#options
    const ownScopes = this.#ownAddresses.map((own) => this.#scopeOf(own))
    if (this.#ownAddresses.includes(address)) return true
    // All of it is this machine.
    if (scope === 'loopback') return ownScopes.includes('loopback')
    const isWithin = ownScopes.some((own) => own !== 'public')
    if (scope !== 'private' || !isWithin || isIP(host) !== 0) return false
    return host.endsWith(`.${ownHostname}`) || isSameDomain(host, ownHostname)
  }

  /** Where it leads is for the log alone: clients need not know our network. */
  #refusal(host: string, addresses: readonly string[]): UpstreamError {
    const { isUntrusted, name, settingsPath } = this.#options
    const address = addresses.join(', ')
    const mayBeAllowed = addresses.some((each) => {
      return ['private', 'loopback'].includes(this.#scopeOf(each))
    })
    const what =
      address === host
        ? `${host}, which is not a public address`
        : `${host}, which is at no public address`
    const remedy = isUntrusted
      ? `give this upstream an entry of its own, or add it to ${settingsPath}.redirecthosts`
      : `add it to ${settingsPath}.redirecthosts (or allowedrealms)` +
        (mayBeAllowed ? `, or set ${settingsPath}.allowprivateaddresses` : '')
    if (this.#warned !== host) {
      this.#warned = host
      const message = `${name} leads to ${what}: if that is right, ${remedy}`
      this.#logger.warn({ upstream: name, host, address }, message)
    }
    const told = `${name} leads to a host at no public address, which the log of the cache names`
    return new UpstreamError('bad-response', `${told}: if that is right, ${remedy}`)
  }
}

function matchesHost(host: string, allowed: string): boolean {
  return allowed.startsWith('*.') ? host.endsWith(allowed.slice(1)) : host === allowed
}

function bare(hostname: string): string {
  return hostname.replace(/^\[|\]$/g, '').replace(/\.$/, '')
}

function addressOf({ address }: LookupAddress): string {
  return address
}
