import { describe, expect, it } from 'vitest'

import { formatConfiguration } from '../../../src/config/format.ts'
import type { Configuration, UpstreamConfiguration } from '../../../src/config/schema.ts'
import { load } from './fixture.ts'

function text(...lines: string[]): string {
  return [
    'version: 0.1',
    'proxy:',
    '  remoteurl: https://registry-1.docker.io',
    ...lines.map((line) => `  ${line}`),
  ].join('\n')
}

/** The upstream that these keys make. */
function upstream(name: string, keys: string): UpstreamConfiguration | undefined {
  const { configuration } = load(text(`upstreams: {"${name}": ${keys}}`))
  return configuration?.proxy.others[0]
}

function problems(name: string, keys: string): readonly string[] {
  return load(text(`upstreams: {"${name}": ${keys}}`)).problems
}

describe('proxy.upstreams', () => {
  it.each([
    ['ghcr.io', 'https://ghcr.io'],
    ['quay.io', 'https://quay.io'],
    ['europe-west1-docker.pkg.dev', 'https://europe-west1-docker.pkg.dev'],
    ['Registry.K8s.IO', 'https://registry.k8s.io'],
    ['registry.corp.example:5000', 'https://registry.corp.example:5000'],
    ['localhost:5000', 'https://localhost:5000'],
  ])('needs no more than the name: %s', (name, url) => {
    expect(upstream(name, '{}')).toMatchObject({
      name: name.toLowerCase(),
      remoteUrls: [url],
      isDockerHub: false,
      credentials: undefined,
    })
    expect(load(text(`upstreams: {"${name}": {}}`)).warnings).toEqual([])
  })

  it.each(['xn--a.com', '127.1:5000', 'a.io:65536', 'a.io.300'])('refuses %s', (name) => {
    expect(problems(name, '{}')).toEqual([expect.stringContaining('is no host')])
  })

  it.each(['docker.io', 'index.docker.io', 'registry-1.docker.io'])('knows %s', (name) => {
    const lines = [
      'version: 0.1',
      `proxy: {remoteurl: "https://ghcr.io", upstreams: {${name}: {}}}`,
    ]
    const { configuration } = load(lines.join('\n'))
    expect(configuration?.proxy.main.servesDockerHub).toBe(false)
    expect(configuration?.proxy.others).toMatchObject([
      { name: 'docker.io', remoteUrls: ['https://registry-1.docker.io'], isDockerHub: true },
    ])
  })

  it('inherits how long things are kept, and nothing that concerns who we are', () => {
    const { configuration } = load(
      text(
        'username: robot',
        'password: secret',
        'ttl: 2h',
        'tagttl: 3m',
        'tagrules: {latest: 30s}',
        'allow: [library/**]',
        'upstreams: {ghcr.io: {}, quay.io: {ttl: 0, tagttl: 0, tagrules: {"v*": immutable}}}',
      ),
    )
    expect(configuration?.proxy.others).toMatchObject([
      {
        credentials: undefined,
        ttlMs: 7_200_000,
        tagTtlMs: 180_000,
        tagRules: [{ pattern: 'latest', ttlMs: 30_000 }],
        allow: [],
      },
      { ttlMs: 0, tagTtlMs: 0, tagRules: [{ pattern: 'v*', ttlMs: Infinity }] },
    ])
  })

  it('takes several URLs as mirrors and their origin', () => {
    const urls = '["https://mirror.example/hub/", "https://docker.io"]'
    expect(upstream('a.example', `{remoteurl: ${urls}}`)).toMatchObject({
      remoteUrls: ['https://mirror.example/hub', 'https://registry-1.docker.io'],
      isDockerHub: true,
    })
  })

  it.each([
    ['{username: u, password: p}', { kind: 'static', username: 'u', password: 'p' }],
    [
      '{username: u, passwordfile: /run/p}',
      { kind: 'files', username: 'u', passwordFile: '/run/p' },
    ],
    [
      '{usernamefile: /run/u, passwordfile: /run/p}',
      { kind: 'files', username: undefined, usernameFile: '/run/u', passwordFile: '/run/p' },
    ],
    ['{credentials: {dockerconfig: true}}', { kind: 'docker-config', file: undefined }],
    ['{credentials: {dockerconfig: /a.json}}', { kind: 'docker-config', file: '/a.json' }],
    ['{credentials: {dockerconfig: false}}', undefined],
    ['{credentials: {helper: ecr-login}}', { kind: 'helper', helper: 'ecr-login' }],
    [
      '{credentials: {exec: {command: /bin/login, lifetime: 1h}}}',
      { kind: 'exec', command: '/bin/login', lifetimeMs: 3_600_000 },
    ],
    [
      '{credentials: {exec: {command: /bin/login}}}',
      { kind: 'exec', command: '/bin/login', lifetimeMs: Infinity },
    ],
  ])('takes the credentials of %s', (keys, credentials) => {
    expect(upstream('a.example', keys)?.credentials).toEqual(credentials)
  })

  it('takes the command of distribution for the main one', () => {
    const { configuration } = load(text('exec: {command: /bin/login, lifetime: 0}'))
    expect(configuration?.proxy.main.credentials).toEqual({
      kind: 'exec',
      command: '/bin/login',
      lifetimeMs: 0,
    })
  })

  it('leaves out what is not enabled; for any public registry that must be said', () => {
    const lines = 'upstreams: {"*": {}, ghcr.io: {enabled: false}, "*.pkg.dev": {}}'
    const { configuration, warnings } = load(text(lines))
    expect(configuration?.proxy.others.map(({ name }) => name)).toEqual(['*.pkg.dev'])
    expect(warnings).toEqual(['proxy.upstreams."*": has no effect without enabled: true'])
    expect(upstream('*', '{enabled: true}')).toMatchObject({ name: '*', remoteUrls: [] })
  })

  it('warns each time that a certificate is not checked', () => {
    const { warnings } = load(text('upstreams: {ghcr.io: {skipverify: true}}'))
    expect(warnings).toEqual([
      expect.stringMatching(/^proxy\.upstreams\.ghcr\.io\.skipverify: the certificate is not/),
    ])
  })

  it.each([
    ['ghcr', '{}', 'proxy.upstreams.ghcr: expected a registry host'],
    ['https://ghcr.io', '{}', 'expected a registry host'],
    ['a_b.example', '{}', 'expected a registry host'],
    ['docker.io', '{}', 'this is proxy.remoteurl; put its keys under proxy itself'],
    ['*', '{enabled: true, username: u, password: p}', 'is for registries without credentials'],
    ['*', '{enabled: true, remoteurl: "https://a"}', 'has no URL of its own'],
    ['*.a.example', '{hosts: [b]}', 'can stand for one registry only'],
    ['*.a.example', '{username: u, password: p}', 'and a password is for one'],
    ['*.a.example', '{credentials: {exec: {command: c}}}', 'and a password is for one'],
    ['a.example', '{passwordfile: f}', 'a.example.username: expected a username, since there'],
    ['a.example', '{username: u}', 'a.example.password: expected a password, since'],
    ['a.example', '{password: p}', 'a.example.username: expected a username, since'],
    ['a.example', '{username: u, password: p, passwordfile: f}', 'passwordfile: cannot stand'],
    [
      'a.example',
      '{username: u, password: p, credentials: {helper: x}}',
      'a.example.credentials: there is more than one source',
    ],
    ['a.example', '{credentials: {helper: "a b"}}', 'helper: expected what follows'],
    ['a.example', '{credentials: {exec: {lifetime: 1h}}}', 'exec.command: expected a command'],
    ['a.example', '{certificate: /a}', 'certificate and key go together'],
    ['a.example', '{allow: ["Team/*"]}', 'allow.0: expected a repository such as'],
    ['a.example', '{tagrules: {latest: often}}', 'tagrules.latest: expected a duration such as'],
    ['a.example', '{tagrules: {"a b": 1s}}', 'expected a tag, in which * stands for'],
    ['a.example', '{ttl: 10us}', 'a.example.ttl: expected a second or more'],
    ['a.example', '{httpproxy: "ftp://a"}', 'httpproxy: expected an http or https proxy'],
    ['a.example', '{redirecthosts: ["https://a"]}', 'redirecthosts.0: expected a host such as'],
    ['a.example', '{maxconnections: 0}', 'maxconnections: expected a whole number'],
    ['a.example', '{private: true}', 'private: clients are not authenticated by this version'],
    [
      'a.example',
      '{repositories: {"team/**": {private: true}}}',
      'a.example.repositories."team/**".private: clients are not authenticated',
    ],
  ])('%s does not start with %s', (name, keys, problem) => {
    expect(problems(name, keys)).toEqual([expect.stringContaining(problem)])
  })

  it('does not start when two names are one, or one name of the cache is two', () => {
    const twice = 'upstreams: {ghcr.io: {hosts: [a]}, GHCR.io: {}, quay.io: {hosts: [A]}}'
    expect(load(text(twice)).problems).toEqual([
      expect.stringContaining('stands twice: it is ghcr.io under another name'),
    ])
    const hosts = 'upstreams: {ghcr.io: {hosts: [a]}, quay.io: {hosts: [A]}}'
    expect(load(text(hosts)).problems).toEqual([
      'proxy.upstreams: a stands for ghcr.io and for quay.io; it can stand for one of them',
    ])
  })

  it('is for the main one under proxy itself', () => {
    const { configuration } = load(text('deny: [library/x]', 'timeout: 5s', 'private: false'))
    expect(configuration?.proxy.main).toMatchObject({ deny: ['library/x'], timeoutMs: 5_000 })
    expect(load(text('private: true')).problems).toEqual([
      expect.stringMatching(/^proxy\.private: clients are not authenticated/),
    ])
  })

  it('can be set by variables', () => {
    const { configuration } = load(text('upstreams: {ghcr.io: {username: u}}'), {
      'REGISTRY_PROXY_UPSTREAMS_GHCR.IO_PASSWORD': 'p',
    })
    expect(configuration?.proxy.others[0]?.credentials).toMatchObject({ password: 'p' })
  })
})

