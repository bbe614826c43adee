// Manifests: by digest for ever, by tag for as long as `proxy.tagttl` says. A fresh tag is answered from
// memory at once; an old one costs one HEAD (which Docker Hub does not count), and a GET only for a digest
// that is not stored. While the upstream can't be asked, what is known goes on being served, and says so.

import type { Logger } from 'pino'
import type { Digest } from '../oci/digest.ts'
import { readManifest } from '../oci/manifest.ts'
import { subjectOfTag, type Tag } from '../oci/reference.ts'
import { UpstreamError } from '../upstream/upstream-error.ts'
import type { Freshness, ManifestAnswer, StaleCause } from './answer.ts'
import { untilDeadline } from './deadline.ts'
import { clientError, isAbsence } from './failure.ts'
import { InFlight } from './in-flight.ts'
import { joined, ManifestStore, refusesHead, type ManifestStoreDeps } from './manifest-store.ts'
import { sharedKey, type Repository } from './repositories.ts'
import type { TagState, TagTable } from './tag-table.ts'

export interface ManifestCacheDeps extends ManifestStoreDeps {
  readonly logger: Logger
  readonly tags: TagTable
}

interface TagQuestion {
  readonly repository: Repository
  readonly tag: Tag
  /** What the tag was when it was last asked. */
  readonly known: TagState | undefined
  readonly deadlineMs: number
}

export class ManifestCache {
  readonly #deps: ManifestCacheDeps
  readonly #store: ManifestStore
  readonly #checks = new InFlight<string, ManifestAnswer>()

  constructor(deps: ManifestCacheDeps) {
    this.#deps = deps
    this.#store = new ManifestStore(deps)
  }

