// The part of the composition root that makes upstreams of what the configuration says of them.

import { readFile } from 'node:fs/promises'
import { Upstream } from './cache/upstream.ts'
import { UpstreamHealth } from './cache/upstream-health.ts'
import { Upstreams, type UpstreamPattern } from './cache/upstreams.ts'
import type { Clock } from './clock.ts'
import type {
  EnvironmentProxy,
  ProxyConfiguration,
  UpstreamConfiguration,
} from './config/schema.ts'
import { registryUrlOf } from './config/upstreams.ts'
import { parseRegistryHost, type RegistryHost } from './oci/registry-host.ts'
import { LoginMemories } from './upstream/login/login-memory.ts'
import { createRegistry, type RegistryOptions } from './upstream/mirrored-registry.ts'
import type { UpstreamDeps as RegistryDeps } from './upstream/upstream-client.ts'

export interface UpstreamDeps {
  readonly clock: Clock
  readonly environmentProxy: EnvironmentProxy
  readonly userAgent: string
  readonly viaName: string
  /** @param upstream for metrics: bounded, whatever clients name */
  readonly depsOf: (upstream: string) => RegistryDeps
}

/** @throws when a certificate cannot be read */
export async function createUpstreams(
  { main: mainOptions, others: otherOptions }: ProxyConfiguration,
  deps: UpstreamDeps,
): Promise<Upstreams> {
  const main = upstreamOf(mainOptions, await registryOptions(mainOptions, deps), deps, {
    isMain: true,
  })
  const hosts = new Map(mainOptions.hosts.map((host) => [host, main]))
  const others: Upstream[] = []
  const patterns: UpstreamPattern[] = []
  for (const configured of otherOptions) {
    const options = await registryOptions(configured, deps)
    if (configured.name.startsWith('*')) {
      const { name: pattern, ttlMs } = configured
      const memories = new LoginMemories()
      const create = (host: RegistryHost): Upstream => {
        const loginMemory = memories.of(host)
        const depsOf = (label: string): RegistryDeps => ({ ...deps.depsOf(label), loginMemory })
        const own = { ...options, name: host, remoteUrls: [registryUrlOf(host)] }
        return upstreamOf(configured, own, { ...deps, depsOf })
      }
      patterns.push({ pattern, ttlMs, create })
      continue
    }
    const upstream = upstreamOf(configured, options, deps)
    others.push(upstream)
    for (const host of configured.hosts) hosts.set(host, upstream)
  }
  const { servesDockerHub: mainServesDockerHub } = mainOptions
  return new Upstreams({ main, mainServesDockerHub, others, patterns, hosts })
}

function upstreamOf(
  configured: UpstreamConfiguration,
  options: RegistryOptions,
  { clock, depsOf }: UpstreamDeps,
  { isMain = false } = {},
): Upstream {
  const isOneOfMany = configured.name.startsWith('*')
  const label = isOneOfMany ? configured.name : options.name
  return new Upstream(
    {
      health: new UpstreamHealth({ clock }),
      registry: createRegistry((name) => depsOf(isOneOfMany ? label : name), options),
    },
    {
      ...configured,
      isMain,
      isOneOfMany,
      label,
      // Under the host of its URL nobody knows Docker Hub.
      namespace: parseRegistryHost(isMain && configured.isDockerHub ? 'docker.io' : options.name),
    },
  )
}

async function registryOptions(
  configured: UpstreamConfiguration,
  { environmentProxy, userAgent, viaName }: UpstreamDeps,
): Promise<RegistryOptions> {
  const { certificatePath, keyPath, caPaths, skipsVerification } = configured
  const tls = {
    ca: await Promise.all(caPaths.map((path) => readFile(path, 'utf8'))),
    certificate: certificatePath && (await readFile(certificatePath, 'utf8')),
    key: keyPath && (await readFile(keyPath, 'utf8')),
    skipsVerification,
  }
  const { httpProxy } = configured
  const ownProxy = httpProxy?.toLowerCase() === 'none' ? {} : { httpProxy, httpsProxy: httpProxy }
  return {
    name: configured.name,
    remoteUrls: configured.remoteUrls,
    credentials: configured.credentials,
    settingsPath: configured.settingsPath,
    allowedRealms: configured.allowedRealms,
    redirectHosts: configured.redirectHosts,
    requestsPerSecond: configured.requestsPerSecond,
    callLimitMs: configured.timeoutMs,
    environmentProxy: httpProxy === undefined ? environmentProxy : ownProxy,
    connection: {
      connectionsMax: configured.connectionsMax,
      connectTimeoutMs: configured.connectTimeoutMs,
      tls,
    },
    // Clients choose these names, and whoever has one below the domain chooses its address: neither must lead into
    // our own network unless the operator says so (redirecthosts, allowprivateaddresses).
    isUntrusted: configured.name.startsWith('*'),
    allowPrivateAddresses: configured.allowsPrivateAddresses,
    userAgent,
    viaName,
  }
}
