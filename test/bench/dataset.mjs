// The images that are pulled: the same bytes on every machine and in every run, and incompressible, as
// layers are. Written as plain files, one per digest, with a catalog that the origin serves from:
//   DIR/blobs/<hex>      every blob and every manifest
//   DIR/catalog.json     { repositories: { <name>: { tags: { <tag>: <digest> }, digests: [...] } } }
//   DIR/paths/<set>.txt  request paths, one a line, for the drivers

import { createCipheriv, createHash } from 'node:crypto'
import { existsSync } from 'node:fs'
import { mkdir, open, readFile, rename, writeFile } from 'node:fs/promises'
import path from 'node:path'

export const MANIFEST_TYPE = 'application/vnd.docker.distribution.manifest.v2+json'
const CONFIG_TYPE = 'application/vnd.docker.container.image.v1+json'
const LAYER_TYPE = 'application/vnd.docker.image.rootfs.diff.tar.gzip'

/** Goes up whenever the same sizes would give other bytes, so that a kept data set is not misread. */
const FORMAT = 2
const CHUNK_BYTES = 4 * 1024 * 1024
const SMALL_BYTES = 10 * 1024
const MANIFEST_LEAST_BYTES = 1000

export const FULL_SIZES = {
  repositories: 50,
  smallBlobs: 1000,
  otherBlobs: 3000,
  mediumBlobs: 20,
  mediumBytes: 5_000_000,
  hundredBytes: 100_000_000,
  largeBytes: 1024 ** 3,
}

/** Everything a few times smaller: for a look while developing, not for figures to quote. */
export const QUICK_SIZES = {
  repositories: 50,
  smallBlobs: 250,
  otherBlobs: 500,
  mediumBlobs: 10,
  mediumBytes: 2_000_000,
  hundredBytes: 20_000_000,
  largeBytes: 128 * 1024 ** 2,
}

/** Blobs that no scenario measures: pulled through a server that was just started, see targets.mjs. */
const PRIMING_BLOBS = 64

/**
 * Builds the data set, or takes the one that is already there if its sizes are the same.
 *
 * @returns {Promise<{ directory: string, sizes: typeof FULL_SIZES,
 *   paths: Record<string, { file: string, list: string[], leastBytes: number }> }>}
 */
export async function prepareDataset(directory, sizes) {
  const catalogFile = path.join(directory, 'catalog.json')
  if (existsSync(catalogFile)) {
    const kept = JSON.parse(await readFile(catalogFile, 'utf8'))
    if (kept.format === FORMAT && JSON.stringify(kept.sizes) === JSON.stringify(sizes)) {
      return { directory, sizes, paths: await writePaths(directory, kept.repositories, sizes) }
    }
  }
  await mkdir(path.join(directory, 'blobs'), { recursive: true })
  const repositories = await writeImages(new Builder(directory), sizes)
  await writeFile(catalogFile, JSON.stringify({ format: FORMAT, sizes, repositories }))
  return { directory, sizes, paths: await writePaths(directory, repositories, sizes) }
}

async function writeImages(builder, sizes) {
  const small = []
  for (let i = 0; i < sizes.smallBlobs; i++) small.push(await builder.blob(SMALL_BYTES))
  await builder.image('many/small', 'latest', small)

  // 100 manifests of 1-3 KB. Nobody asks for their layers, so they share those that exist.
  for (let i = 0; i < sizes.repositories; i++) {
    const name = `library/app${String(i).padStart(2, '0')}`
    for (const tag of ['v1', 'latest']) {
      await builder.image(name, tag, small.slice(i, i + 4 + (i % 8)))
    }
  }

  const medium = []
  for (let i = 0; i < sizes.mediumBlobs; i++) medium.push(await builder.blob(sizes.mediumBytes))
  await builder.image('many/medium', 'latest', medium)

  const priming = []
  for (let i = 0; i < PRIMING_BLOBS; i++) priming.push(await builder.blob(SMALL_BYTES))
  await builder.image('priming/blobs', 'latest', [...priming, await builder.blob(5_000_000)])

  const others = []
  for (let i = 0; i < sizes.otherBlobs; i++) others.push(await builder.blob(SMALL_BYTES))
  await builder.image('many/others', 'latest', others)

  await builder.image('one/hundred', 'latest', [await builder.blob(sizes.hundredBytes)])
  await builder.image('one/large', 'latest', [await builder.blob(sizes.largeBytes)])
  return builder.repositories
}

