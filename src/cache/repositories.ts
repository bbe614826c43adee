// Which upstream a request is for, and what the repository is called there and here. Clients have many ways to say
// it, and may say it several times: then all must agree. Nothing is guessed.

import type { Logger } from 'pino'
import { LRUCache } from 'lru-cache'
import { parseRepositoryName, type RepositoryName } from '../oci/reference.ts'
import { isDockerHub, parsePathName, type RegistryHost } from '../oci/registry-host.ts'
import { RegistryError } from '../oci/registry-error.ts'
import { ForwardedRegistry } from '../upstream/forwarded-registry.ts'
import type { RemoteRegistry } from '../upstream/remote-registry.ts'
import type { AbsentCode } from './failure.ts'
import type { Upstream } from './upstream.ts'
import type { Upstreams } from './upstreams.ts'

export interface Repository {
  readonly upstream: Upstream
  /** The upstream's, as this request may ask it. */
  readonly registry: RemoteRegistry
  /** By which the client knows the upstream. */
  readonly namespace: RegistryHost | undefined
  /** At the upstream. */
  readonly name: RepositoryName
  /** On disk, and the key of everything remembered about it. */
  readonly storedName: RepositoryName
  /** Through which caches and proxies the request came; undefined when it came from a client. */
  readonly via?: string | undefined
}

/**
 * Who may wait for one answer of the upstream. Of caches that point at each other, the one that asks us may be the one
 * that our question waits for: what came through other caches is asked in its own name, so that the loop shows.
 */
export function sharedKey({ storedName, via }: Repository, what: string): string {
  return via === undefined ? `${storedName} ${what}` : `${storedName} ${what} ${via}`
}

/** What a request says about the registry that it is for; each part may be missing. */
export interface Address {
  /** The upstream that the listener is bound to. */
  readonly bound?: string | undefined
  /** The Host header. */
  readonly host?: string | undefined
  /** What stood before `/v2/`. */
  readonly prefix?: RegistryHost | undefined
  /** The parameter that containerd and BuildKit send. */
  readonly ns?: RegistryHost | undefined
  /** What it says if it is there again and says something else. */
  readonly otherNs?: RegistryHost | undefined
}

/** A refusal, or what is found, for a request that comes from a client; both are remembered. */
type Located = Repository | string

/** Names answered without building an object again. */
const REMEMBERED_MAX = 10_000
/** For messages. */
const SHOWN_LENGTH_MAX = 255

export class Repositories {
  readonly #upstreams: Upstreams
  readonly #logger: Logger
  readonly #remembered = new LRUCache<string, Located>({ max: REMEMBERED_MAX })

  constructor(deps: { upstreams: Upstreams; logger: Logger }) {
    this.#upstreams = deps.upstreams
    this.#logger = deps.logger
  }

  /**
   * @param via through which proxies the request came: sent on
   * @throws {RegistryError} `absentCode`, for what no upstream here has or may have; NAME_INVALID
   */
  locate(
    address: Address,
    name: RepositoryName,
    absentCode: AbsentCode,
    via: string | undefined,
  ): Repository {
    const located = this.#locate(address, name)
    if (typeof located === 'string') {
      throw new RegistryError(absentCode, { detail: { reason: located } })
    }
    if (via === undefined) return located
    return { ...located, via, registry: new ForwardedRegistry(located.upstream.registry, via) }
  }

  /**
   * The upstream that a request without a repository is for; undefined when it says nothing.
   *
   * @throws {RegistryError} NAME_UNKNOWN
   */
  scopeOf(address: Address): Upstream | undefined {
    const said = this.#said(address)
    if (typeof said === 'string') {
      throw new RegistryError('NAME_UNKNOWN', { detail: { reason: said } })
    }
    return said
  }

  #locate(address: Address, name: RepositoryName): Located {
    const key = keyOf(address, name, this.#upstreams.findByHost(address.host)?.name)
    const known = this.#remembered.get(key)
    if (known !== undefined) return known
    const located = this.#find(address, name)
    const isKept = typeof located === 'string' || !located.upstream.isOneOfMany
    if (isKept) this.#remembered.set(key, located)
    return located
  }

