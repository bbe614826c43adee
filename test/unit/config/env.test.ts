import { describe, expect, it } from 'vitest'

import { file, load } from './fixture.ts'

const configuration = (environment: Record<string, string>, text: string = file()) =>
  load(text, environment).configuration

function passwordOf(value: string): string | undefined {
  const environment = { REGISTRY_PROXY_USERNAME: 'a', REGISTRY_PROXY_PASSWORD: value }
  const credentials = configuration(environment)?.proxy.main.credentials
  return credentials?.kind === 'static' ? credentials.password : undefined
}

describe('REGISTRY_* variables', () => {
  it('go over the file', () => {
    const text = file('http: {addr: ":5000", host: https://a}')
    expect(configuration({ REGISTRY_HTTP_ADDR: ':6000' }, text)?.http).toMatchObject({
      listen: { port: 6000 },
      host: 'https://a',
    })
  })

  it('apply in lexical order, so that the more specific one wins', () => {
    const storage = configuration({
      REGISTRY_STORAGE_FILESYSTEM_ROOTDIRECTORY: '/b',
      REGISTRY_STORAGE: '{filesystem: {rootdirectory: /a}, cache: {blobdescriptor: inmemory}}',
    })?.storage
    expect(storage).toMatchObject({ rootDirectory: '/b', descriptorCache: { kind: 'inmemory' } })
  })

  it('replace a section as a whole', () => {
    const text = file('http: {addr: ":6000", prefix: /x}')
    expect(configuration({ REGISTRY_HTTP: '{prefix: /y}' }, text)?.http).toMatchObject({
      listen: { port: 5000 },
      prefix: '/y',
    })
  })

  it('unset a key when they are empty', () => {
    const text = file('http: {prefix: /x}')
    expect(configuration({ REGISTRY_HTTP_PREFIX: '' }, text)?.http.prefix).toBe('')
    expect(
      configuration({ REGISTRY_PROXY_USERNAME: ' ', REGISTRY_PROXY_PASSWORD: '# none' })?.proxy
        .main,
    ).toMatchObject({ credentials: undefined })
  })

  it('set our own keys the same way', () => {
    const proxy = configuration({
      REGISTRY_PROXY_TAGTTL: '0',
      REGISTRY_PROXY_ALLOWEDREALMS: '[a, b]',
      REGISTRY_PROXY_ALLOWEDREALMS_2: 'c',
    })?.proxy.main
    expect(proxy).toMatchObject({ tagTtlMs: 0, allowedRealms: ['a', 'b', 'c'] })
  })

  it('address items of lists by index; the next index appends', () => {
    const text = file('health: {tcp: [{addr: "a:1", interval: 5s}]}')
    const environment = {
      REGISTRY_HEALTH_TCPCHECKERS_0_ADDR: 'b:2',
      REGISTRY_HEALTH_TCPCHECKERS_1_ADDR: 'c:3',
      REGISTRY_HEALTH_HTTPCHECKERS_0_URI: 'http://d/',
    }
    expect(configuration(environment, text)?.health).toMatchObject({
      tcp: [
        { host: 'b', port: 2, intervalMs: 5000 },
        { host: 'c', port: 3 },
      ],
      http: [{ url: 'http://d/' }],
    })
  })

  it('leave no gap in a list', () => {
    const { problems } = load(file(), { REGISTRY_REDIS_ADDRS_1: 'a:1' })
    expect(problems).toEqual([
      'REGISTRY_REDIS_ADDRS_1: index 1 leaves a gap: the list has 0 so far',
    ])
  })

  it('keep the case of a key that is there, and lower that of a new one', () => {
    const text = file('http: {headers: {X-Old: [a]}}')
    const environment = { 'REGISTRY_HTTP_HEADERS_X-OLD': '[b]', 'REGISTRY_HTTP_HEADERS_X-New': 'c' }
    expect(configuration(environment, text)?.http.headers).toEqual({
      'X-Old': ['b'],
      'x-new': ['c'],
    })
  })

  it('take passwords as they are written', () => {
    expect(['007', '1e3', 'yes', '0x1F', '"# a: b"', 'null!'].map(passwordOf)).toEqual([
      '007',
      '1e3',
      'yes',
      '0x1F',
      '# a: b',
      'null!',
    ])
  })

  it.each(['*hunter2', '{hunter2', '%hunter2', 'a: hunter2: c'])(
    'do not show a password that needs quotes: %s',
    (value) => {
      const { problems } = load(file(), { REGISTRY_PROXY_PASSWORD: value })
      expect(problems).toEqual([expect.stringMatching(/^REGISTRY_PROXY_PASSWORD: .*quotes$/)])
      expect(problems.join()).not.toContain('hunter2')
    },
  )

  it('are named with the mistake they make', () => {
    expect(load(file(), { REGISTRY_PROXY_TTL: '7 dayz' }).problems).toEqual([
      'proxy.ttl: expected a duration such as 168h, got "7 dayz" (set by REGISTRY_PROXY_TTL)',
    ])
  })

  it('do not hide a mistake in the file', () => {
    const environment = { REGISTRY_HTTP_ADDR: ':1', REGISTRY_LOG_FIELDS_A: '1' }
    expect(load(file('http: off', 'log: {fields: [a]}'), environment).problems).toEqual([
      'log.fields: expected a mapping, got a list',
      'http: expected a mapping, got "off"',
    ])
  })

  it('stop the start by what they protect', () => {
    const { problems } = load(file(), {
      REGISTRY_AUTH: 'htpasswd',
      REGISTRY_AUTH_HTPASSWD_PATH: '/auth/htpasswd',
      REGISTRY_HTTP_TLS_CLIENTCAS_0: '/ca',
    })
    expect(problems).toEqual([
      expect.stringMatching(/^auth\.htpasswd: /),
      expect.stringMatching(/^http\.tls: /),
    ])
  })

  it('reach into sections without effect, with the one warning of the section', () => {
    const { warnings } = load(file(), {
      REGISTRY_NOTIFICATIONS_EVENTCONFIG_INCLUDEREFERENCES: 'true',
      REGISTRY_NOTIFICATIONS_ENDPOINTS: '[{name: a}]',
      REGISTRY_NOTIFICATIONS_ENDPOINTS_0_URL: 'http://a',
    })
    expect(warnings).toEqual([
      'notifications: accepted, but has no effect in this version: no events are sent',
    ])
  })

  it.each([
    'REGISTRY_',
    'REGISTRY_PORT',
    'REGISTRY_HTTP_ADDR_FOO',
    'REGISTRY_HEALTH_TCP_0_ADDR',
    'REGISTRY_HEALTH_TCPCHECKERS_X_ADDR',
    'REGISTRY_LOG_FIELDS___PROTO__',
    'REGISTRY_CONSTRUCTOR',
  ])('are passed over with a warning when nothing has that name: %s', (variable) => {
    expect(load(file(), { [variable]: '{not: [yaml' })).toMatchObject({
      problems: [],
      warnings: [`ignoring unrecognized environment variable ${variable}`],
    })
  })

  it('are nothing else: other names do not count', () => {
    const environment = { REGISTRY_CONFIGURATION_PATH: '/x', REGISTRYHTTP: 'x', registry_http: 'x' }
    expect(load(file(), environment)).toMatchObject({ problems: [], warnings: [] })
  })
})
