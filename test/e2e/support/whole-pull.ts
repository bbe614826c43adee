// A pull that asks for everything there is, of every platform, and looks at every byte: what no client does, and
// what tells whether a volume is all there.

import { digestOf } from './images.ts'

/** One answer of a pull. */
export interface PulledObject {
  /** Of the bytes that came. */
  readonly digest: string
  /** As the header says; undefined where there is none. */
  readonly cache: string | undefined
}

interface ManifestJson {
  readonly manifests?: readonly { readonly digest: string }[]
  readonly config?: { readonly digest: string }
  readonly layers?: readonly { readonly digest: string }[]
}

const ACCEPT = [
  'application/vnd.docker.distribution.manifest.list.v2+json',
  'application/vnd.docker.distribution.manifest.v2+json',
  'application/vnd.oci.image.index.v1+json',
  'application/vnd.oci.image.manifest.v1+json',
].join(', ')

/**
 * @param url of a registry
 * @param reference tag or digest
 * @returns what came, the manifest that was asked for first
 * @throws for an answer that is not 200, and for bytes that are not what their digest says
 */
export async function pullWhole(
  url: string,
  repository: string,
  reference: string,
): Promise<PulledObject[]> {
  const base = `${url}/v2/${repository}`
  const { bytes, ...manifest } = await get(`${base}/manifests/${reference}`, reference)
  const { config, layers = [], manifests = [] }: ManifestJson = JSON.parse(bytes.toString())
  const pulled: PulledObject[] = [manifest]
  for (const { digest } of manifests) pulled.push(...(await pullWhole(url, repository, digest)))
  for (const { digest } of [...(config ? [config] : []), ...layers]) {
    const { bytes: _, ...blob } = await get(`${base}/blobs/${digest}`, digest)
    pulled.push(blob)
  }
  return pulled
}

async function get(url: string, reference: string): Promise<PulledObject & { bytes: Buffer }> {
  const response = await fetch(url, { headers: { accept: ACCEPT } })
  const bytes = Buffer.from(await response.arrayBuffer())
  if (response.status !== 200) throw new Error(`${url}: ${response.status} ${bytes.toString()}`)
  const digest = digestOf(bytes)
  if (reference.includes(':') && digest !== reference) throw new Error(`${url}: ${digest}`)
  return { digest, cache: response.headers.get('x-cache') ?? undefined, bytes }
}
