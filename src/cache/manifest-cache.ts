// Manifests: by digest for ever, by tag for as long as `proxy.tagttl` says. A fresh tag is answered from
// memory at once; an old one costs one HEAD (which Docker Hub does not count), and a GET only for a digest
// that is not stored. While the upstream can't be asked, what is known goes on being served, and says so.

import type { Clock } from '../clock.ts'
import type { Logger } from 'pino'
import { digestOf, matchesDigest, type Digest } from '../oci/digest.ts'
import {
  MANIFEST_SIZE_MAX_BYTES,
  ManifestInvalidError,
  readManifest,
  type ManifestContent,
} from '../oci/manifest.ts'
import type { Tag } from '../oci/reference.ts'
import type { BlobStore } from '../storage/blob-store.ts'
import type { Metrics } from '../telemetry/metrics.ts'
import { UpstreamError } from '../upstream/upstream-error.ts'
import type { Freshness, ManifestAnswer } from './answer.ts'
import type { ContentMemory, HotContent } from './content-memory.ts'
import { clientError, isAbsence } from './failure.ts'
import { InFlight } from './in-flight.ts'
import type { Membership } from './membership.ts'
import type { Repository } from './repositories.ts'
import type { Retention } from './retention.ts'
import type { StorageGuard } from './storage-guard.ts'
import type { TagState, TagTable } from './tag-table.ts'
import type { UpstreamHealth } from './upstream-health.ts'

export interface ManifestCacheDeps {
  readonly clock: Clock
  readonly logger: Logger
  readonly metrics: Metrics
  readonly blobs: BlobStore
  readonly memory: ContentMemory
  readonly membership: Membership
  readonly retention: Retention
  readonly storage: StorageGuard
  readonly tags: TagTable
  readonly health: UpstreamHealth
}

export class ManifestCache {
  readonly #deps: ManifestCacheDeps
  readonly #checks = new InFlight<string, ManifestAnswer>()
  readonly #fetches = new InFlight<string, ManifestAnswer>()

  constructor(deps: ManifestCacheDeps) {
    this.#deps = deps
  }

  /**
   * The manifest that a tag points to.
   *
   * @returns without a promise when memory has a fresh answer
   * @throws {RegistryError} MANIFEST_UNKNOWN, UNAVAILABLE
   */
  byTag(repository: Repository, tag: Tag): ManifestAnswer | Promise<ManifestAnswer> {
    const state = this.#deps.tags.peek(repository, tag)
    const answer = state && this.#deps.tags.isFresh(state) && this.#fromMemory(repository, state)
    return answer || this.#checkTag(repository, tag)
  }

  /**
   * @returns without a promise when memory has it
   * @throws {RegistryError} MANIFEST_UNKNOWN, UNAVAILABLE
   */
  byDigest(repository: Repository, digest: Digest): ManifestAnswer | Promise<ManifestAnswer> {
    return (
      this.#fromMemory(repository, { digest, checkedAtMs: undefined, isStored: true }) ??
      this.#find(repository, digest)
    )
  }

  /** The linux/amd64 image of an index, for clients that do not understand indexes. */
  async amd64Of(
    repository: Repository,
    index: ManifestAnswer,
  ): Promise<ManifestAnswer | undefined> {
    const { amd64 } = this.#deps.memory.get(index.digest)?.manifest ?? readManifest(index.bytes)
    return amd64 && this.byDigest(repository, amd64)
  }

