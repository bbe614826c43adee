// The host that a stored name may start with, and which upstream that belongs to.

import type { RepositoryName } from '../oci/reference.ts'
import { matchesHost, parsePathName, pathNameOf, type RegistryHost } from '../oci/registry-host.ts'

/** Which hosts have upstreams of their own. */
export interface HostNames {
  /** Hosts, and patterns for hosts. */
  readonly others: readonly string[]
  /** Hosts that are the main upstream's, whatever a pattern says. */
  readonly main: readonly string[]
}

/** Whether what stands below the host's name is that of an upstream of its own. */
export function isOwnHost({ main, others }: HostNames, host: RegistryHost): boolean {
  if (others.includes(host)) return true
  return !main.includes(host) && others.some((pattern) => matchesHost(pattern, host))
}

/** @returns undefined when the name starts with none: then it is the main upstream's */
export function hostIn(storedName: RepositoryName): RegistryHost | undefined {
  const slash = storedName.indexOf('/')
  return slash < 0 ? undefined : storedHost(storedName.slice(0, slash))
}

/** @returns the host that a component on disk stands for; none for another spelling, which nobody stores under */
export function storedHost(component: string): RegistryHost | undefined {
  const host = parsePathName(component)
  return host && pathNameOf(host) === component ? host : undefined
}
