// One upstream, as the core sees it: whom to ask, how it is, and the operator's rules for what comes from it.

import { parseRepositoryName, type RepositoryName, type Tag } from '../oci/reference.ts'
import { parsePattern, weightOf, type Pattern } from '../oci/pattern.ts'
import { pathNameOf, type RegistryHost } from '../oci/registry-host.ts'
import { senderIdOf, type SenderId } from '../storage/paths.ts'
import type { OpenRegistry } from '../upstream/remote-registry.ts'
import type { UpstreamHealth } from './upstream-health.ts'

export interface UpstreamRules {
  readonly ttlMs: number
  readonly tagTtlMs: number
  /** Instead of `tagTtlMs`, for tags that match; Infinity for those that never move. */
  readonly tagRules: readonly { readonly pattern: string; readonly ttlMs: number }[]
  /** Patterns of repositories, as the upstream names them. Empty: all. */
  readonly allow: readonly string[]
  /** Counts more than `allow`. */
  readonly deny: readonly string[]
}

export interface UpstreamOptions extends UpstreamRules {
  /** By which clients know it. */
  readonly namespace: RegistryHost | undefined
  readonly isDockerHub: boolean
  /** What it holds is stored under its own name; the main one has names to itself. */
  readonly isMain: boolean
  /** Patterns name the registry too: they stand for many. */
  readonly isOneOfMany?: boolean
  /** For metrics, if not its name: bounded, whatever clients name. */
  readonly label?: string
}

interface TagRule {
  readonly matches: Pattern
  readonly ttlMs: number
}

export class Upstream {
  /** For logs and messages. */
  readonly name: string
  /** For metrics. */
  readonly label: string
  readonly namespace: RegistryHost | undefined
  readonly registry: OpenRegistry
  readonly health: UpstreamHealth
  readonly isDockerHub: boolean
  /** Made for a registry that a client named: there may be any number, so nobody holds on to it. */
  readonly isOneOfMany: boolean
  readonly ttlMs: number
  /** Of the lists of tags too. */
  readonly tagTtlMs: number
  /** What its repositories' names start with here. */
  readonly storedPrefix: string
  readonly #tagRules: readonly TagRule[]
  readonly #allow: readonly Pattern[]
  readonly #deny: readonly Pattern[]
  /** What the names that patterns are for start with. */
  readonly #patternPrefix: string

  /** @throws {TypeError} a rule's pattern is none */
  constructor(
    { health, registry }: { registry: OpenRegistry; health: UpstreamHealth },
    options: UpstreamOptions,
  ) {
    const { isMain, isOneOfMany = false, namespace, tagRules } = options
    this.name = registry.name
    this.label = options.label ?? registry.name
    this.registry = registry
    this.health = health
    this.namespace = namespace
    this.isDockerHub = options.isDockerHub
    this.isOneOfMany = isOneOfMany
    this.ttlMs = options.ttlMs
    this.tagTtlMs = options.tagTtlMs
    const ownPrefix = namespace ? `${pathNameOf(namespace)}/` : ''
    this.storedPrefix = isMain ? '' : ownPrefix
    this.#patternPrefix = isOneOfMany ? ownPrefix : ''
    this.#tagRules = [...tagRules]
      .sort((a, b) => weightOf(b.pattern) - weightOf(a.pattern))
      .map(({ pattern, ttlMs }) => ({ matches: patternOf(pattern), ttlMs }))
    this.#allow = options.allow.map(patternOf)
    this.#deny = options.deny.map(patternOf)
  }

  /** How long the tag is answered without a question. */
  ttlMsOfTag(tag: Tag): number {
    return this.#tagRules.find(({ matches }) => matches(tag))?.ttlMs ?? this.tagTtlMs
  }

  /** Whether the operator lets clients have this repository. */
  allows(name: RepositoryName): boolean {
    const full = this.#patternPrefix + name
    if (this.#deny.some((matches) => matches(full))) return false
    return this.#allow.length === 0 || this.#allow.some((matches) => matches(full))
  }

  /** @returns undefined when the name is too long to be stored */
  storedNameOf(name: RepositoryName): RepositoryName | undefined {
    return this.storedPrefix === '' ? name : parseRepositoryName(this.storedPrefix + name)
  }
}

/** Of a part of a download: the same after a restart, and not that of another upstream at the same place. */
export function senderOf({
  name,
  storedPrefix,
}: Pick<Upstream, 'name' | 'storedPrefix'>): SenderId {
  return senderIdOf(`${storedPrefix} ${name}`)
}

function patternOf(text: string): Pattern {
  const matches = parsePattern(text)
  if (!matches) throw new TypeError(`${text} is no pattern`)
  return matches
}
