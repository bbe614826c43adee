// Configurations found in the wild, and what becomes of each: a drop-in must not surprise.

import { describe, expect, it } from 'vitest'

import { loadFixture } from './fixture.ts'

const NO_REMOTE = 'proxy.remoteurl: not set; Docker Hub, https://registry-1.docker.io, is used'

const NO_TLS =
  'http.tls: TLS on the listener is not supported by this version; put a TLS-terminating proxy in front or remove the key'
const NO_AUTH =
  'auth.htpasswd: authentication of clients is not supported by this version; put an authenticating proxy in front and remove the key'

describe('configurations that work as they are', () => {
  it('takes the default of the registry:2 image, without a word', () => {
    const { configuration, warnings, problems } = loadFixture('registry-2-image')
    expect({ warnings, problems }).toEqual({ warnings: [], problems: [] })
    expect(configuration).toMatchObject({
      log: { level: 'info', fields: { service: 'registry' }, accessLogEnabled: true },
      storage: {
        rootDirectory: '/var/lib/registry',
        descriptorCache: { kind: 'inmemory', entriesMax: 10_000 },
      },
      http: {
        listen: { host: undefined, port: 5000 },
        headers: { 'X-Content-Type-Options': ['nosniff'] },
        debug: undefined,
      },
      health: { storageDriver: { intervalMs: 10_000, threshold: 3 } },
      proxy: { main: { credentials: undefined, ttlMs: 604_800_000, tagTtlMs: 60_000 } },
    })
  })

  it('takes the default of the registry:3 image with its debug port', () => {
    const { configuration, warnings } = loadFixture('registry-3-image')
    expect(warnings).toEqual(['storage.tag: accepted, but has no effect in this version'])
    expect(configuration).toMatchObject({
      log: { level: 'debug', fields: { service: 'registry', environment: 'development' } },
      http: { debug: { listen: { host: undefined, port: 5001 }, prometheusPath: '/metrics' } },
      proxy: { main: { remoteUrls: ['https://ghcr.io'], ttlMs: 72 * 3_600_000 } },
    })
  })

  it('takes the default of a distribution package from the time of layerinfo', () => {
    const { configuration, warnings } = loadFixture('rpm-default')
    expect(warnings).toEqual([`${NO_REMOTE}, and nothing expires unless proxy.ttl is set`])
    expect(configuration?.storage).toMatchObject({
      rootDirectory: '/data/Registry',
      descriptorCache: { kind: 'inmemory' },
      partialPurgeEnabled: true,
    })
  })

  it('takes the redis section of registry:2, and a password that looks like a number as text', () => {
    const { configuration, warnings } = loadFixture('redis-2')
    expect(warnings).toEqual([
      'http.relativeurls: accepted, but has no effect in a read-only cache',
      'redis.pool: accepted, but has no effect in this version',
    ])
    expect(configuration?.storage.descriptorCache).toEqual({ kind: 'redis' })
    expect(configuration?.redis).toMatchObject({
      addresses: [{ host: 'redis.cache.svc', port: 6379 }],
      password: '0123',
      database: 2,
      dialTimeoutMs: 10,
      readTimeoutMs: 10,
      writeTimeoutMs: 10,
      tls: undefined,
    })
    expect(configuration?.proxy.main.credentials).toMatchObject({ password: '0123' })
  })

  it('takes the redis section of registry:3, with sentinels and TLS', () => {
    const { configuration, warnings } = loadFixture('redis-3-sentinel')
    expect(warnings).toEqual([
      'redis.poolsize, redis.minidleconns: accepted, but has no effect in this version',
    ])
    expect(configuration?.redis).toEqual({
      addresses: [
        { host: 'sentinel-0.redis', port: 26379 },
        { host: 'sentinel-1.redis', port: 26379 },
        { host: 'fd00::2', port: 26379 },
      ],
      username: 'layers',
      password: 'p@ss: word',
      sentinelUsername: 'watcher',
      sentinelPassword: 'watch me',
      masterName: 'cache',
      database: 1,
      dialTimeoutMs: 5000,
      readTimeoutMs: undefined,
      writeTimeoutMs: undefined,
      maxRetries: 5,
      clientName: 'registry',
      tls: {
        certificatePath: '/tls/client.crt',
        keyPath: '/tls/client.key',
        rootCaPaths: ['/tls/ca.crt'],
      },
    })
    expect(configuration?.proxy.main.ttlMs).toBe(0)
  })

  it('takes a configuration that is all variables', () => {
    const { configuration, warnings } = loadFixture('compose-proxy')
    expect(warnings).toEqual([
      'proxy.remoteurl: https://docker.io is not a registry; https://registry-1.docker.io is used',
    ])
    expect(configuration).toMatchObject({
      log: { level: 'warn', fields: { service: 'mirror' } },
      storage: {
        rootDirectory: '/data',
        descriptorCache: { kind: 'inmemory', entriesMax: 1_000_000 },
      },
      redis: { addresses: [{ host: 'redis', port: 6379 }], tls: { rootCaPaths: ['/tls/ca.crt'] } },
      http: {
        listen: { host: 'localhost', port: 5000 },
        headers: { 'x-content-type-options': ['nosniff'], 'x-frame-options': ['DENY'] },
        debug: { listen: { host: '127.0.0.1', port: 5001 }, prometheusPath: '/metrics' },
      },
      health: {
        files: [{ path: '/tmp/down', intervalMs: 5000, threshold: 1 }],
        tcp: [{ host: 'redis', port: 6379, timeoutMs: 3000, intervalMs: 10_000, threshold: 1 }],
      },
      proxy: {
        main: {
          credentials: { kind: 'static', username: 'somebody', password: '0x10' },
          tagTtlMs: 300_000,
        },
        environmentProxy: {
          httpProxy: undefined,
          httpsProxy: 'http://user:secret@proxy.example.com:3128',
          noProxy: 'localhost,10.0.0.0/8',
        },
      },
    })
  })

  it('passes over the variables that Kubernetes sets for services, with one warning each', () => {
    const { configuration, warnings } = loadFixture('kubernetes-noise')
    expect(configuration?.proxy.main.remoteUrls).toEqual(['https://registry-1.docker.io'])
    expect(warnings).toEqual(
      [
        'REGISTRY_AUTH_PORT',
        'REGISTRY_PORT',
        'REGISTRY_PORT_5000_TCP',
        'REGISTRY_PORT_5000_TCP_ADDR',
        'REGISTRY_PORT_5000_TCP_PORT',
        'REGISTRY_PORT_5000_TCP_PROTO',
        'REGISTRY_REDIS_SERVICE_HOST',
        'REGISTRY_SERVICE_HOST',
        'REGISTRY_SERVICE_PORT',
        'REGISTRY_SERVICE_PORT_HTTP',
        'REGISTRY_STORAGE_SERVICE_HOST',
        'REGISTRY_VERSION',
      ].map((variable) => `ignoring unrecognized environment variable ${variable}`),
    )
  })

  it('takes what a chart renders: empty and switched-off keys ask for nothing', () => {
    const { configuration, warnings } = loadFixture('helm')
    expect(warnings).toEqual([
      'storage.filesystem.maxthreads: accepted, but has no effect in this version',
      'storage.redirect: accepted, but has no effect: content is always sent from here',
      'proxy.cachewritetimeout: accepted, but has no effect in this version',
      'notifications: accepted, but has no effect in this version: no events are sent',
      'validation, policy: accepted, but has no effect in a read-only cache',
    ])
    expect(configuration).toMatchObject({
      log: { formatter: 'json', fields: { service: 'registry', tier: 3, canary: false } },
      storage: { partialMaxAgeMs: 48 * 3_600_000, partialPurgeIntervalMs: 6 * 3_600_000 },
      redis: undefined,
      http: {
        prefix: '/mirror',
        host: 'https://mirror.example.com',
        headers: { 'X-Content-Type-Options': ['nosniff'] },
        drainTimeoutMs: 60_000,
      },
      health: {
        http: [
          {
            url: 'https://example.com/healthz',
            headers: { Authorization: ['Bearer abc'] },
            expectedStatus: 204,
            timeoutMs: 3000,
            intervalMs: 30_000,
            threshold: 2,
          },
        ],
      },
      catalog: { entriesMax: 500 },
      tags: { tagsMax: 200 },
      proxy: { main: { credentials: undefined } },
    })
  })

  it('takes keys of old versions', () => {
    const { configuration, warnings } = loadFixture('legacy')
    expect(warnings).toEqual([
      'reporting: accepted, but has no effect in this version',
      'compatibility: accepted, but has no effect in a read-only cache',
      'loglevel: deprecated; use log.level',
      'proxy.remoteurl: http://index.docker.io is not a registry; https://registry-1.docker.io is used',
    ])
    expect(configuration).toMatchObject({
      log: { level: 'debug' },
      storage: { descriptorCache: { kind: 'inmemory' }, partialPurgeEnabled: false },
      proxy: { main: { remoteUrls: ['https://registry-1.docker.io'] } },
    })
  })

  it('takes the booleans of YAML 1.1', () => {
    const { configuration, warnings } = loadFixture('yaml-1.1-booleans')
    expect(warnings).toEqual([])
    expect(configuration).toMatchObject({
      log: { accessLogEnabled: false },
      storage: { partialPurgeEnabled: false },
      http: { debug: { prometheusPath: '/metrics' } },
      health: { storageDriver: { intervalMs: 10_000, threshold: 1 } },
    })
  })

  it('takes anchors, merge keys and a driver by its name alone', () => {
    const { configuration, warnings } = loadFixture('merge-keys')
    expect(warnings).toEqual([])
    const common = { port: 80, intervalMs: 5000, threshold: 2, timeoutMs: undefined }
    expect(configuration?.health.tcp).toEqual([
      { host: 'a.example.com', ...common },
      { host: 'b.example.com', ...common },
    ])
  })
})

