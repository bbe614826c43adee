import { describe, expect, it } from 'vitest'
import {
  isPublicName,
  parsePathName,
  parseRegistryHost,
  pathNameOf,
} from '../../../src/oci/registry-host.ts'

describe('parseRegistryHost', () => {
  it.each([
    ['ghcr.io', 'ghcr.io'],
    ['GHCR.io', 'ghcr.io'],
    ['registry.corp.example:5000', 'registry.corp.example:5000'],
    ['localhost', 'localhost'],
    ['localhost:5000', 'localhost:5000'],
    ['cache:5000', 'cache:5000'],
    ['127.0.0.1:5000', '127.0.0.1:5000'],
    ['docker.io', 'docker.io'],
    ['index.docker.io', 'docker.io'],
    ['registry-1.docker.io', 'docker.io'],
  ])('reads %s', (text, host) => {
    expect(parseRegistryHost(text)).toBe(host)
  })

  it.each([
    '',
    'ghcr',
    'library',
    '.io',
    'a..b',
    '-a.io',
    'a.io/',
    'a.io:',
    'a.io:port',
    'a b.io',
    'a.io\r\nX: y',
    'user@a.io',
    'https://a.io',
    '[::1]:5000',
    'ä.example',
    'xn--a.com',
    'a.xn--',
    'registry.0x7f',
    '127.1',
    '256.0.0.1',
    'a.io:65536',
    `${'a'.repeat(250)}.example`,
  ])('refuses %j', (text) => {
    expect(parseRegistryHost(text)).toBeUndefined()
  })
})

describe('a host in a name', () => {
  it.each(['ghcr.io', 'registry.corp.example:5000', 'localhost', 'cache:80'])(
    'is found again: %s',
    (text) => {
      const host = parseRegistryHost(text)
      const component = host ? pathNameOf(host) : ''
      expect(component).not.toContain(':')
      expect(parsePathName(component)).toBe(host)
    },
  )

  it.each(['library', 'team_5000x', 'a_b.c', 'v2'])('is not %s', (component) => {
    expect(parsePathName(component)).toBeUndefined()
  })
})

describe('isPublicName', () => {
  it.each([
    ['quay.io', true],
    ['europe-west1-docker.pkg.dev', true],
    ['quay.io:5000', false],
    ['registry.internal', false],
    ['printer.local', false],
    ['nas.home.arpa', false],
    ['1.0.0.10.in-addr.arpa', false],
    ['registry.onion', false],
    ['registry.alt', false],
    ['registry.test', false],
    ['registry.example', false],
    ['registry.invalid', false],
    ['registry.localhost', false],
    ['arpa.io', true],
    ['localhost', false],
    ['10.0.0.1', false],
    ['8.8.8.8', false],
  ])('%s: %s', (text, isPublic) => {
    const host = parseRegistryHost(text)
    expect(host && isPublicName(host)).toBe(isPublic)
  })
})
