// Which upstream a host at the start of a stored name belongs to.

import { matchesHost, type RegistryHost } from '../oci/registry-host.ts'

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