  /**
   * The manifest that a tag points to.
   *
   * @param deadlineMs on the monotonic clock: by when all questions to the upstream must be answered
   * @returns without a promise when memory has a fresh answer
   * @throws {RegistryError} MANIFEST_UNKNOWN, UNAVAILABLE
   */
  byTag(
    repository: Repository,
    tag: Tag,
    deadlineMs: number,
  ): ManifestAnswer | Promise<ManifestAnswer> {
    const state = this.#deps.tags.peek(repository, tag)
    const isFresh = state && this.#deps.tags.isFresh(state)
    const hot = isFresh && this.#store.fromMemory(repository, state.digest)
    if (hot) return this.#withFreshness(hot, state, 'hit')
    const checked = this.#checkTag(repository, tag, deadlineMs)
    return untilDeadline(this.#deps.clock, deadlineMs, checked)
  }

  /**
   * @param deadlineMs as for `byTag`
   * @returns without a promise when memory has it
   * @throws {RegistryError} MANIFEST_UNKNOWN, UNAVAILABLE
   */
  byDigest(
    repository: Repository,
    digest: Digest,
    deadlineMs: number,
  ): ManifestAnswer | Promise<ManifestAnswer> {
    const hot = this.#store.fromMemory(repository, digest)
    if (hot) return hot
    const found = this.#find(repository, digest, deadlineMs)
    return untilDeadline(this.#deps.clock, deadlineMs, found)
  }

  /** The linux/amd64 image of an index, for clients that do not understand indexes. */
  async amd64Of(
    repository: Repository,
    index: ManifestAnswer,
    deadlineMs: number,
  ): Promise<ManifestAnswer | undefined> {
    const { amd64 } = this.#deps.memory.get(index.digest)?.manifest ?? readManifest(index.bytes)
    return amd64 && this.byDigest(repository, amd64, deadlineMs)
  }

  async #checkTag(repository: Repository, tag: Tag, deadlineMs: number): Promise<ManifestAnswer> {
    const key = sharedKey(repository, tag)
    const check = this.#checks.run(key, () => this.#currentManifest(repository, tag, deadlineMs))
    const answer = await check.value
    return check.isJoined ? joined(answer) : answer
  }

  async #currentManifest(
    repository: Repository,
    tag: Tag,
    deadlineMs: number,
  ): Promise<ManifestAnswer> {
    const { tags } = this.#deps
    const { health } = repository.upstream
    const absence = tags.recentAbsence(repository, tag)
    if (absence) throw clientError(absence, repository.upstream.name, 'MANIFEST_UNKNOWN')
    const known = await tags.read(repository, tag)
    const question = { repository, tag, known, deadlineMs }
    try {
      const hit =
        known &&
        tags.isFresh(known) &&
        (await this.#store.load(repository, known.digest, deadlineMs))
      if (hit) return this.#withFreshness(hit, known, 'hit')
      return (
        (await this.#unasked(question, 'HEAD')) ??
        (await this.#old(question, 'upstream-failed', known && health.admit())) ??
        (await this.#askForTag(question))
      )
    } catch (error) {
      if (isAbsence(error)) tags.noteAbsent(repository, tag, error as UpstreamError)
      else if (error instanceof UpstreamError) {
        const old = await this.#old(question, 'upstream-failed', error)
        if (old) return old
      }
      throw clientError(error, repository.upstream.name, 'MANIFEST_UNKNOWN')
    }
  }

  /** @throws {UpstreamError} */
  async #askForTag(question: TagQuestion): Promise<ManifestAnswer> {
    const { deadlineMs, repository, tag } = question
    const { health } = repository.upstream
    const digest = await health.observe(this.#digestOfTag(repository, tag, deadlineMs))
    const stored = digest && (await orAbsent(this.#store.load(repository, digest, deadlineMs)))
    // To know that the tag has moved may be free; what it moved to has its price.
    const old = stored ? undefined : await this.#unasked(question, 'GET')
    if (old) return old
    const fetched =
      digest &&
      !stored &&
      (await orAbsent(this.#store.fetchByDigest(repository, digest, deadlineMs)))
    const named = stored || fetched
    if (named) {
      const state = await this.#confirmTag(repository, tag, named.digest)
      return this.#withFreshness(named, state, stored ? 'revalidated' : 'miss')
    }
    const answer = await health.observe(this.#store.fetch(repository, tag, { deadlineMs }))
    const state = await this.#confirmTag(repository, tag, answer.digest)
    return this.#withFreshness(answer, state, 'miss')
  }

  #confirmTag(repository: Repository, tag: Tag, digest: Digest): Promise<TagState> {
    const subject = subjectOfTag(tag)
    if (subject) this.#deps.inventory.addCompanion(subject, digest)
    const isKept = (): boolean => this.#deps.membership.isLinked(repository, digest, 'manifest')
    return this.#deps.tags.confirm(repository, tag, digest, { isKept })
  }

  /** @returns undefined when this upstream tells digests only with the manifest itself */
  async #digestOfTag(
    { name, registry }: Repository,
    tag: Tag,
    deadlineMs: number,
  ): Promise<Digest | undefined> {
    try {
      return (await registry.headManifest(name, tag, { deadlineMs })).digest
    } catch (error) {
      if (refusesHead(error)) return undefined
      throw error
    }
  }

  async #find(repository: Repository, digest: Digest, deadlineMs: number): Promise<ManifestAnswer> {
    try {
      const stored = await this.#store.load(repository, digest, deadlineMs)
      if (stored) return stored
      const { health } = repository.upstream
      return await health.observe(this.#store.fetchByDigest(repository, digest, deadlineMs))
    } catch (error) {
      throw clientError(error, repository.upstream.name, 'MANIFEST_UNKNOWN')
    }
  }

  /** What the tag was, if few pulls are left. */
  #unasked(question: TagQuestion, method: 'GET' | 'HEAD'): Promise<ManifestAnswer | undefined> {
    return this.#old(question, 'saving-pulls', question.repository.registry.reluctance(method))
  }

  /** @returns undefined when there is no reason for it, or when it is not known what the tag was */
  async #old(
    { deadlineMs, known, repository }: TagQuestion,
    staleCause: StaleCause,
    reason: UpstreamError | undefined,
  ): Promise<ManifestAnswer | undefined> {
    if (!reason || !known) return undefined
    const answer = await this.#store
      .load(repository, known.digest, deadlineMs)
      .catch((error: unknown) => {
        if (error instanceof UpstreamError) return undefined
        throw error
      })
    if (!answer) return undefined
    this.#deps.logger.warn(
      { repository: repository.storedName, digest: known.digest, reason: reason.message },
      'serving the manifest that the tag had when the upstream was last reached',
    )
    const asOfMs = known.checkedAtMs ?? answer.freshness.asOfMs
    const freshUntilMs =
      known.checkedAtMs === undefined ? asOfMs : this.#deps.tags.freshUntilMs(known)
    return {
      ...answer,
      freshness: {
        outcome: 'stale',
        asOfMs,
        freshUntilMs,
        staleCause,
        staleReason: reason.message,
      },
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
      freshness: {
        outcome,
        asOfMs,
        isStored: answer.freshness.isStored,
        freshUntilMs: this.#deps.tags.freshUntilMs(state),
      },
    }
  }
}

/**
 * What HEAD has named may not be there: the tag has moved since, or the header was wrong. That says nothing of the
 * tag, which was there a moment ago.
 */
async function orAbsent<Found>(search: Promise<Found>): Promise<Found | undefined> {
  try {
    return await search
  } catch (error) {
    if (error instanceof UpstreamError && error.kind === 'not-found') return undefined
    throw error
  }
}
