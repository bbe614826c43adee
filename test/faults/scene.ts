// What a cell is about: a repository with an image, a blob, tags and referrers, and the cache in the state that
// the cell begins with.

import { digestOf, type Digest, type DigestAlgorithm } from '../../src/oci/digest.ts'
import { NAMED_FAULTS } from '../support/fake-upstream-faults.ts'
import type { RequestMatch } from '../support/fake-upstream-requests.ts'
import {
  blobOf,
  buildArtifact,
  buildImage,
  hostileManifests,
  manifestFrom,
  type TestBlob,
  type TestManifest,
} from '../support/images.ts'
import { waitFor } from '../support/wait-for.ts'
import { PART_MAX_BYTES, PART_MIN_BYTES } from './expectation.ts'
import { BLOB_BYTES, type HostileContent, type Resource } from './fault-row.ts'
import type { Cell } from './matrix.ts'
import type { Station } from './station.ts'

/** Longer than a tag or a list is taken for granted; a token lives on. */
const STALE_MS = 61_000
/** Longer than a token lives, too. */
const TOKEN_STALE_MS = 301_000
const MANY_TAGS = 50_000
const TAG = 'v1'

const REQUEST_KINDS = {
  tag: ['manifest-tag', 'manifest-digest'],
  digest: ['manifest-digest'],
  blob: ['blob'],
  token: ['token'],
  tags: ['tags'],
  referrers: ['referrers'],
} as const satisfies Record<Resource, RequestMatch['kind']>

/** The content of an answer: exact bytes, or what its JSON says. */
export type Right = { readonly bytes: Buffer } | { readonly json: unknown }

export class Scene {
  readonly name: string
  readonly blob: TestBlob
  /** What clients ask for. */
  readonly path: string
  readonly #cell: Cell
  readonly #station: Station
  /** What the tag means at first, and what it means after it has moved. */
  readonly #first: TestManifest
  readonly #second: TestManifest
  readonly #artifact: TestManifest
  #tags: string[]

  constructor(cell: Cell, station: Station, id: number) {
    const { content } = cell.row
    const algorithm: DigestAlgorithm = content === 'sha512' ? 'sha512' : 'sha256'
    this.#cell = cell
    this.#station = station
    this.name = `matrix/cell-${id}`
    this.blob = blobOf(BLOB_BYTES, id, algorithm)
    const good = buildImage({ seed: `${id}/first` }).manifest
    const odd = content && manifestOf(content, id)
    this.#first = odd && cell.state !== 'moved' ? odd : good
    this.#second = odd ?? buildImage({ seed: `${id}/second` }).manifest
    this.#artifact = buildArtifact(good, { seed: id }).manifest
    this.#tags = [TAG, ...Array.from({ length: 9 }, (_, nth) => `release-2026.01.0${nth}-final`)]
    this.path = this.#pathOf(this.#first.digest)
    this.#fillUpstream(algorithm)
  }

