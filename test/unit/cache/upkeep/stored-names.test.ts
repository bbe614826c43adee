import { describe, expect, it } from 'vitest'
import { StoredNames } from '../../../../src/cache/upkeep/stored-names.ts'
import type { RepositoryName } from '../../../../src/oci/reference.ts'

const hub = new StoredNames({ name: 'registry-1.docker.io', isDockerHub: true })
const corp = new StoredNames({ name: 'registry.corp.example:5000', isDockerHub: false })

describe('a name as people write it', () => {
  it.each([
    ['alpine', 'library/alpine'],
    ['library/alpine', 'library/alpine'],
    ['docker.io/library/alpine', 'library/alpine'],
    ['docker.io/alpine', 'library/alpine'],
    ['index.docker.io/org/app', 'org/app'],
    ['registry-1.docker.io/org/app', 'org/app'],
    ['ghcr.io/org/app', 'ghcr.io/org/app'],
    ['GHCR.io/org/app', 'ghcr.io/org/app'],
    ['registry.corp.example:5000/app', 'registry.corp.example_5000/app'],
    ['cache:5000/app', 'cache_5000/app'],
    ['No/Name', undefined],
    ['', undefined],
  ])('%s is %s before Docker Hub', (text, stored) => {
    expect(hub.storedNameOf(text)).toBe(stored)
  })

  it.each([
    ['app', 'app'],
    ['registry.corp.example:5000/app', 'app'],
    ['docker.io/library/alpine', 'docker.io/library/alpine'],
  ])('%s is %s before another registry', (text, stored) => {
    expect(corp.storedNameOf(text)).toBe(stored)
  })

  it('may be a pattern', () => {
    expect(hub.storedTextOf('docker.io/library/*')).toBe('library/*')
    expect(hub.storedTextOf('library/al*')).toBe('library/al*')
    expect(hub.storedTextOf('ghcr.io/**')).toBe('ghcr.io/**')
  })
})

describe('a stored name', () => {
  it.each([
    ['library/alpine', 'registry-1.docker.io'],
    ['alpine', 'registry-1.docker.io'],
    ['ghcr.io/org/app', 'ghcr.io'],
    ['registry.corp.example_5000/app', 'registry.corp.example:5000'],
    ['localhost/app', 'localhost'],
  ])('%s comes from %s', (name, upstream) => {
    expect(hub.upstreamOf(name as RepositoryName)).toBe(upstream)
  })

  it('knows all names of Docker Hub as one, where that is the default', () => {
    expect(hub.isSameUpstream('docker.io', 'registry-1.docker.io')).toBe(true)
    expect(hub.isSameUpstream('docker.io', 'ghcr.io')).toBe(false)
    expect(corp.isSameUpstream('docker.io', 'registry-1.docker.io')).toBe(false)
  })
})
