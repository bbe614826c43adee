// All upstreams, and which of them a name means. What is not configured is found by nobody, so it is never asked:
// names come from clients.

import { LRUCache } from 'lru-cache'
import type { RepositoryName } from '../oci/reference.ts'
import { DOCKER_HUB, matchesHost, type RegistryHost } from '../oci/registry-host.ts'
import { hostIn, isOwnHost, type HostNames } from './host-names.ts'
import type { Upstream, UpstreamRules } from './upstream.ts'

/**
 * Registries that clients have named and patterns stand for. One that is forgotten ends what it has begun; its idle
 * connections end by themselves.
 */
const NAMED_BY_CLIENTS_MAX = 100

/** An upstream for each registry that it matches. */
export interface UpstreamPattern extends Pick<UpstreamRules, 'ttlMs'> {
  /** `*`, which is for public names only, or `*.host`. */
  readonly pattern: string
  create(host: RegistryHost): Upstream
}

export interface UpstreamsOptions {
  readonly main: Upstream
  /** Whether docker.io may be asked for at the main one, if no other is Docker Hub. */
  readonly mainServesDockerHub: boolean
  readonly others: readonly Upstream[]
  readonly patterns: readonly UpstreamPattern[]
  /** Names of this cache that stand for an upstream. */
  readonly hosts: ReadonlyMap<string, Upstream>
}

export class Upstreams {
  readonly main: Upstream
  /** By them what is stored is told apart. */
  readonly hostNames: HostNames
  readonly #others: ReadonlyMap<RegistryHost, Upstream>
  /** The most special first. */
  readonly #patterns: readonly UpstreamPattern[]
  readonly #hosts: ReadonlyMap<string, Upstream>
  readonly #byPattern = new LRUCache<RegistryHost, Upstream>({ max: NAMED_BY_CLIENTS_MAX })

  constructor({ hosts, main, mainServesDockerHub, others, patterns }: UpstreamsOptions) {
    this.main = main
    this.#others = new Map(
      others.flatMap((each) => (each.namespace ? [[each.namespace, each]] : [])),
    )
    this.#patterns = [...patterns].sort((a, b) => b.pattern.length - a.pattern.length)
    this.#hosts = hosts
    this.hostNames = {
      others: [...this.#others.keys(), ...this.#patterns.map(({ pattern }) => pattern)].sort(),
      main: [main.namespace, mainServesDockerHub ? DOCKER_HUB : undefined].filter(
        (host) => host !== undefined,
      ),
    }
  }

  /** The one that a registry's name means. */
  find(host: RegistryHost): Upstream | undefined {
    const other = this.#others.get(host)
    if (other) return other
    if (this.hostNames.main.includes(host)) return this.main
    return this.#byPattern.get(host) ?? this.#create(host)
  }

  /** The one that the configuration calls so; the main one if none is. */
  byName(name: string): Upstream {
    return [...this.#others.values()].find((other) => other.name === name) ?? this.main
  }

  /** The one that a name of this cache stands for. @param host as in the header, maybe with a port */
  findByHost(host: string | undefined): Upstream | undefined {
    if (this.#hosts.size === 0 || host === undefined) return undefined
    return this.#hosts.get(host.toLowerCase().replace(/\.?(?::\d+)?$/, ''))
  }

  /** How long what is stored under this name is kept when nobody uses it; 0: for ever. */
  ttlMsOf(storedName: RepositoryName | undefined): number {
    const host = storedName === undefined ? undefined : hostIn(storedName)
    if (!host) return this.main.ttlMs
    return (this.#others.get(host) ?? this.#patternFor(host) ?? this.main).ttlMs
  }

  /** All that there are, for how often to look; 0: what it is of never expires. */
  get ttlsMs(): number[] {
    return [this.main, ...this.#others.values(), ...this.#patterns].map(({ ttlMs }) => ttlMs)
  }

  /** What the operator should look at; empty when all is well. */
  get problems(): string[] {
    return this.#all.flatMap(({ name, registry }) => {
      return registry.problems.map((problem) => `upstream ${name}: ${problem}`)
    })
  }

  /** What a stored repository is called by clients that ask this upstream alone; undefined if it is not of it. */
  nameAt(upstream: Upstream, storedName: RepositoryName): string | undefined {
    const { storedPrefix } = upstream
    if (storedPrefix !== '') {
      return storedName.startsWith(storedPrefix) ? storedName.slice(storedPrefix.length) : undefined
    }
    const host = hostIn(storedName)
    // What an upstream has left that is no longer configured is not Docker Hub's, which has no name with a dot.
    if (host?.includes('.') && this.main.isDockerHub) return undefined
    return host && isOwnHost(this.hostNames, host) ? undefined : storedName
  }

  async close(): Promise<void> {
    await Promise.all(this.#all.map(({ registry }) => registry.close()))
  }

  /** That there are now. */
  get #all(): Upstream[] {
    return [this.main, ...this.#others.values(), ...this.#byPattern.values()]
  }

  #create(host: RegistryHost): Upstream | undefined {
    const upstream = this.#patternFor(host)?.create(host)
    if (upstream) this.#byPattern.set(host, upstream)
    return upstream
  }

  #patternFor(host: RegistryHost): UpstreamPattern | undefined {
    return this.#patterns.find(({ pattern }) => matchesHost(pattern, host))
  }
}
