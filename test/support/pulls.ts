// Pulls of whole images, as clients do them, and what is left of them on disk.

import { expect } from 'vitest'
import type { TestBlob, TestImage } from './images.ts'
import { blobFile, type Layover } from './layover.ts'
import { waitFor } from './wait-for.ts'

export const NAME = 'library/app'

export const urlOf = ({ digest }: TestBlob, name = NAME): string => `/v2/${name}/blobs/${digest}`

/** Waits until no download is under way. */
export async function idle(layover: Layover): Promise<void> {
  await waitFor('the downloads to be over', async () => {
    return (await layover.metric('layover_fills_running')) === 0
  })
}

/** The manifest, then all that it names; returns when all downloads are over. */
export async function pull(
  layover: Layover,
  tag: string,
  image: TestImage,
  name = NAME,
): Promise<void> {
  const manifest = await layover.get(`/v2/${name}/manifests/${tag}`)
  expect(manifest.body.equals(image.manifest.bytes)).toBe(true)
  for (const blob of [image.config, ...image.layers]) {
    const { body } = await layover.get(urlOf(blob, name))
    expect(body.equals(blob.bytes)).toBe(true)
  }
  await idle(layover)
}

export async function isStored(layover: Layover, { digest }: TestBlob): Promise<boolean> {
  return (await layover.files()).includes(blobFile(digest))
}

/** Of the manifest, the config and the layers. */
export async function stored(layover: Layover, image: TestImage): Promise<boolean[]> {
  const files = new Set(await layover.files())
  return [image.manifest, image.config, ...image.layers].map(({ digest }) => {
    return files.has(blobFile(digest))
  })
}