  /** What the tag, the digest or the blob is stored under when the cell's question was answered. */
  get digest(): Digest {
    const { resource, row, state } = this.#cell
    if (resource === 'blob') return this.blob.digest
    const isSecond = state === 'moved' || row.name === 'tag-moves-and-leaves-nothing'
    return (isSecond ? this.#second : this.#first).digest
  }

  /** As errors name the upstream. */
  get upstreamHost(): string {
    return new URL(this.#station.upstream.url).host
  }

  /** Where the disk remembers what the tag means, relative to the root; undefined when no tag was asked for. */
  get tagFile(): string | undefined {
    const { resource } = this.#cell
    if (resource !== 'tag' && resource !== 'token') return undefined
    return `docker/registry/v2/repositories/${this.name}/_manifests/tags/${TAG}/current/link`
  }

  /** What is right while the upstream can be asked; `stale`: what is right when it cannot. */
  right(source: 'cache' | 'upstream' | 'stale' | undefined): Right {
    const { resource, row, state } = this.#cell
    switch (resource) {
      case 'blob':
        return { bytes: this.blob.bytes }
      case 'tags':
        // What is stored here: the one tag that was pulled.
        return { json: { name: this.name, tags: source === 'stale' ? [TAG] : this.#tags } }
      case 'referrers':
        return { json: { manifests: [{ digest: this.#artifact.digest }] } }
      case 'digest':
        return { bytes: this.#first.bytes }
      case 'tag':
      case 'token': {
        const isMoved = state === 'moved' && source === 'upstream'
        const isSecond = isMoved || row.name === 'tag-moves-and-leaves-nothing'
        return { bytes: (isSecond ? this.#second : this.#first).bytes }
      }
    }
  }

  /** What clients must get once the fault is over, and the question that is answered so. */
  get afterwards(): { readonly path: string; readonly right: Right } {
    const { resource, row, state } = this.#cell
    const isRefusedForGood = row.content !== undefined && row.means.is !== 'harmless'
    if (isRefusedForGood) {
      // That content stays what it is. The repository goes on with its other images.
      const { bytes } = this.#artifact
      return { path: this.#pathOf(this.#artifact.digest, 'digest'), right: { bytes } }
    }
    const hasMoved = state === 'moved' || row.name.startsWith('tag-moves')
    const right = resource === 'tag' && hasMoved ? { bytes: this.#second.bytes } : undefined
    return { path: this.path, right: right ?? this.right('upstream') }
  }

  /** What the upstream is asked for while the fault lasts. */
  get match(): RequestMatch {
    return { repository: this.name, kind: REQUEST_KINDS[this.#cell.resource] }
  }

  /** Brings the cache into the state of the cell. */
  async prepare(): Promise<void> {
    const { resource, row, state } = this.#cell
    if (row.holdsToken) await this.#succeed(this.#pathOf(this.#artifact.digest, 'digest'))
    if (state === 'cold') return
    if (state === 'part') return this.#leavePart()
    // Tags that are known here are those that were pulled.
    if (resource === 'tags') await this.#succeed(this.#pathOf(this.#first.digest, 'tag'))
    await this.#succeed(this.path)
    if (resource === 'blob') await this.#station.layover.stored(this.blob.digest)
    if (state === 'moved') this.#moveTag()
    if (state === 'warm') return
    await this.#station.clock.leap(resource === 'token' ? TOKEN_STALE_MS : STALE_MS)
  }

  /** Tells the upstream what to do wrong. */
  async strike(): Promise<void> {
    const { row } = this.#cell
    if (row.isDown) await this.#station.upstream.down()
    for (const { fault, kinds, method, reference, strikesAll, times } of row.plans) {
      const { repository, ...whatever } = this.match
      const match = {
        ...whatever,
        ...(!strikesAll && repository !== undefined && { repository }),
        ...(kinds && { kind: kinds }),
        ...(method && { method }),
        ...(reference && { reference: this.#first.digest }),
      }
      const plain = fault === 'tag-moves' ? { moveTagTo: this.#second.digest } : fault
      this.#station.upstream.fault(match, plain, times === undefined ? {} : { times })
    }
  }

  async mend(): Promise<void> {
    this.#station.upstream.clearFaults()
    await this.#station.upstream.up()
  }

  #fillUpstream(algorithm: DigestAlgorithm): void {
    const { upstream } = this.#station
    const { name } = this
    upstream.addBlob(name, this.blob)
    for (const { bytes, mediaType } of [this.#second, this.#artifact]) {
      upstream.addManifest(name, bytes, mediaType)
    }
    const { bytes, mediaType } = this.#first
    const digest = upstream.addManifest(name, bytes, mediaType, undefined, algorithm)
    if (this.#cell.row.content === 'many-tags') {
      this.#tags = Array.from({ length: MANY_TAGS }, (_, nth) => `v${nth}`).sort()
    }
    this.#tags = this.#tags.sort()
    for (const tag of this.#tags) upstream.moveTag(name, tag, digest)
  }

  #moveTag(): void {
    this.#station.upstream.moveTag(this.name, TAG, this.#second.digest)
  }

  #pathOf(digest: Digest, resource = this.#cell.resource): string {
    const base = `/v2/${this.name}`
    switch (resource) {
      case 'tag':
      case 'token':
        return `${base}/manifests/${TAG}`
      case 'digest':
        return `${base}/manifests/${digest}`
      case 'blob':
        return `${base}/blobs/${this.blob.digest}`
      case 'tags':
        return `${base}/tags/list`
      case 'referrers':
        return `${base}/referrers/${digest}`
    }
  }

  async #succeed(path: string): Promise<void> {
    const { ending, status } = await this.#station.layover.get(path)
    if (status !== 200 || ending !== 'complete') throw new Error(`GET ${path}: ${status} ${ending}`)
  }

  /** A download is given up after its beginning has reached a client, and so the disk. */
  async #leavePart(): Promise<void> {
    const { layover, upstream } = this.#station
    const gate = upstream.gate(this.match, { afterBytes: PART_MIN_BYTES + 50_000 })
    upstream.fault(this.match, { cutAtByte: PART_MAX_BYTES }, { times: 1 })
    const client = await layover.open(this.path)
    await client.read(PART_MIN_BYTES)
    upstream.fault(this.match, NAMED_FAULTS['not-found'])
    gate.release()
    await client.finish()
    await this.#station.idle()
    upstream.clearFaults()
    upstream.clearGates()
    await waitFor('the part to be there', async () => (await this.parts()).length === 1)
  }

  /** Names of files in the spool. */
  parts(): Promise<string[]> {
    return this.#station.layover.files('layover/spool')
  }
}

/** @returns undefined when only other content is odd */
function manifestOf(content: HostileContent, id: number): TestManifest | undefined {
  switch (content) {
    case 'oversized':
      return varied(hostileManifests.oversized(), id)
    case 'schema-1':
      return varied(hostileManifests.schema1(), id)
    case 'image-and-index':
      return varied(hostileManifests.imageAndIndex(), id)
    case 'unknown-media-type':
      return varied(hostileManifests.unknownMediaType(), id)
    case 'sha512': {
      const { manifest } = buildImage({ seed: `${id}/sha512`, algorithm: 'sha512' })
      return { ...manifest, digest: digestOf(manifest.bytes, 'sha512') }
    }
    case 'many-tags':
      return undefined
  }
}

/** Every cell has its own, since bytes are shared by digest. */
function varied({ bytes, mediaType }: TestManifest, id: number): TestManifest {
  const fields: Readonly<Record<string, unknown>> = JSON.parse(bytes.toString())
  return manifestFrom(mediaType, { ...fields, note: `cell ${id}` })
}
