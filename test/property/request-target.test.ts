// Paths under /v2/: whatever name, tag or digest is put into one comes out again, and nothing else does.

import * as fc from 'fast-check'
import { describe, expect, it } from 'vitest'
import { parseTarget, type RequestTarget } from '../../src/http/request-target.ts'
import { digestOf } from '../../src/oci/digest.ts'
import { formatReference } from '../../src/oci/reference.ts'
import { RegistryError } from '../../src/oci/registry-error.ts'

/** Components that are keywords elsewhere come as often as others. */
const component = fc.oneof(
  fc.stringMatching(/^[a-z0-9]{1,8}([._-][a-z0-9]{1,4})?$/),
  fc.constantFrom('manifests', 'blobs', 'tags', 'list', 'referrers', 'v2', 'uploads'),
)
const names = fc.array(component, { minLength: 1, maxLength: 6 }).map((parts) => parts.join('/'))
const tags = fc.oneof(
  fc.stringMatching(/^[a-zA-Z0-9_][a-zA-Z0-9._-]{0,20}$/),
  fc.constantFrom('manifests', 'list', 'latest'),
)
const digests = fc.uint8Array({ maxLength: 8 }).map((bytes) => digestOf(bytes))

function formatTarget(target: RequestTarget): string {
  switch (target.kind) {
    case 'base':
      return ''
    case 'catalog':
      return '_catalog'
    case 'manifest':
      return `${target.name}/manifests/${formatReference(target.reference)}`
    case 'blob':
      return `${target.name}/blobs/${target.digest}`
    case 'tags':
      return `${target.name}/tags/list`
    case 'referrers':
      return `${target.name}/referrers/${target.digest}`
  }
}

describe('parseTarget', () => {
  it('gives back what a path was made of', () => {
    fc.assert(
      fc.property(names, tags, digests, (name, tag, digest) => {
        const kinds: [string, object][] = [
          [`manifests/${tag}`, { kind: 'manifest', name, reference: { kind: 'tag', tag } }],
          [
            `manifests/${digest}`,
            { kind: 'manifest', name, reference: { kind: 'digest', digest } },
          ],
          [`blobs/${digest}`, { kind: 'blob', name, digest }],
          [`referrers/${digest}`, { kind: 'referrers', name, digest }],
          ['tags/list', { kind: 'tags', name }],
        ]
        for (const [rest, expected] of kinds) {
          const path = `${name}/${rest}`
          expect(parseTarget(path)).toEqual(expected)
          expect(parseTarget(path.replaceAll(':', '%3a'))).toEqual(expected)
        }
      }),
    )
  })

  it('understands a path in one way only, or refuses it with a code of its own', () => {
    const parts = fc.oneof(
      component,
      tags,
      digests,
      fc.constantFrom('', '.', '..', '%2f', '%2e%2e', '%00', '%3A', '\\', '\u0000', '\u00e4', '_x'),
      fc.string({ maxLength: 6 }),
    )
    const paths = fc.array(parts, { maxLength: 7 }).map((list) => list.join('/'))
    fc.assert(
      fc.property(paths, (path) => {
        try {
          const target = parseTarget(path)
          if (target) expect(formatTarget(target)).toBe(path.replace(/%3A/gi, ':'))
        } catch (error) {
          expect(error).toBeInstanceOf(RegistryError)
          expect((error as RegistryError).code).toMatch(
            /^(NAME_INVALID|NAME_UNKNOWN|DIGEST_INVALID|MANIFEST_UNKNOWN)$/,
          )
        }
      }),
      { numRuns: 1000 },
    )
  })
})