/** Which paths the scenarios ask for, and the size of the smallest answer to one of each set. */
async function writePaths(directory, repositories, sizes) {
  const layers = (name) => repositories[name].layers.map((digest) => `/v2/${name}/blobs/${digest}`)
  const images = Object.entries(repositories).filter(([name]) => name.startsWith('library/'))
  const manifests = (referencesOf) =>
    images.flatMap(([name, repository]) =>
      referencesOf(repository.tags).map((reference) => `/v2/${name}/manifests/${reference}`),
    )
  const lists = {
    'manifests-by-tag': [manifests(Object.keys), MANIFEST_LEAST_BYTES],
    'manifests-by-digest': [manifests(Object.values), MANIFEST_LEAST_BYTES],
    'small-blobs': [layers('many/small'), SMALL_BYTES],
    'other-blobs': [layers('many/others'), SMALL_BYTES],
    'medium-blobs': [layers('many/medium'), sizes.mediumBytes],
    'hundred-blob': [layers('one/hundred'), sizes.hundredBytes],
    'large-blob': [layers('one/large'), sizes.largeBytes],
    priming: [layers('priming/blobs'), SMALL_BYTES],
  }
  await mkdir(path.join(directory, 'paths'), { recursive: true })
  const paths = {}
  for (const [name, [list, leastBytes]] of Object.entries(lists)) {
    const file = path.join(directory, 'paths', `${name}.txt`)
    await writeFile(file, list.join('\n') + '\n')
    paths[name] = { file, list, leastBytes }
  }
  return paths
}

class Builder {
  #directory
  #seed = 0
  repositories = {}

  constructor(directory) {
    this.#directory = directory
  }

  /** A blob of pseudo-random bytes: the key stream of AES, each blob from its own counter block. */
  async blob(sizeBytes) {
    const counter = Buffer.alloc(16)
    counter.writeUInt32BE(++this.#seed, 0)
    const cipher = createCipheriv('aes-128-ctr', Buffer.alloc(16, 7), counter)
    const hash = createHash('sha256')
    const zeros = Buffer.alloc(Math.min(sizeBytes, CHUNK_BYTES))
    const unnamed = path.join(this.#directory, 'unnamed')
    const file = await open(unnamed, 'w')
    for (let left = sizeBytes; left > 0;) {
      const chunk = cipher.update(zeros.subarray(0, Math.min(left, zeros.length)))
      hash.update(chunk)
      await file.write(chunk)
      left -= chunk.length
    }
    await file.close()
    const hex = hash.digest('hex')
    await rename(unnamed, this.#path(hex))
    return { digest: `sha256:${hex}`, size: sizeBytes }
  }

  async image(name, tag, layers) {
    const config = await this.#json({
      architecture: 'amd64',
      os: 'linux',
      config: { Labels: { image: `${name}:${tag}` } },
      rootfs: { type: 'layers', diff_ids: layers.map((layer) => layer.digest) },
    })
    const manifest = await this.#json({
      schemaVersion: 2,
      mediaType: MANIFEST_TYPE,
      config: { mediaType: CONFIG_TYPE, ...config },
      layers: layers.map((layer) => ({ mediaType: LAYER_TYPE, ...layer })),
    })
    const repository = (this.repositories[name] ??= { tags: {}, layers: [], digests: [] })
    repository.tags[tag] = manifest.digest
    repository.layers.push(...layers.map((layer) => layer.digest))
    repository.digests.push(manifest.digest, config.digest, ...layers.map((layer) => layer.digest))
  }

  async #json(value) {
    const bytes = Buffer.from(JSON.stringify(value, undefined, 3))
    const hex = createHash('sha256').update(bytes).digest('hex')
    await writeFile(this.#path(hex), bytes)
    return { digest: `sha256:${hex}`, size: bytes.length }
  }

  #path(hex) {
    return path.join(this.#directory, 'blobs', hex)
  }
}
