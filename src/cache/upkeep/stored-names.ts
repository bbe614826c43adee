// What repositories are called on disk, and what people call them: `alpine`, `docker.io/library/alpine` and
// `library/alpine` are one. What comes from an upstream other than the default one is stored under its host's name.

import { parseRepositoryName, type RepositoryName } from '../../oci/reference.ts'
import { isDockerHub, parseRegistryHost, pathNameOf } from '../../oci/registry-host.ts'
import { hostIn } from '../host-names.ts'

/** The one whose repositories are stored without a host. */
export interface DefaultUpstream {
  /** Its host, with a port if need be. */
  readonly name: string
  readonly isDockerHub: boolean
}

export class StoredNames {
  readonly #defaultName: string
  readonly #isDockerHub: boolean

  constructor({ isDockerHub, name }: DefaultUpstream) {
    this.#defaultName = name
    this.#isDockerHub = isDockerHub
  }

  /** Where a repository comes from. */
  upstreamOf(repository: RepositoryName): string {
    return hostIn(repository) ?? this.#defaultName
  }

  /** Whether two names are of one upstream. */
  isSameUpstream(left: string, right: string): boolean {
    return this.#canonical(left) === this.#canonical(right)
  }

  /** As `storedTextOf`. @returns undefined for what is no name */
  storedNameOf(text: string): RepositoryName | undefined {
    const stored = this.storedTextOf(text)
    const isOfficial = this.#isDockerHub && !stored.includes('/')
    return parseRepositoryName(isOfficial ? `library/${stored}` : stored)
  }

  /** A name, or a pattern for names, with its host as it stands on disk: that of the default upstream does not. */
  storedTextOf(text: string): string {
    const slash = text.indexOf('/')
    const host = slash < 0 ? undefined : parseRegistryHost(text.slice(0, slash))
    if (!host) return text
    if (this.isSameUpstream(host, this.#defaultName)) return text.slice(slash + 1)
    return pathNameOf(host) + text.slice(slash)
  }

  #canonical(name: string): string {
    const host = parseRegistryHost(name)
    return this.#isDockerHub && host && isDockerHub(host) ? this.#defaultName : name.toLowerCase()
  }
}