  #fromMemory(repository: Repository, state: TagState): ManifestAnswer | undefined {
    const { membership, memory, retention, tags } = this.#deps
    const { digest, checkedAtMs } = state
    const hot = memory.get(digest)
    if (!hot?.manifest || !membership.isLinked(repository, digest, 'manifest')) return undefined
    retention.touch({ repository: repository.storedName, digest, kind: 'manifest' })
    const freshUntilMs = checkedAtMs === undefined ? undefined : tags.freshUntilMs(state)
    return answerOf(digest, hot, {
      outcome: 'hit',
      asOfMs: checkedAtMs ?? hot.storedAtMs,
      freshUntilMs,
    })
  }

  async #checkTag(repository: Repository, tag: Tag): Promise<ManifestAnswer> {
    const key = `${repository.storedName}:${tag}`
    const check = this.#checks.run(key, () => this.#currentManifest(repository, tag))
    const answer = await check.value
    return check.isJoined ? joined(answer) : answer
  }

  async #currentManifest(repository: Repository, tag: Tag): Promise<ManifestAnswer> {
    const { health, tags } = this.#deps
    const absence = tags.recentAbsence(repository, tag)
    if (absence) throw clientError(absence, repository.upstream.name, 'MANIFEST_UNKNOWN')
    const known = await tags.read(repository, tag)
    try {
      const hit = known && tags.isFresh(known) && (await this.#load(repository, known.digest))
      if (hit) return this.#withFreshness(hit, known, 'hit')
      const outage = known && health.admit()
      const stale = outage && (await this.#stale(repository, known, outage))
      return stale || (await this.#askForTag(repository, tag))
    } catch (error) {
      if (isAbsence(error)) tags.noteAbsent(repository, tag, error as UpstreamError)
      else if (known && error instanceof UpstreamError) {
        const old = await this.#stale(repository, known, error)
        if (old) return old
      }
      throw clientError(error, repository.upstream.name, 'MANIFEST_UNKNOWN')
    }
  }

  /** @throws {UpstreamError} */
  async #askForTag(repository: Repository, tag: Tag): Promise<ManifestAnswer> {
    const { health, tags } = this.#deps
    const digest = await health.observe(this.#digestOfTag(repository, tag))
    if (digest) {
      const stored = await this.#load(repository, digest)
      const answer = stored ?? (await this.#fetchByDigest(repository, digest))
      const state = await tags.confirm(repository, tag, digest)
      return this.#withFreshness(answer, state, stored ? 'revalidated' : 'miss')
    }
    const answer = await health.observe(this.#fetch(repository, tag, undefined))
    const state = await tags.confirm(repository, tag, answer.digest)
    return this.#withFreshness(answer, state, 'miss')
  }

  /** @returns undefined when this upstream tells digests only with the manifest itself */
  async #digestOfTag(repository: Repository, tag: Tag): Promise<Digest | undefined> {
    try {
      return (await repository.upstream.headManifest(repository.name, tag)).digest
    } catch (error) {
      if (refusesHead(error)) return undefined
      throw error
    }
  }

  /** Makes sure that the upstream has it under this repository's name. @throws {UpstreamError} */
  async #confirm({ name, upstream }: Repository, digest: Digest): Promise<void> {
    try {
      await upstream.headManifest(name, digest)
    } catch (error) {
      if (!refusesHead(error)) throw error
      await upstream.getManifest(name, digest)
    }
  }

  async #find(repository: Repository, digest: Digest): Promise<ManifestAnswer> {
    try {
      const stored = await this.#load(repository, digest)
      if (stored) return stored
      const { health } = this.#deps
      return await health.observe(this.#fetchByDigest(repository, digest))
    } catch (error) {
      throw clientError(error, repository.upstream.name, 'MANIFEST_UNKNOWN')
    }
  }

  async #fetchByDigest(repository: Repository, digest: Digest): Promise<ManifestAnswer> {
    const key = `${repository.storedName}@${digest}`
    const fetch = this.#fetches.run(key, () => this.#fetch(repository, digest, digest))
    const answer = await fetch.value
    return fetch.isJoined ? joined(answer) : answer
  }

  /**
   * What is stored and may be served under this repository. Stored bytes that the repository is not known to
   * hold cost one HEAD under its name.
   *
   * @throws {UpstreamError} the upstream was asked and did not confirm
   */
  async #load(repository: Repository, digest: Digest): Promise<ManifestAnswer | undefined> {
    const { blobs, membership, memory, retention, storage } = this.#deps
    let hot = memory.get(digest)
    if (!hot?.manifest) {
      const read = (): Promise<Buffer | undefined> =>
        blobs.readWhole(digest, MANIFEST_SIZE_MAX_BYTES)
      const bytes = await storage.attempt(read)
      const content = bytes && this.#parseStored(bytes)
      if (!bytes || !content) return undefined
      const info = await storage.attempt(() => blobs.stat(digest))
      hot = hotContent(bytes, content, info?.storedAtMs ?? this.#deps.clock.now())
    }
    const { bytes } = hot
    if (!membership.isLinked(repository, digest, 'manifest')) {
      // A disk that was full when it came may not have it: never a link to nothing.
      await storage.attempt(async () => {
        if (!(await blobs.stat(digest))) await blobs.put(digest, bytes)
      })
    }
    await membership.prove(repository, digest, 'manifest', () => this.#confirm(repository, digest))
    this.#remember(repository, digest, hot)
    retention.touch({ repository: repository.storedName, digest, kind: 'manifest' })
    return answerOf(digest, hot, { outcome: 'hit', asOfMs: hot.storedAtMs })
  }

  /** A blob that is not a manifest may be asked for as one. */
  #parseStored(bytes: Buffer): ManifestContent | undefined {
    try {
      return readManifest(bytes)
    } catch (error) {
      if (error instanceof ManifestInvalidError) return undefined
      throw error
    }
  }

  /** @throws {UpstreamError} bad-response when what came is not what was asked for */
  async #fetch(
    repository: Repository,
    reference: string,
    expected: Digest | undefined,
  ): Promise<ManifestAnswer> {
    const { clock, metrics } = this.#deps
    const { bytes, digest: announced } = await repository.upstream.getManifest(
      repository.name,
      reference,
    )
    metrics.proxyPulledBytes.inc({ type: 'manifest' }, bytes.length)
    const digest = expected ?? announced ?? digestOf(bytes)
    if (!matchesDigest(bytes, digest)) {
      metrics.mismatches.inc({ type: 'manifest' })
      throw new UpstreamError(
        'bad-response',
        `${repository.upstream.name} sent a manifest for ${repository.name}@${digest} that does not match`,
      )
    }
    const hot = hotContent(bytes, parseFetched(bytes, repository), clock.now())
    await this.#store(repository, digest, hot)
    this.#remember(repository, digest, hot)
    return answerOf(digest, hot, { outcome: 'miss', asOfMs: hot.storedAtMs })
  }

  /** Bytes first, then the link that makes them visible: never a link to nothing. */
  async #store(repository: Repository, digest: Digest, { bytes }: HotContent): Promise<void> {
    const { blobs, membership, storage } = this.#deps
    await storage.attempt(async () => {
      await blobs.put(digest, bytes)
      await membership.link(repository, digest, 'manifest')
    })
  }

  #remember(repository: Repository, digest: Digest, hot: HotContent): void {
    const { membership, memory } = this.#deps
    memory.set(digest, hot)
    if (hot.manifest) membership.noteNamed(repository, hot.manifest)
  }

  async #stale(
    repository: Repository,
    known: TagState,
    failure: UpstreamError,
  ): Promise<ManifestAnswer | undefined> {
    const answer = await this.#load(repository, known.digest).catch((error: unknown) => {
      if (error instanceof UpstreamError) return undefined
      throw error
    })
    if (!answer) return undefined
    this.#deps.logger.warn(
      { repository: repository.storedName, digest: known.digest, reason: failure.message },
      'serving the manifest that the tag had when the upstream was last reached',
    )
    const asOfMs = known.checkedAtMs ?? answer.freshness.asOfMs
    const freshUntilMs =
      known.checkedAtMs === undefined ? asOfMs : this.#deps.tags.freshUntilMs(known)
    return {
      ...answer,
      freshness: { outcome: 'stale', asOfMs, freshUntilMs, staleReason: failure.message },
    }
  }

  #withFreshness(
    answer: ManifestAnswer,
    state: TagState,
    outcome: Freshness['outcome'],
  ): ManifestAnswer {
    const asOfMs = state.checkedAtMs ?? answer.freshness.asOfMs
    return {
      ...answer,
      freshness: { outcome, asOfMs, freshUntilMs: this.#deps.tags.freshUntilMs(state) },
    }
  }
}

/** Some registries refuse HEAD (405, 501) though they answer GET. */
function refusesHead(error: unknown): boolean {
  return error instanceof UpstreamError && error.kind === 'bad-response'
}

/** The answer of a call that somebody else had started. */
function joined(answer: ManifestAnswer): ManifestAnswer {
  if (answer.freshness.outcome !== 'miss') return answer
  return { ...answer, freshness: { ...answer.freshness, outcome: 'coalesced' } }
}

function answerOf(digest: Digest, hot: HotContent, freshness: Freshness): ManifestAnswer {
  return { digest, bytes: hot.bytes, mediaType: hot.manifest?.mediaType ?? '', freshness }
}

function hotContent(bytes: Buffer, content: ManifestContent, storedAtMs: number): HotContent {
  return { bytes, storedAtMs, manifest: content }
}

function parseFetched(bytes: Buffer, { name, upstream }: Repository): ManifestContent {
  try {
    return readManifest(bytes)
  } catch (error) {
    const reason = error instanceof Error ? error.message : String(error)
    throw new UpstreamError('bad-response', `${upstream.name}, ${name}: ${reason}`, {
      cause: error,
    })
  }
}
