// What the fake upstream holds: repositories with their manifests, tags and blobs. A blob is in a
// repository only if it was added there.

import { digestOf, type Digest, type DigestAlgorithm } from '../../src/oci/digest.ts'
import type { TestBlob, TestImage, TestIndex } from './images.ts'

export interface StoredManifest {
  readonly bytes: Buffer
  readonly digest: string
  readonly mediaType: string
}

interface Repository {
  readonly manifests: Map<string, StoredManifest>
  readonly tags: Map<string, string>
  readonly blobs: Map<string, TestBlob>
}

export class FakeUpstreamContent {
  readonly #repositories = new Map<string, Repository>()

  /** Adds an image, an index with all its images, or an artifact; without a tag only by digest. */
  addImage(name: string, tag: string | undefined, image: TestImage | TestIndex): void {
    if ('images' in image) {
      for (const child of image.images) this.addImage(name, undefined, child)
    } else {
      for (const blob of [image.config, ...image.layers]) this.addBlob(name, blob)
    }
    this.addManifest(name, image.manifest.bytes, image.manifest.mediaType, tag)
  }

  /** A `TestBlob` is stored under the digest that it states, be that of its bytes or not. */
  addBlob(name: string, blob: Uint8Array | TestBlob): Digest {
    const isBytes = blob instanceof Uint8Array
    const { bytes, digest } = isBytes ? { bytes: Buffer.from(blob), digest: digestOf(blob) } : blob
    this.#repository(name).blobs.set(digest, { bytes, digest })
    return digest
  }

  addManifest(
    name: string,
    bytes: Buffer,
    mediaType: string,
    tag?: string,
    algorithm: DigestAlgorithm = 'sha256',
  ): Digest {
    const digest = digestOf(bytes, algorithm)
    this.#repository(name).manifests.set(digest, { bytes, digest, mediaType })
    if (tag !== undefined) this.moveTag(name, tag, digest)
    return digest
  }

  /** Makes a tag, or lets it name another manifest. */
  moveTag(name: string, tag: string, digest: string): void {
    this.#repository(name).tags.set(tag, digest)
  }

  deleteTag(name: string, tag: string): void {
    this.#repositories.get(name)?.tags.delete(tag)
  }

  /** Removes a blob or a manifest, and the tags that name it. */
  deleteContent(name: string, digest: string): void {
    const repository = this.#repository(name)
    repository.blobs.delete(digest)
    repository.manifests.delete(digest)
    for (const [tag, target] of repository.tags) {
      if (target === digest) repository.tags.delete(tag)
    }
  }

  /** In lexical order; undefined when there is no such repository. */
  tags(name: string): string[] | undefined {
    const repository = this.#repositories.get(name)
    return repository && [...repository.tags.keys()].sort()
  }

  blob(name: string, digest: string): TestBlob | undefined {
    return this.#repositories.get(name)?.blobs.get(digest)
  }

  /** By tag or digest. */
  manifest(name: string, reference: string): StoredManifest | undefined {
    const repository = this.#repositories.get(name)
    return repository?.manifests.get(repository.tags.get(reference) ?? reference)
  }

  manifests(name: string): StoredManifest[] {
    return [...(this.#repositories.get(name)?.manifests.values() ?? [])]
  }

  #repository(name: string): Repository {
    let repository = this.#repositories.get(name)
    if (!repository) {
      repository = { manifests: new Map(), tags: new Map(), blobs: new Map() }
      this.#repositories.set(name, repository)
    }
    return repository
  }
}
