// Manifests come from outside: whatever the bytes are, they are read or refused, and nothing odd gets through.

import * as fc from 'fast-check'
import { describe, expect, it } from 'vitest'
import { parseDigest } from '../../src/oci/digest.ts'
import { ManifestInvalidError, readManifest, type ManifestContent } from '../../src/oci/manifest.ts'

const FIELDS = [
  'schemaVersion',
  'mediaType',
  'config',
  'layers',
  'manifests',
  'blobs',
  'subject',
  'digest',
  'size',
  'platform',
  '__proto__',
]

const json = fc.letrec((tie) => ({
  value: fc.oneof(
    { depthSize: 'small' },
    fc.jsonValue({ maxDepth: 1 }),
    fc.constantFrom(1, 2, -1, 1.5, 2 ** 60, `sha256:${'a'.repeat(64)}`, 'linux', 'amd64'),
    fc.array(tie('value'), { maxLength: 4 }),
    tie('object'),
  ),
  object: fc.dictionary(fc.constantFrom(...FIELDS), tie('value'), { maxKeys: 8 }),
}))

function read(bytes: Uint8Array): ManifestContent | undefined {
  try {
    return readManifest(bytes)
  } catch (error) {
    expect(error).toBeInstanceOf(ManifestInvalidError)
    return undefined
  }
}

describe('readManifest', () => {
  it('reads or refuses any JSON, and names only what can be asked for', () => {
    fc.assert(
      fc.property(json.object, (value) => {
        const content = read(Buffer.from(JSON.stringify(value)))
        if (!content) return
        expect(content.mediaType).toMatch(/^[\w.+/-]{1,255}$/)
        for (const { digest, sizeBytes } of [...content.blobs, ...content.manifests]) {
          expect(parseDigest(digest)).toBe(digest)
          expect(Number.isSafeInteger(sizeBytes) && sizeBytes >= 0).toBe(true)
        }
        expect(content.blobs.length === 0 || content.manifests.length === 0).toBe(true)
      }),
      { numRuns: 1000 },
    )
  })

  it('reads or refuses any bytes', () => {
    fc.assert(fc.property(fc.uint8Array({ maxLength: 100 }), (bytes) => void read(bytes)))
  })
})
