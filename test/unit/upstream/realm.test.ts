import { describe, expect, it } from 'vitest'
import { isAllowedRealm } from '../../../src/upstream/realm.ts'

function allowed(realm: string, upstream: string, list: string[] = []): boolean {
  return isAllowedRealm(new URL(realm), new URL(upstream), list)
}

describe('isAllowedRealm', () => {
  it.each([
    ['https://auth.docker.io/token', 'https://registry-1.docker.io'],
    ['https://ghcr.io/token', 'https://ghcr.io'],
    ['https://auth.example.co.uk/token', 'https://registry.example.co.uk'],
    ['https://registry.corp:5000/token', 'https://registry.corp:5000'],
    ['https://10.0.0.1:5000/token', 'https://10.0.0.1:5000'],
    ['http://127.0.0.1:5000/token', 'http://127.0.0.1:5000'],
    ['https://[::1]:5000/token', 'https://[::1]:5000'],
    ['https://example.com:443/token', 'https://example.com'],
  ])('allows %s for %s', (realm, upstream) => {
    expect(allowed(realm, upstream)).toBe(true)
  })

  it.each([
    ['https://evil.test/token', 'https://registry-1.docker.io'],
    ['https://auth.docker.io.evil.test/token', 'https://registry-1.docker.io'],
    ['https://evil.co.uk/token', 'https://registry.co.uk'],
    ['https://bob.github.io/token', 'https://alice.github.io'],
    ['http://auth.docker.io/token', 'https://registry-1.docker.io'],
    ['ftp://registry-1.docker.io/token', 'https://registry-1.docker.io'],
    ['https://user@registry-1.docker.io/token', 'https://registry-1.docker.io'],
    ['https://10.0.0.1:5001/token', 'https://10.0.0.1:5000'],
    ['https://10.0.0.2/token', 'https://10.0.0.1'],
    ['http://localhost:6000/token', 'http://localhost:5000'],
    ['https://[::2]/token', 'https://[::1]'],
  ])('refuses %s for %s', (realm, upstream) => {
    expect(allowed(realm, upstream)).toBe(false)
  })

  it('allows what the operator lists by host, by host and port, or by URL', () => {
    const upstream = 'https://10.0.0.1:5000'
    expect(allowed('https://auth.corp/token', upstream, ['auth.corp'])).toBe(true)
    expect(allowed('https://auth.corp:8443/token', upstream, ['auth.corp:8443'])).toBe(true)
    expect(allowed('https://auth.corp/a/token', upstream, ['https://auth.corp/a'])).toBe(true)
    expect(allowed('https://auth.corp/a', upstream, ['https://auth.corp/a/'])).toBe(true)
    expect(allowed('https://auth.corp/x', upstream, ['https://auth.corp'])).toBe(true)
  })

  it('allows nothing beyond what is listed', () => {
    const upstream = 'https://10.0.0.1:5000'
    expect(allowed('https://auth.corp:8443/token', upstream, ['auth.corp'])).toBe(false)
    expect(allowed('https://auth.corp/ab', upstream, ['https://auth.corp/a'])).toBe(false)
    expect(allowed('https://auth.corp/a/../b', upstream, ['https://auth.corp/a'])).toBe(false)
    expect(allowed('https://auth.corp/a/%2e%2e/b', upstream, ['https://auth.corp/a'])).toBe(false)
    expect(allowed('http://auth.corp/token', upstream, ['auth.corp'])).toBe(false)
    expect(allowed('https://auth.corp/token', upstream, ['not a host', 'https://'])).toBe(false)
  })
})