  #find(address: Address, given: RepositoryName): Located {
    const said = this.#said(address)
    if (typeof said === 'string') return said
    const slash = given.indexOf('/')
    const first = slash < 0 ? '' : given.slice(0, slash)
    const inPath = this.#inPath(first, address)
    if (inPath && said && inPath !== said) return this.#disagreement(first, said.name)
    const upstream = inPath ?? said ?? this.#upstreams.main
    // No namespace of Docker Hub has a dot.
    if (!inPath && upstream.isDockerHub && first.includes('.')) return unknown(first)
    const rest = inPath ? parseRepositoryName(given.slice(slash + 1)) : given
    // `alpine` is `library/alpine` on Docker Hub, and nowhere else.
    const isOfficial = upstream.isDockerHub && rest && !rest.includes('/')
    const name = isOfficial ? parseRepositoryName(`library/${rest}`) : rest
    const storedName = name && upstream.storedNameOf(name)
    if (!name || !storedName) return `the name ${shown(given)} is too long`
    // After the main upstream's own name, the name of another one's may stand.
    const isOthers = this.#upstreams.nameAt(upstream, storedName) === undefined
    if (isOthers) return notBelow(name, upstream)
    if (!upstream.allows(name)) return `${upstream.name}: ${name} is not allowed here`
    const { namespace, registry } = upstream
    return { upstream, registry, name, storedName, namespace }
  }

  /** The upstream that the name begins with. */
  #inPath(component: string, { ns, prefix }: Address): Upstream | undefined {
    const host = parsePathName(component)
    const upstream = host && this.#upstreams.find(host)
    // A cache of several registries (Harbor) as the main one may have a project of this name.
    const mayBeItsOwn = upstream === this.#upstreams.main && !upstream.isDockerHub
    const isNamedAnyway = ns === host || prefix === host
    if (host && isDockerHub(host) && mayBeItsOwn && !isNamedAnyway) return undefined
    return upstream
  }

  /** What all parts of an address but the name agree on; a text when they don't, or name what is not here. */
  #said({ bound, host, ns, otherNs, prefix }: Address): Upstream | string | undefined {
    if (ns && otherNs) return this.#disagreement(otherNs, ns)
    let agreed = bound === undefined ? undefined : this.#upstreams.byName(bound)
    const named = [this.#upstreams.findByHost(host)]
    for (const registry of [prefix, ns]) {
      if (!registry) continue
      const upstream = this.#upstreams.find(registry)
      if (!upstream) return unknown(registry)
      named.push(upstream)
    }
    for (const upstream of named) {
      if (!upstream) continue
      if (agreed && agreed !== upstream) return this.#disagreement(upstream.name, agreed.name)
      agreed = upstream
    }
    return agreed
  }

  #disagreement(one: string, other: string): string {
    const reason = `the request names ${shown(one)} and ${other}: it is for one registry only`
    this.#logger.warn(
      { reason },
      'a client names two registries at once; check its mirror settings',
    )
    return reason
  }
}

/** None of the parts has a space. Docker's requests have but a name: these cost nothing. */
function keyOf(address: Address, name: RepositoryName, host: string | undefined): string {
  const { bound, ns, otherNs, prefix } = address
  if (!bound && !ns && !otherNs && !prefix && !host) return name
  return [name, bound, ns, otherNs, prefix, host].join(' ')
}

function unknown(registry: string): string {
  return `this cache does not serve the registry ${shown(registry)}`
}

function notBelow(name: RepositoryName, upstream: Upstream): string {
  const [host = ''] = name.split('/', 1)
  return `${upstream.name} is not asked for ${shown(host)}/…, which is another registry's here`
}

function shown(text: string): string {
  return text.slice(0, SHOWN_LENGTH_MAX)
}
