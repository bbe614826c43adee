// Several endpoints that are one registry: mirrors in the operator's order, the origin last. Whatever goes wrong at
// a mirror, the next one is asked. That includes 404, refusals and empty lists: a mirror may lack what the origin has,
// so only the origin's word that something is not there counts. It includes wrong content: a manifest is looked at
// here, and of a blob the caller tells. A mirror that is out of order is passed over for a while.

import type { Logger } from 'pino'
import type { Clock } from '../clock.ts'
import { matchesDigest, parseDigest, type Digest } from '../oci/digest.ts'
import { readManifest } from '../oci/manifest.ts'
import type { RepositoryName } from '../oci/reference.ts'
import { Mirror, type MirrorCall } from './mirror.ts'
import type {
  BlobOptions,
  CallOptions,
  ManifestHead,
  OpenRegistry,
  ReferrersOptions,
  ReferrersPage,
  RemoteRegistry,
  TagsOptions,
  TagsPage,
  UpstreamBlob,
  UpstreamManifest,
} from './remote-registry.ts'
import { drop, parseObject } from './response-body.ts'
import {
  CALL_LIMIT_MS,
  UpstreamClient,
  type UpstreamDeps,
  type UpstreamOptions,
} from './upstream-client.ts'
import { manifestMismatch, UpstreamError } from './upstream-error.ts'

/** What is asked of whichever endpoint it is. @param turn undefined for the origin */
type Call<Options, T> = (
  registry: RemoteRegistry,
  options: Options,
  turn: Turn | undefined,
) => Promise<T>

/** A mirror that is being asked. */
interface Turn {
  readonly mirror: Mirror
  readonly call: MirrorCall
}

export interface MirroredDeps {
  readonly clock: Clock
  readonly logger: Logger
  readonly onWrongManifest?: UpstreamDeps['onWrongManifest']
}

export interface RegistryOptions extends Omit<UpstreamOptions, 'remoteUrl'> {
  /** Mirrors, and the origin last. At least one. */
  readonly remoteUrls: readonly string[]
}

/**
 * One endpoint, or several as one.
 *
 * @param depsOf for the endpoint with this name, which is its host if there are several
 */
export function createRegistry(
  depsOf: (name: string) => UpstreamDeps,
  { remoteUrls, ...options }: RegistryOptions,
): OpenRegistry {
  const { name, callLimitMs = CALL_LIMIT_MS, credentials } = options
  const isAlone = remoteUrls.length === 1
  // All of them together must answer in time.
  const limitMs = callLimitMs / remoteUrls.length
  const endpoints = remoteUrls.map((remoteUrl, index) => {
    const endpointName = isAlone ? name : new URL(remoteUrl).host
    // A password is for the origin; what is looked up by host finds each one's own.
    const isShared = credentials?.kind === 'docker-config' || credentials?.kind === 'helper'
    const isOrigin = index === remoteUrls.length - 1
    return new UpstreamClient(depsOf(endpointName), {
      ...options,
      name: endpointName,
      remoteUrl,
      callLimitMs: limitMs,
      credentials: isOrigin || isShared ? credentials : undefined,
    })
  })
  const [only] = endpoints
  return isAlone && only ? only : new MirroredRegistry(depsOf(name), { name, endpoints })
}

export class MirroredRegistry implements OpenRegistry {
  readonly name: string
  readonly #clock: Clock
  readonly #onWrongManifest: UpstreamDeps['onWrongManifest']
  readonly #mirrors: readonly Mirror[]
  readonly #origin: OpenRegistry

  /** @param options.endpoints at least one; the last one is the origin */
  constructor(
    { clock, logger, onWrongManifest }: MirroredDeps,
    { endpoints, name }: { name: string; endpoints: readonly OpenRegistry[] },
  ) {
    const origin = endpoints.at(-1)
    if (!origin) throw new TypeError(`no endpoint for ${name}`)
    this.name = name
    this.#clock = clock
    this.#onWrongManifest = onWrongManifest
    this.#origin = origin
    this.#mirrors = endpoints
      .slice(0, -1)
      .map((registry) => new Mirror({ clock, logger }, { registry, upstream: name }))
  }

  headManifest(
    repository: RepositoryName,
    reference: string,
    options: CallOptions = {},
  ): Promise<ManifestHead> {
    return this.#ask(options, (registry, own) => registry.headManifest(repository, reference, own))
  }

