// Which upstream a name belongs to, and what it is called there and here.

import { LRUCache } from 'lru-cache'
import { parseRepositoryName, type RepositoryName } from '../oci/reference.ts'
import type { UpstreamClient } from '../upstream/upstream-client.ts'

export interface Repository {
  readonly upstream: UpstreamClient
  /** At the upstream. */
  readonly name: RepositoryName
  /** On disk, and the key of everything remembered about it. */
  readonly storedName: RepositoryName
}

/** Names answered without building an object again. */
const REMEMBERED_MAX = 10_000
const DOCKER_HUB_NAMESPACES = new Set(['docker.io', 'index.docker.io', 'registry-1.docker.io'])

export class Repositories {
  readonly #upstream: UpstreamClient
  readonly #remembered = new LRUCache<RepositoryName, Repository>({ max: REMEMBERED_MAX })

  constructor(deps: { upstream: UpstreamClient }) {
    this.#upstream = deps.upstream
  }

  /** `alpine` is `library/alpine` on Docker Hub, and nowhere else. */
  locate(name: RepositoryName): Repository {
    const known = this.#remembered.get(name)
    if (known) return known
    const upstream = this.#upstream
    const isOfficial = upstream.isDockerHub && !name.includes('/')
    const full = (isOfficial && parseRepositoryName(`library/${name}`)) || name
    const repository: Repository = { upstream, name: full, storedName: full }
    this.#remembered.set(name, repository)
    return repository
  }

  /**
   * Whether requests for the registry `namespace` (the `ns` parameter that containerd and BuildKit send) are
   * ours. Answering for another registry with our upstream's content would be a wrong answer: a `library/redis`
   * of another registry is another image.
   *
   * A mirror of Docker Hub under another name is a common upstream, so Docker Hub's names always are ours.
   */
  serves(namespace: string): boolean {
    const host = namespace.toLowerCase()
    if (DOCKER_HUB_NAMESPACES.has(host)) return true
    return !this.#upstream.isDockerHub && host === this.#upstream.name
  }
}