describe('configurations that must not start', () => {
  it('refuses TLS and authentication set by variables, and names the variables', () => {
    expect(loadFixture('compose-variables').problems).toEqual([
      `${NO_AUTH} (set by REGISTRY_AUTH, REGISTRY_AUTH_HTPASSWD_PATH, REGISTRY_AUTH_HTPASSWD_REALM)`,
      `${NO_TLS} (set by REGISTRY_HTTP_TLS_CERTIFICATE, REGISTRY_HTTP_TLS_KEY)`,
    ])
  })

  it('refuses TLS and authentication in the file, and says where a lost key belongs', () => {
    const { problems, warnings } = loadFixture('full')
    expect(problems).toEqual([NO_AUTH, NO_TLS])
    expect(warnings).toEqual([
      'threshold: unknown key, ignored; did you mean health.storagedriver.threshold?',
      `${NO_REMOTE}, and nothing expires unless proxy.ttl is set`,
    ])
  })

  it('refuses another storage, and names a misspelt key', () => {
    const { problems, warnings } = loadFixture('swift-proxy')
    expect(problems).toEqual([
      'storage.swift: this version stores on the local file system only; remove the key and use storage.filesystem',
      NO_TLS,
    ])
    expect(warnings).toEqual(['log.fromatter: unknown key, ignored; did you mean formatter?'])
  })

  it('names every misspelt and misplaced key', () => {
    const { problems, warnings } = loadFixture('typos')
    expect(problems).toEqual([
      'storage.cahce: unknown key; did you mean cache?',
      'proxy.ttl: expected a second or more; a bare number counts nanoseconds, so write 168h',
    ])
    expect(warnings).toEqual([
      'logs: unknown key, ignored; did you mean log?',
      'htttp: unknown key, ignored; did you mean http?',
      'remoteurl: unknown key, ignored; did you mean proxy.remoteurl?',
      'addr: unknown key, ignored; did you mean http.addr or redis.addr?',
      'storage.filesystem.rootdirectroy: unknown key, ignored; did you mean rootdirectory?',
      'proxy.remoteURL: unknown key, ignored; did you mean remoteurl?',
      'proxy.banana: unknown key, ignored',
      'proxy.ttl: 3600 means 3600 nanoseconds; write 3600s',
      NO_REMOTE,
    ])
  })

  it('reports all mistakes at once, each once, and shows no secret', () => {
    const { problems, warnings } = loadFixture('many-mistakes')
    expect(warnings).toEqual([])
    expect(problems).toEqual([
      'version: expected 0.1, got 0.2',
      'log.level: expected one of error, warn, info, debug, got "verbose"',
      'log.formatter: expected one of text, json, logstash, got "xml"',
      'storage.filesystem.rootdirectory: expected text, got a list',
      'http.net: expected one of tcp, unix, got "udp"',
      'http.prefix: expected a path such as /x, got "/a/../b"',
      'http.headers."Bad Header": expected a header name such as X-Content-Type-Options',
      'http.headers.X-Two: expected a header value in one line, got "a\\nb"',
      'http.draintimeout: expected a duration such as 30s, got "10 seconds"',
      'redis.addr: expected host:port or a host, got "redis://cache:6379"',
      'health.storagedriver.enabled: expected true or false, got "maybe"',
      'health.storagedriver.threshold: expected a whole number of at least 0, got -1',
      'health.tcp.0.addr: expected host:port, got "no-port"',
      'catalog: expected a mapping, got a list',
      'proxy.remoteurl: expected an http or https URL without credentials, query or fragment, got "https://***@registry-1.docker.io"',
      'proxy.password: expected text',
      'proxy.allowedrealms.0: expected host, host:port or https://host/path, got "https://auth.example.com/token?***"',
      'proxy.ttl: expected a duration such as 168h, got "7 dayz"',
      'http.addr: expected an address such as :5000 or 127.0.0.1:5000, got "5000"',
      'health.tcp.1.addr: expected host:port, got nothing',
    ])
  })
})