function listeners(list: string): string {
  return `${text('upstreams: {ghcr.io: {}, "*.pkg.dev": {}}')}\nhttp: {listeners: ${list}}`
}

describe('http.listeners', () => {
  it.each(['docker.io', 'index.docker.io', 'Registry-1.docker.io'])(
    'may be bound to %s where that is one of the others',
    (name) => {
      const list = `[{addr: ":1", upstream: ${name}}]`
      const file = listeners(list)
        .replace('registry-1.docker.io', 'quay.io')
        .replace('ghcr.io: {}', 'docker.io: {}')
      const { configuration, problems } = load(file)
      expect(problems).toEqual([])
      expect(configuration?.http.listeners).toMatchObject([{ upstream: 'docker.io' }])
    },
  )

  it('belong to an upstream each', () => {
    const { configuration } = load(
      listeners('[{addr: ":5001", upstream: ghcr.io}, {addr: ":5002", upstream: docker.io}]'),
    )
    expect(configuration?.http.listeners).toEqual([
      { listen: { host: undefined, port: 5001 }, upstream: 'ghcr.io' },
      { listen: { host: undefined, port: 5002 }, upstream: 'registry-1.docker.io' },
    ])
  })

  it.each([
    ['[{addr: ":5001"}]', 'upstream: expected one of registry-1.docker.io, ghcr.io, got ""'],
    ['[{addr: ":5001", upstream: "*.pkg.dev"}]', 'upstream: expected one of'],
    ['[{addr: "5001", upstream: ghcr.io}]', 'http.listeners.0.addr: expected an address'],
    ['[{upstream: ghcr.io}]', 'http.listeners.0.addr: expected an address'],
  ])('do not start as %s', (list, problem) => {
    expect(load(listeners(list)).problems).toEqual([expect.stringContaining(problem)])
  })
})

