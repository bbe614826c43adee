// Names, tags and digests: what is accepted is safe in a path and in a URL, and comes back as it was written.

import path from 'node:path'
import * as fc from 'fast-check'
import { describe, expect, it } from 'vitest'
import { algorithmOf, digestOf, hexOf, matchesDigest, parseDigest } from '../../src/oci/digest.ts'
import {
  formatReference,
  parseReference,
  parseRepositoryName,
  parseTag,
} from '../../src/oci/reference.ts'
import { StoragePaths } from '../../src/storage/paths.ts'

/** Characters that mean something to a path, a URL, a shell or a terminal, among harmless ones. */
const HOSTILE = fc.string({
  unit: fc.constantFrom(...'abz019._-/\\%:@?#&= \t\n\r\u0000\u00e4\u2025~$`"\'<>|;*'.split('')),
  maxLength: 40,
})
const ANY = fc.oneof(HOSTILE, fc.string({ unit: 'binary' }))

describe('a repository name', () => {
  const component = fc.stringMatching(/^[a-z0-9]{1,8}((\.|_|__|-{1,3})[a-z0-9]{1,8}){0,2}$/)
  const names = fc.array(component, { minLength: 1, maxLength: 5 }).map((parts) => parts.join('/'))

  it('of the grammar is accepted as it is', () => {
    fc.assert(
      fc.property(names, (name) => {
        expect(parseRepositoryName(name)).toBe(name)
      }),
    )
  })

  it('that is accepted stays below the root, and itself in a URL', () => {
    const root = '/srv/cache'
    const paths = new StoragePaths(root)
    fc.assert(
      fc.property(fc.oneof(ANY, names), (text) => {
        const name = parseRepositoryName(text)
        if (!name) return
        const directory = paths.repository(name)
        expect(path.relative(paths.repositories, directory)).toBe(text)
        expect(new URL(`http://host/v2/${name}/tags/list`).pathname).toBe(`/v2/${text}/tags/list`)
        expect(text.split('/').some((part) => part === '' || part.startsWith('_'))).toBe(false)
      }),
    )
  })

  it('may be 255 characters long', () => {
    expect(parseRepositoryName('a'.repeat(255))).toBeDefined()
    expect(parseRepositoryName('a'.repeat(256))).toBeUndefined()
  })

  it('is decided at once, however it is made', () => {
    expect(parseRepositoryName(`${'a-'.repeat(127)}!`)).toBeUndefined()
    expect(parseRepositoryName('a'.repeat(10_000_000))).toBeUndefined()
  })
})

describe('a tag', () => {
  it('that is accepted is one component of a path, and itself in a URL', () => {
    fc.assert(
      fc.property(ANY, (text) => {
        const tag = parseTag(text)
        if (!tag) return
        expect(path.basename(tag)).toBe(text)
        expect(['.', '..']).not.toContain(text)
        expect(encodeURIComponent(tag)).toBe(text)
      }),
    )
  })

  it('of the grammar is accepted as it is', () => {
    fc.assert(
      fc.property(fc.stringMatching(/^[a-zA-Z0-9_][a-zA-Z0-9._-]{0,127}$/), (text) => {
        expect(parseReference(text)).toEqual({ kind: 'tag', tag: text })
      }),
    )
  })
})

describe('a digest', () => {
  const algorithms = fc.constantFrom('sha256', 'sha384', 'sha512')
  const bytes = fc.uint8Array({ maxLength: 64 })

  it('is what was computed, and nothing that differs from it', () => {
    fc.assert(
      fc.property(bytes, algorithms, (content, algorithm) => {
        const digest = digestOf(content, algorithm)
        expect(parseDigest(digest)).toBe(digest)
        expect(`${algorithmOf(digest)}:${hexOf(digest)}`).toBe(digest)
        expect(matchesDigest(content, digest)).toBe(true)
        expect(matchesDigest(Buffer.concat([content, Buffer.from('x')]), digest)).toBe(false)
        const reference = parseReference(digest)
        expect(reference && formatReference(reference)).toBe(digest)
        for (const wrong of [digest.slice(1), `${digest}0`, digest.toUpperCase(), ` ${digest}`]) {
          expect(parseDigest(wrong)).toBeUndefined()
        }
      }),
    )
  })

  it('is nothing else', () => {
    fc.assert(
      fc.property(ANY, (text) => {
        expect(parseDigest(text)).toBeUndefined()
      }),
    )
  })
})