  getManifest(
    repository: RepositoryName,
    reference: string,
    options: CallOptions = {},
  ): Promise<UpstreamManifest> {
    return this.#ask(options, async (registry, own, turn) => {
      const manifest = await registry.getManifest(repository, reference, own)
      if (turn) this.#checkManifest(manifest, { name: repository, reference }, turn.mirror)
      return manifest
    })
  }

  headBlob(
    repository: RepositoryName,
    digest: Digest,
    options: CallOptions = {},
  ): Promise<{ sizeBytes: number | undefined }> {
    return this.#ask(options, (registry, own) => registry.headBlob(repository, digest, own))
  }

  getBlob(
    repository: RepositoryName,
    digest: Digest,
    options: BlobOptions = {},
  ): Promise<UpstreamBlob> {
    const { expectedSizeBytes } = options
    return this.#ask(options, async (registry, own, turn) => {
      const blob = await registry.getBlob(repository, digest, own)
      if (!turn) return blob
      const { sentBy, sizeBytes = expectedSizeBytes } = blob
      if (expectedSizeBytes !== undefined && sizeBytes !== expectedSizeBytes) {
        drop(blob.body)
        // Whoever pushes a manifest may write wrong sizes into it: no reason to pass the mirror over.
        const message = `${sentBy} has ${sizeBytes} bytes for ${digest}, not ${expectedSizeBytes}`
        throw new UpstreamError('bad-response', message)
      }
      return { ...blob, refuse: (reason) => refuse(turn, reason) }
    })
  }

  listTags(repository: RepositoryName, options: TagsOptions = {}): Promise<TagsPage> {
    return this.#ask(options, async (registry, own, turn) => {
      const page = await registry.listTags(repository, own)
      if (turn && page.tags.length === 0) throw saysNothing(registry, `tags of ${repository}`)
      return page
    })
  }

  getReferrers(
    repository: RepositoryName,
    digest: Digest,
    options: ReferrersOptions = {},
  ): Promise<ReferrersPage> {
    return this.#ask(options, async (registry, own, turn) => {
      const page = await registry.getReferrers(repository, digest, own)
      if (turn && isEmptyIndex(page.bytes)) throw saysNothing(registry, `referrers of ${digest}`)
      return page
    })
  }

  /** A mirror that may be asked is reason enough to ask. */
  reluctance(method: 'GET' | 'HEAD'): UpstreamError | undefined {
    const isWilling = ({ registry }: Mirror): boolean => registry.reluctance(method) === undefined
    if (this.#mirrors.some((mirror) => !mirror.isPassedOver && isWilling(mirror))) return undefined
    return this.#origin.reluctance(method)
  }

  get problems(): string[] {
    return this.#all.flatMap(({ name, problems }) => {
      return problems.map((problem) => `${name}: ${problem}`)
    })
  }

  warmUp(): void {
    this.#origin.warmUp()
  }

  async close(): Promise<void> {
    await Promise.all(this.#all.map((registry) => registry.close()))
  }

  get #all(): OpenRegistry[] {
    return [...this.#mirrors.map(({ registry }) => registry), this.#origin]
  }

  /** Each that is asked gets its share of the time that is left, so that the origin has some. */
  async #ask<Options extends CallOptions, T>(options: Options, call: Call<Options, T>): Promise<T> {
    const { deadlineMs = Infinity } = options
    const passedOver = this.#mirrors.filter(({ isPassedOver }) => isPassedOver)
    const asked = this.#mirrors.filter((mirror) => !passedOver.includes(mirror))
    for (const [index, mirror] of asked.entries()) {
      const shares = asked.length - index + 1
      const outcome = await this.#try(mirror, this.#within(options, shares), call)
      if (!(outcome instanceof UpstreamError)) return outcome.value
    }
    try {
      return await call(this.#origin, options, undefined)
    } catch (error) {
      if (!(error instanceof UpstreamError) || !isOutage(error)) throw error
      // Nobody else is left: a mirror that was out of order may be back.
      for (const mirror of passedOver) {
        if (this.#clock.monotonic() >= deadlineMs) break
        const outcome = await this.#try(mirror, options, call)
        if (!(outcome instanceof UpstreamError)) return outcome.value
      }
      throw error
    }
  }

  /** The same with a part of the time. */
  #within<Options extends CallOptions>(options: Options, shares: number): Options {
    const { deadlineMs } = options
    if (deadlineMs === undefined) return options
    const nowMs = this.#clock.monotonic()
    return { ...options, deadlineMs: nowMs + Math.max(0, deadlineMs - nowMs) / shares }
  }

  async #try<Options extends CallOptions, T>(
    mirror: Mirror,
    options: Options,
    call: Call<Options, T>,
  ): Promise<{ value: T } | UpstreamError> {
    const turn = { mirror, call: mirror.begin() }
    try {
      const value = await call(mirror.registry, options, turn)
      mirror.noteAnswer(turn.call)
      return { value }
    } catch (error) {
      if (!(error instanceof UpstreamError)) throw error
      if (isOutage(error)) mirror.noteOutage(turn.call, error)
      return error
    }
  }

  /** @throws {UpstreamError} bad-response: it cannot be what was asked for */
  #checkManifest(
    { bytes, digest: announced, sentBy }: UpstreamManifest,
    { name, reference }: { name: RepositoryName; reference: string },
    mirror: Mirror,
  ): void {
    const asked = parseDigest(reference)
    const digest = asked ?? announced
    if (digest && !matchesDigest(bytes, digest)) {
      this.#onWrongManifest?.()
      const error = manifestMismatch(sentBy, name, digest)
      mirror.noteWrongContent(error)
      throw error
    }
    if (asked) return
    try {
      readManifest(bytes)
    } catch (error) {
      // A web page, or what this cache cannot use, which the origin may have too: no reason to pass the mirror over.
      const message = `${sentBy} sent no manifest for ${name}:${reference}`
      throw new UpstreamError('bad-response', message, { cause: error })
    }
  }
}

/** @returns whether another endpoint is asked next */
function refuse({ call, mirror }: Turn, reason: UpstreamError): boolean {
  if (isOutage(reason)) mirror.noteOutage(call, reason)
  else mirror.noteWrongContent(reason)
  return !call.isLastResort
}

/** Registries that do not keep referrers, and caches that keep no lists, answer with empty ones. */
function saysNothing({ name }: RemoteRegistry, what: string): UpstreamError {
  return new UpstreamError('not-found', `${name} has no ${what}`)
}

function isEmptyIndex(bytes: Buffer): boolean {
  const { manifests } = parseObject(bytes, 'a mirror')
  return Array.isArray(manifests) && manifests.length === 0
}

/** What says something about the endpoint, and not about what it was asked for. */
function isOutage({ kind }: UpstreamError): boolean {
  return kind !== 'not-found' && kind !== 'denied' && kind !== 'bad-response' && kind !== 'loop'
}