describe('a configuration with upstreams', () => {
  it('is printed so that it reads the same again, without its secrets', () => {
    const full = text(
      'upstreams:',
      '  ghcr.io: {username: u, passwordfile: /run/p, usernamefile: /run/u}',
      '  quay.io: {username: u, password: hunter2, httpproxy: none, private: false}',
      '  a.example: {credentials: {dockerconfig: true}, ca: /ca.pem, certificate: /c, key: /k}',
      '  b.example: {credentials: {dockerconfig: /d.json}, skipverify: true, allow: [a/**]}',
      '  c.example: {credentials: {helper: ecr-login}, deny: ["*-x"], timeout: 5s}',
      '  d.example: {credentials: {exec: {command: c, lifetime: 0s}}, connecttimeout: 2s}',
      '  e.example: {credentials: {exec: {command: c}}, maxconnections: 5}',
      '  f.example:5000: {remoteurl: ["https://f", "http://g:1/x"], requestspersecond: 9}',
      '  g.example: {tagrules: {latest: 30s, "v*": immutable}, ttl: 0, tagttl: 0}',
      '  h.example: {redirecthosts: ["*.cdn.example"], allowprivateaddresses: true, allowedrealms: [auth.example]}',
      '  "*.pkg.dev": {}',
      '  "*": {enabled: true, httpproxy: "http://user:hunter2@proxy:3128"}',
    )
    const { configuration } = load(`${full}\nhttp: {listeners: [{addr: ":1", upstream: quay.io}]}`)
    const shown = print(configuration)
    expect(shown).not.toContain('hunter2')
    const again = load(shown)
    expect(again.problems).toEqual([])
    expect(print(again.configuration)).toBe(shown)
    const masked = again.configuration?.proxy.others ?? []
    const expected = configuration?.proxy.others.map((each) => ({
      ...each,
      credentials:
        each.credentials?.kind === 'static'
          ? { ...each.credentials, password: '***' }
          : each.credentials,
      httpProxy: each.httpProxy?.replace(/\/\/.*@/, '//***@'),
    }))
    expect(masked).toEqual(expected)
  })
})

function print(configuration: Configuration | undefined): string {
  return configuration ? formatConfiguration(configuration) : ''
}
