import { describe, expect, it } from 'vitest'
import { dockerEntry } from '../../../../src/upstream/login/docker-config.ts'

const HUB = 'registry-1.docker.io'

function auth(pair: string): { auth: string } {
  return { auth: Buffer.from(pair).toString('base64') }
}

function entry(config: unknown, host: string): unknown {
  return dockerEntry(JSON.stringify(config), host, 'config.json')
}

const alice = { login: { username: 'alice', password: 'a1' } }

describe('an entry of a docker config', () => {
  it.each([
    ['ghcr.io', 'ghcr.io'],
    ['ghcr.io', 'https://ghcr.io'],
    ['ghcr.io', 'http://GHCR.io/'],
    ['ghcr.io', 'https://ghcr.io/v1/'],
    ['ghcr.io', 'ghcr.io/v2'],
    ['registry.test:5000', 'registry.test:5000'],
    [HUB, 'https://index.docker.io/v1/'],
    [HUB, 'index.docker.io'],
    [HUB, 'docker.io'],
    ['docker.io', 'https://registry-1.docker.io'],
  ])('for %s is found under %s', (host, key) => {
    expect(entry({ auths: { [key]: auth('alice:a1') } }, host)).toEqual(alice)
  })

  it.each([
    ['ghcr.io', 'ghcr.io.evil.test'],
    ['ghcr.io', 'evil.test/ghcr.io'],
    ['ghcr.io.evil.test', 'ghcr.io'],
    ['ghcr.io', 'ghcr'],
    ['ghcr.io', 'ghcr.io/team'],
    ['ghcr.io', 'ghcr.io/v2/team'],
    ['ghcr.io', 'https://user@ghcr.io'],
    ['registry.test', 'registry.test:5000'],
    ['registry.test:5000', 'registry.test'],
    ['hub.docker.com', 'https://index.docker.io/v1/'],
    ['evil-docker.io', 'docker.io'],
    ['constructor', 'ghcr.io'],
  ])('for %s is not the one under %s', (host, key) => {
    expect(entry({ auths: { [key]: auth('alice:a1') } }, host)).toBeUndefined()
  })

  it('under the key that Docker writes counts before other spellings', () => {
    const auths = { 'docker.io': auth('bob:b'), 'https://index.docker.io/v1/': auth('alice:a1') }
    expect(entry({ auths }, HUB)).toEqual(alice)
  })

  it.each([
    ['a password with colons', auth('bob:a:b:c'), { username: 'bob', password: 'a:b:c' }],
    ['padding', auth('bob:b\0\0'), { username: 'bob', password: 'b' }],
    ['two fields', { username: 'bob', password: 'b' }, { username: 'bob', password: 'b' }],
    [
      'a key file',
      auth('_json_key:{"a": "b:c",\n"d": 1}'),
      { username: '_json_key', password: '{"a": "b:c",\n"d": 1}' },
    ],
    [
      'an access token',
      auth('oauth2accesstoken:ya29.x'),
      { username: 'oauth2accesstoken', password: 'ya29.x' },
    ],
    ['an identity token', { ...auth('bob:'), identitytoken: 'idt' }, { identityToken: 'idt' }],
    ['a token under its name', auth('<token>:idt'), { identityToken: 'idt' }],
  ])('may hold %s', (_what, value, login) => {
    expect(entry({ auths: { 'ghcr.io': value } }, 'ghcr.io')).toEqual({ login })
  })

  it('of a helper counts first, then the store for all, then the file', () => {
    const auths = { 'ghcr.io': auth('alice:a1') }
    const credHelpers = { 'ghcr.io': 'gh' }
    expect(entry({ auths, credHelpers, credsStore: 'pass' }, 'ghcr.io')).toEqual({
      helper: 'gh',
      server: 'ghcr.io',
    })
    expect(entry({ auths, credsStore: 'pass' }, 'ghcr.io')).toEqual({
      helper: 'pass',
      server: 'ghcr.io',
    })
    expect(entry({ auths, credsStore: '' }, 'ghcr.io')).toEqual(alice)
    expect(entry({ credHelpers, auths }, 'quay.io')).toBeUndefined()
    expect(entry({ credsStore: 'pass' }, HUB)).toEqual({
      helper: 'pass',
      server: 'https://index.docker.io/v1/',
    })
  })

  it.each([
    ['is not there', {}],
    ['is empty', { auths: { 'ghcr.io': {} } }],
    ['is null', { auths: { 'ghcr.io': null } }],
    ['has no password', { auths: { 'ghcr.io': { username: 'bob' } } }],
    ['is in a list', { auths: ['ghcr.io'] }],
  ])('that %s is none', (_what, config) => {
    expect(entry(config, 'ghcr.io')).toBeUndefined()
  })

  it.each(['{"auths": {"ghcr.io": {"auth": "s3cretText"}}', '["s3cretText"]', ''])(
    'cannot be in what is not a config (%s), and nothing of it is told',
    (text) => {
      const read = (): unknown => dockerEntry(text, 'ghcr.io', '/etc/docker/config.json')
      expect(read).toThrow('/etc/docker/config.json is not a JSON object')
      expect(read).not.toThrow('s3cret')
    },
  )

  it('that is not base64 of a pair is a mistake, and nothing of it is told', () => {
    const auths = { 'ghcr.io': { auth: Buffer.from('s3cretText').toString('base64') } }
    expect(() => entry({ auths }, 'ghcr.io')).toThrow('auth of ghcr.io is not base64')
    expect(() => entry({ auths }, 'ghcr.io')).not.toThrow('s3cret')
  })
})
