// A registry as it is asked on behalf of another cache: every request says through whom it came. Without that, two
// caches that point at each other would ask each other until they gave up.

import type { Digest } from '../oci/digest.ts'
import type { RepositoryName } from '../oci/reference.ts'
import type {
  BlobOptions,
  CallOptions,
  ManifestHead,
  ReferrersOptions,
  ReferrersPage,
  RemoteRegistry,
  TagsOptions,
  TagsPage,
  UpstreamBlob,
  UpstreamManifest,
} from './remote-registry.ts'
import type { UpstreamError } from './upstream-error.ts'

export class ForwardedRegistry implements RemoteRegistry {
  readonly name: string
  readonly #registry: RemoteRegistry
  readonly #via: string

  /** @param via the header of the request that is answered */
  constructor(registry: RemoteRegistry, via: string) {
    this.name = registry.name
    this.#registry = registry
    this.#via = via
  }

  headManifest(
    repository: RepositoryName,
    reference: string,
    options?: CallOptions,
  ): Promise<ManifestHead> {
    return this.#registry.headManifest(repository, reference, { ...options, via: this.#via })
  }

  getManifest(
    repository: RepositoryName,
    reference: string,
    options?: CallOptions,
  ): Promise<UpstreamManifest> {
    return this.#registry.getManifest(repository, reference, { ...options, via: this.#via })
  }

  headBlob(
    repository: RepositoryName,
    digest: Digest,
    options?: CallOptions,
  ): Promise<{ sizeBytes: number | undefined }> {
    return this.#registry.headBlob(repository, digest, { ...options, via: this.#via })
  }

  getBlob(
    repository: RepositoryName,
    digest: Digest,
    options?: BlobOptions,
  ): Promise<UpstreamBlob> {
    return this.#registry.getBlob(repository, digest, { ...options, via: this.#via })
  }

  listTags(repository: RepositoryName, options?: TagsOptions): Promise<TagsPage> {
    return this.#registry.listTags(repository, { ...options, via: this.#via })
  }

  getReferrers(
    repository: RepositoryName,
    digest: Digest,
    options?: ReferrersOptions,
  ): Promise<ReferrersPage> {
    return this.#registry.getReferrers(repository, digest, { ...options, via: this.#via })
  }

  reluctance(method: 'GET' | 'HEAD'): UpstreamError | undefined {
    return this.#registry.reluctance(method)
  }
}
