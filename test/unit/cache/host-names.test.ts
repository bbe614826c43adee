import { describe, expect, it } from 'vitest'
import { isOwnHost } from '../../../src/cache/host-names.ts'
import type { RegistryHost } from '../../../src/oci/registry-host.ts'

const names = { others: ['*', '*.corp.internal', 'localhost:5000'], main: ['docker.io', 'a.com'] }

describe('a host', () => {
  it.each([
    ['ghcr.io', true],
    ['x.corp.internal', true],
    ['localhost:5000', true],
    ['corp.internal', false],
    ['printer.local', false],
    ['docker.io', false],
    ['a.com', false],
  ])('%s has an upstream of its own: %s', (host, isOwn) => {
    expect(isOwnHost(names, host as RegistryHost)).toBe(isOwn)
  })
})
