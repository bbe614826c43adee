import { describe, expect, it } from 'vitest'
import { selectionOf, type PurgeRequest } from '../../../../src/cache/upkeep/purge-selection.ts'
import { StoredNames } from '../../../../src/cache/upkeep/stored-names.ts'
import type { RepositoryName } from '../../../../src/oci/reference.ts'

const names = new StoredNames({ name: 'registry-1.docker.io', isDockerHub: true })
const DIGEST = `sha256:${'a'.repeat(64)}`
const NOW_MS = 1_000_000

function select(request: PurgeRequest): ReturnType<typeof selectionOf> {
  return selectionOf(request, { names, nowMs: NOW_MS })
}

function includesPinned(request: PurgeRequest): boolean {
  return select(request).includesPinned
}

/** Which of some names are meant. */
function chosen(request: PurgeRequest): string[] {
  const all = ['library/alpine', 'library/node', 'ci/app', 'ci/app/web', 'ghcr.io/ci/app']
  return all.filter((name) => select(request).matchesRepository(name as RepositoryName))
}

describe('what a purge is for', () => {
  it.each<[PurgeRequest, string[]]>([
    [{ image: 'alpine' }, ['library/alpine']],
    [{ image: 'docker.io/library/alpine:3' }, ['library/alpine']],
    [{ image: `alpine@${DIGEST}` }, ['library/alpine']],
    [{ repository: 'ci/*' }, ['ci/app']],
    [{ repository: 'ci/**' }, ['ci/app', 'ci/app/web']],
    [{ image: 'library/*:edge*' }, ['library/alpine', 'library/node']],
    [{ upstream: 'ghcr.io' }, ['ghcr.io/ci/app']],
    [{ upstream: 'docker.io', repository: '**/app' }, ['ci/app']],
    [
      { unusedForMs: 1 },
      ['library/alpine', 'library/node', 'ci/app', 'ci/app/web', 'ghcr.io/ci/app'],
    ],
  ])('%j is for %j', (request, expected) => {
    expect(chosen(request)).toEqual(expected)
  })

  it('tells tags from the port of a registry', () => {
    expect(select({ image: 'cache:5000/app' }).root).toBeUndefined()
    const { root } = select({ image: 'cache:5000/app:1.*' })
    expect(root?.kind === 'tags' && root.matches('1.2')).toBe(true)
    expect(root?.kind === 'tags' && root.matches('2.1')).toBe(false)
  })

  it('includes what is pinned only when it is named in full, or by force', () => {
    for (const image of ['alpine', 'alpine:3', `alpine@${DIGEST}`]) {
      expect(includesPinned({ image })).toBe(true)
    }
    expect(includesPinned({ repository: 'library/alpine' })).toBe(true)
    for (const request of [
      { image: 'alpine:3.*' },
      { image: 'library/*:3' },
      { image: 'library/**' },
      { upstream: 'docker.io' },
      { unusedForMs: 1 },
    ]) {
      expect(includesPinned(request)).toBe(false)
      expect(includesPinned({ ...request, isForced: true })).toBe(true)
    }
  })

  it('takes bytes along that no repository holds only when age is all that counts', () => {
    expect(select({ unusedForMs: 1 }).includesUnlinked).toBe(true)
    expect(select({ unusedForMs: 1, upstream: 'docker.io' }).includesUnlinked).toBe(false)
  })

  it('counts age from now', () => {
    expect(select({ unusedForMs: 400 }).usedBeforeMs).toBe(NOW_MS - 400)
    expect(select({ image: 'alpine' }).usedBeforeMs).toBeUndefined()
  })

  it.each<[PurgeRequest, string]>([
    [{}, 'nothing selected'],
    [{ isForced: true }, 'nothing selected'],
    [{ image: 'a', repository: 'b' }, 'either an image or a repository'],
    [{ image: 'alpine@sha256:12' }, 'after the @'],
    [{ image: 'Alpine' }, 'is no name of a repository'],
    [{ image: 'al pine*' }, 'is no pattern for repositories'],
    [{ image: 'alpine:a b' }, 'is no tag'],
    [{ image: 'alpine:' }, 'is no tag'],
  ])('%j is refused: %s', (request, message) => {
    expect(() => select(request)).toThrow(message)
  })
})
