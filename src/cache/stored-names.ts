// What repositories are called on disk, and what people call them: `alpine`, `docker.io/library/alpine` and
// `library/alpine` are one. What comes from an upstream other than the default one is stored under its host's name.

import { parseRepositoryName, type RepositoryName } from '../oci/reference.ts'

const DOCKER_HUB_NAMES: ReadonlySet<string> = new Set([
  'docker.io',
  'index.docker.io',
  'registry-1.docker.io',
])
/** A host in a name on disk: with a dot, or with a port, whose colon has no place there. */
const STORED_HOST = /^(?:localhost|[a-z\d-]+(?:\.[a-z\d-]+)+|[a-z\d.-]+_\d{1,5})$/
/** The same as people write it. */
const HOST = /^(?:localhost|[a-z\d-]+(?:\.[a-z\d-]+)+|[a-z\d.-]+(?=:))(?::\d{1,5})?$/i

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
    const slash = repository.indexOf('/')
    const first = slash < 0 ? '' : repository.slice(0, slash)
    return STORED_HOST.test(first) ? first.replace(/_(?=\d+$)/, ':') : this.#defaultName
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
    const first = slash < 0 ? '' : text.slice(0, slash)
    if (!HOST.test(first)) return text
    if (this.isSameUpstream(first, this.#defaultName)) return text.slice(slash + 1)
    return first.toLowerCase().replace(':', '_') + text.slice(slash)
  }

  #canonical(name: string): string {
    const host = name.toLowerCase()
    return this.#isDockerHub && DOCKER_HUB_NAMES.has(host) ? this.#defaultName : host
  }
}
