// What a remote registry can be asked, and what it says: pull-only, typed and bounded. Two answer so: one
// endpoint (upstream-client.ts), and several that have the same content (mirrored-registry.ts).

import type { Readable } from 'node:stream'
import type { Digest } from '../oci/digest.ts'
import type { RepositoryName } from '../oci/reference.ts'
import type { TagsCursor } from './answer-headers.ts'
import type { UpstreamError } from './upstream-error.ts'

export interface CallOptions {
  /** Ends the call, and the body of a blob, with the signal's reason. */
  readonly signal?: AbortSignal | undefined
  /** On the monotonic clock. When a client waits for several calls in a row, they share its time. */
  readonly deadlineMs?: number | undefined
  /** Through which proxies the request came here: sent on, so that a loop of caches can be seen. */
  readonly via?: string | undefined
}

export type BlobOptions = CallOptions & {
  readonly offset?: number | undefined
  /** Of the whole blob, as far as the caller knows: among several endpoints, one that agrees is preferred. */
  readonly expectedSizeBytes?: number | undefined
}

export type TagsOptions = CallOptions & {
  readonly count?: number | undefined
  readonly last?: string | undefined
}

export type ReferrersOptions = CallOptions & {
  readonly artifactType?: string | undefined
  /** What `nextPage` of an earlier answer said; whatever else a client puts there is not sent on. */
  readonly page?: string | undefined
}

export interface ManifestHead {
  readonly digest: Digest | undefined
  readonly sizeBytes: number | undefined
  readonly mediaType: string | undefined
}

export interface UpstreamManifest {
  readonly bytes: Buffer
  /** What the upstream's header claims; the caller verifies. */
  readonly digest: Digest | undefined
  readonly mediaType: string | undefined
  /** The endpoint, for messages. */
  readonly sentBy: string
}

export interface UpstreamBlob {
  /** Where the body really starts: the offset asked for, or 0 if the upstream ignored the range. */
  readonly startOffset: number
  /** Of the whole blob, whatever part the body is. */
  readonly sizeBytes: number | undefined
  /**
   * Must be consumed or destroyed. Emits what `connectionError` understands when it breaks off; a body that
   * ends early without an error is the caller's to notice.
   */
  readonly body: Readable
  /** The endpoint, for messages. */
  readonly sentBy: string
  /**
   * Only of one endpoint among several. To be called when the body was not what was asked for (bad-response), or not
   * all of it (else): others are asked first from then on.
   *
   * @returns whether there are others; false when they had been asked before this one
   */
  readonly refuse?: ((reason: UpstreamError) => boolean) | undefined
}

export interface TagsPage {
  readonly tags: string[]
  readonly next: TagsCursor | undefined
}

export interface ReferrersPage {
  /** An image index, unchanged. */
  readonly bytes: Buffer
  readonly filtersApplied: string | undefined
  /** Opaque; give it back as `page`. */
  readonly nextPage: string | undefined
}

/** All that are asked throw an `UpstreamError`, or the reason of `signal`. */
export interface RemoteRegistry {
  /** For logs, metrics and messages. */
  readonly name: string
  /** Free on Docker Hub, whose limit counts GET. Not every upstream answers it: see the error's status. */
  headManifest(
    repository: RepositoryName,
    reference: string,
    options?: CallOptions,
  ): Promise<ManifestHead>
  /** At most 4 MiB; more is a bad-response. */
  getManifest(
    repository: RepositoryName,
    reference: string,
    options?: CallOptions,
  ): Promise<UpstreamManifest>
  headBlob(
    repository: RepositoryName,
    digest: Digest,
    options?: CallOptions,
  ): Promise<{ sizeBytes: number | undefined }>
  /** @param options.offset asks for the rest from there on; see `startOffset` for what came */
  getBlob(repository: RepositoryName, digest: Digest, options?: BlobOptions): Promise<UpstreamBlob>
  /** One page. What is no tag by the specification's grammar is left out. */
  listTags(repository: RepositoryName, options?: TagsOptions): Promise<TagsPage>
  /** One page; not-found where the upstream does not have the referrers API. At most 4 MiB. */
  getReferrers(
    repository: RepositoryName,
    digest: Digest,
    options?: ReferrersOptions,
  ): Promise<ReferrersPage>
  /**
   * Few pulls are left: why a manifest that is cached had better be served as it is.
   *
   * @param method what would be asked
   * @returns undefined when it may be asked
   */
  reluctance(method: 'GET' | 'HEAD'): UpstreamError | undefined
}

/** One that somebody opened, and has to close. */
export interface OpenRegistry extends RemoteRegistry {
  /** What the operator should look at; empty when all is well. */
  readonly problems: readonly string[]
  /** Opens nothing on the wire; loads what the first request would otherwise wait for. */
  warmUp(): void
  /** Ends all calls and all bodies that still run. */
  close(): Promise<void>
}
