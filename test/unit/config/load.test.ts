import { describe, expect, it } from 'vitest'

import { ConfigurationError, loadConfiguration } from '../../../src/config/load.ts'
import { file, load } from './fixture.ts'

const NO_REMOTE = 'proxy.remoteurl: not set; Docker Hub, https://registry-1.docker.io, is used'

const proxy = (line: string): string =>
  file('proxy:', '  remoteurl: https://registry.example.com', `  ${line}`)

const cacheOf = (size: string) =>
  load(file(`storage: {cache: {blobdescriptor: inmemory, blobdescriptorsize: ${size}}}`))

const drainTimeoutMs = (value: string) =>
  load(file(`http: {draintimeout: ${value}}`)).configuration?.http.drainTimeoutMs

/** A file of no more than these lines. */
const alone = (lines: string) => load(`version: 0.1\n${lines}`)

describe('what a configuration may be', () => {
  it('has nothing expire by itself where it names no upstream', () => {
    const ttlMs = (lines: string) => alone(lines).configuration?.proxy.main.ttlMs
    expect(ttlMs('')).toBe(0)
    expect(ttlMs('proxy: {ttl: 168h}')).toBe(604_800_000)
    expect(ttlMs('proxy: {remoteurl: "https://ghcr.io"}')).toBe(604_800_000)
    expect(alone('proxy: {ttl: 168h}').warnings).toEqual([NO_REMOTE])
  })

  it('needs no file at all: then the defaults count', () => {
    const { configuration, warnings } = load(undefined)
    expect(warnings).toEqual([`${NO_REMOTE}, and nothing expires unless proxy.ttl is set`])
    expect(configuration).toEqual({
      log: { level: 'info', formatter: 'text', fields: {}, accessLogEnabled: true },
      storage: {
        rootDirectory: '/var/lib/registry',
        descriptorCache: { kind: 'none' },
        maxSize: undefined,
        minFree: undefined,
        retention: [],
        scrub: undefined,
        partialMaxAgeMs: 604_800_000,
        partialPurgeEnabled: true,
        partialPurgeIntervalMs: 86_400_000,
      },
      redis: undefined,
      http: {
        listen: { host: undefined, port: 5000 },
        prefix: '',
        host: undefined,
        headers: {},
        drainTimeoutMs: 30_000,
        listeners: [],
        debug: undefined,
      },
      health: { storageDriver: undefined, files: [], http: [], tcp: [] },
      catalog: { entriesMax: 1000 },
      tags: { tagsMax: 1000 },
      proxy: {
        main: {
          settingsPath: 'proxy',
          name: 'registry-1.docker.io',
          remoteUrls: ['https://registry-1.docker.io'],
          isDockerHub: true,
          servesDockerHub: true,
          credentials: undefined,
          caPaths: [],
          certificatePath: undefined,
          keyPath: undefined,
          skipsVerification: false,
          timeoutMs: undefined,
          connectTimeoutMs: undefined,
          connectionsMax: undefined,
          requestsPerSecond: undefined,
          httpProxy: undefined,
          // Of a plain registry's volume: no upstream could give it back.
          ttlMs: 0,
          tagTtlMs: 60_000,
          tagRules: [],
          allow: [],
          deny: [],
          allowedRealms: [],
          redirectHosts: [],
          allowsPrivateAddresses: false,
          hosts: [],
        },
        others: [],
        rateLimitStatus: 503,
        environmentProxy: { httpProxy: undefined, httpsProxy: undefined, noProxy: undefined },
      },
    })
  })

  it.each(['0.1', '"0.1"'])('takes version %s', (version) => {
    expect(load(`version: ${version}`).problems).toEqual([])
  })

  it.each([
    ['log: {}', 'version: expected 0.1, got nothing'],
    ['version: 0.2', 'version: expected 0.1, got 0.2'],
    ['version: 0.10', 'version: expected 0.1, got 0.10'],
    ['', 'config.yml: expected a mapping that starts with version: 0.1'],
    ['# only words', 'config.yml: expected a mapping that starts with version: 0.1'],
    ['- version: 0.1', 'config.yml: expected a mapping that starts with version: 0.1'],
    ['a: 1\na: 2', 'config.yml: not valid YAML: line 2, column 1: duplicated mapping key'],
  ])('refuses %j', (text, problem) => {
    expect(load(text).problems).toEqual([problem])
  })

  it('refuses a file beyond 1 MiB, and a small one that stands for a large one', () => {
    expect(load(`#${'x'.repeat(1024 * 1024)}`).problems).toEqual([
      'config.yml: not valid YAML: larger than 1 MiB',
    ])
    const bomb = `version: 0.1\na: &a [x]\nb: [${Array(101).fill('*a').join(', ')}]`
    expect(load(bomb).problems).toEqual([
      expect.stringMatching(/^config\.yml: not valid YAML: .*alias/),
    ])
  })

  it('does not quote the text of a file that is not YAML', () => {
    const { problems } = load('proxy:\n  password: *hunter2\n')
    expect(problems.join()).toContain('line 2')
    expect(problems.join()).not.toContain('hunter2')
  })

  it('throws one error that names the file and every problem', () => {
    const source = { text: 'version: 3\nlog: {level: loud}', path: '/etc/proxy.yml' }
    expect(() => loadConfiguration(source, {})).toThrow(ConfigurationError)
    expect(() => loadConfiguration(source, {})).toThrow(
      '/etc/proxy.yml cannot be used:\n  version: expected 0.1, got 3\n  log.level: expected one of',
    )
  })
})

describe('keys that protect something', () => {
  it.each([
    ['auth: silly', /^auth\.silly: authentication of clients is not supported/],
    ['auth: {htpasswd: }', /^auth\.htpasswd: authentication of clients/],
    ['auth: {ldap: {url: x}}', /^auth\.ldap: authentication of clients/],
    ['http: {tls: {letsencrypt: {email: a@b.c}}}', /^http\.tls: TLS on the listener/],
    ['http: {tls: {clientcas: [/ca]}}', /^http\.tls: TLS on the listener/],
  ])('stop the start: %s', (line, problem) => {
    expect(load(file(line)).problems).toEqual([expect.stringMatching(problem)])
  })

  it.each([
    'auth: none',
    'auth: {none: {}}',
    'auth: {}',
    'auth:',
    'http: {tls: {}}',
    'http: {tls: }',
  ])('are no problem when they ask for nothing: %s', (line) => {
    expect(load(file(line))).toMatchObject({ problems: [], warnings: [] })
  })
})

describe('storage', () => {
  it.each(['storage: filesystem', 'storage: {filesystem: }', 'storage: {cache: {}}', 'storage:'])(
    'is the file system: %s',
    (line) => {
      expect(load(file(line)).configuration?.storage.rootDirectory).toBe('/var/lib/registry')
    },
  )

  it.each(['s3', 's3aws', 'azure', 'gcs', 'swift', 'oss', 'inmemory'])(
    'is nothing else: %s',
    (driver) => {
      const problem = `storage.${driver}: this version stores on the local file system only; remove the key and use storage.filesystem`
      expect(load(file(`storage: ${driver}`)).problems).toEqual([problem])
      expect(load(file(`storage: {filesystem: {}, ${driver}: {}}`)).problems).toEqual([problem])
    },
  )

  it('takes no unknown key for granted: distribution would take it for a driver', () => {
    expect(load(file('storage: {filesystem: {}, tape: {}, filesytem: {}}')).problems).toEqual([
      'storage.tape: neither a known key nor a storage driver; remove it',
      'storage.filesytem: unknown key; did you mean filesystem?',
    ])
  })

  it('knows no cache but two, and goes on without', () => {
    const { configuration, warnings } = load(file('storage: {cache: {blobdescriptor: memcached}}'))
    expect(configuration?.storage.descriptorCache).toEqual({ kind: 'none' })
    expect(warnings).toEqual([
      'storage.cache.blobdescriptor: expected inmemory or redis, got "memcached"; there is no descriptor cache',
    ])
  })

  it('has a bound on the descriptors in memory, whatever the file says', () => {
    expect(cacheOf('0').configuration?.storage.descriptorCache).toMatchObject({ entriesMax: 1e6 })
    expect(cacheOf('5').configuration?.storage.descriptorCache).toMatchObject({ entriesMax: 5 })
    expect(cacheOf('2000000').warnings).toEqual([
      'storage.cache.blobdescriptorsize: 2000000 is more than can be had; 1000000 is used',
    ])
  })

  it('needs Redis where it is told to use it', () => {
    expect(load(file('storage: {cache: {blobdescriptor: redis}}')).problems).toEqual([
      'storage.cache.blobdescriptor: redis needs redis.addrs to be set',
    ])
  })

  it('takes a dry run of the purge for none', () => {
    const text = file('storage: {maintenance: {uploadpurging: {dryrun: true}}}')
    expect(load(text).configuration?.storage.partialPurgeEnabled).toBe(false)
    expect(load(text).warnings).toEqual([
      'storage.maintenance.uploadpurging.dryrun: taken as enabled: false',
    ])
  })
})

describe('http', () => {
  it.each([
    [':5000', { host: undefined, port: 5000 }],
    ['0.0.0.0:5000', { host: '0.0.0.0', port: 5000 }],
    ['127.0.0.1:0', { host: '127.0.0.1', port: 0 }],
    ['"[::]:5000"', { host: '::', port: 5000 }],
    ['localhost:65535', { host: 'localhost', port: 65_535 }],
    ['""', { host: undefined, port: 5000 }],
  ])('listens on %s', (addr, listen) => {
    expect(load(file(`http: {addr: ${addr}}`)).configuration?.http.listen).toEqual(listen)
  })

  it.each([
    '5000',
    ':65536',
    ':-1',
    'localhost',
    '"::1:5000"',
    '"[::g]:1"',
    '"http://a:1"',
    'a b:1',
  ])('does not listen on %s', (addr) => {
    expect(load(file(`http: {addr: ${addr}}`)).problems).toEqual([
      expect.stringMatching(
        /^http\.addr: expected an address such as :5000 or 127\.0\.0\.1:5000, got /,
      ),
    ])
  })

  it('listens on a Unix socket', () => {
    const { configuration } = load(file('http: {net: unix, addr: /run/layover.sock}'))
    expect(configuration?.http.listen).toEqual({ path: '/run/layover.sock' })
  })

  it.each([
    ['/x/', '/x'],
    ['x/y', '/x/y'],
    ['/', ''],
    ['""', ''],
  ])('normalises the prefix %s to "%s"', (prefix, expected) => {
    expect(load(file(`http: {prefix: ${prefix}}`)).configuration?.http.prefix).toBe(expected)
  })

  it('drains for 30 s unless told otherwise; 0 is not told', () => {
    expect(['0', '0s', '5s'].map(drainTimeoutMs)).toEqual([30_000, 30_000, 5000])
    expect(load(file('http: {draintimeout: -1s}')).problems).toHaveLength(1)
  })

  it('accepts silently what a cache has no use for', () => {
    const text = file('http: {secret: abc}', 'storage: {delete: {enabled: true}}')
    expect(load(text)).toMatchObject({ warnings: [], problems: [] })
  })

  it('says of what else has no effect in a cache that it has none', () => {
    expect(load(file('http: {relativeurls: true}'))).toMatchObject({
      warnings: ['http.relativeurls: accepted, but has no effect in a read-only cache'],
      problems: [],
    })
  })

  it('says that metrics need a listener', () => {
    expect(load(file('http: {debug: {prometheus: {enabled: true}}}')).warnings).toEqual([
      'http.debug.prometheus: has no effect without http.debug.addr',
    ])
  })
})

describe('proxy', () => {
  it.each([
    ['https://docker.io', 'https://registry-1.docker.io'],
    ['http://index.docker.io/v1/', 'https://registry-1.docker.io'],
    ['https://Registry-1.Docker.io/', 'https://registry-1.docker.io'],
    ['https://harbor.example.com/hub/', 'https://harbor.example.com/hub'],
    ['http://127.0.0.1:5001', 'http://127.0.0.1:5001'],
    ['https://hub.docker.com', 'https://hub.docker.com'],
  ])('asks %s at %s', (written, expected) => {
    const { configuration } = load(file(`proxy: {remoteurl: "${written}"}`))
    expect(configuration?.proxy.main.remoteUrls).toEqual([expected])
  })

  it.each([
    ['https://hub.docker.com', 'is a web site; the registry is https://registry-1.docker.io'],
    ['https://quay.io/v2', 'ends with /v2, which is appended to it anyway'],
  ])('warns of %s', (written, message) => {
    const { warnings } = load(file(`proxy: {remoteurl: "${written}"}`))
    expect(warnings).toEqual([`proxy.remoteurl: ${written} ${message}`])
  })

  it.each([
    'registry-1.docker.io',
    'ftp://a',
    'https://',
    'https://a?b',
    'https://a#',
    'https://u@a',
  ])('does not ask %s', (written) => {
    expect(load(file(`proxy: {remoteurl: "${written}"}`)).problems).toHaveLength(1)
  })

  it('needs a username and a password, or neither', () => {
    expect(load(proxy('username: somebody')).problems).toEqual([
      'proxy.password: expected a password, since there is a username',
    ])
    expect(load(proxy('password: secret')).problems).toEqual([
      'proxy.username: expected a username, since there is a password',
    ])
  })

  it.each([
    ['ttl: 0', 0],
    ['ttl: -1s', 0],
    ['ttl: 1h30m', 5_400_000],
    ['ttl: 3600000000000', 3_600_000],
  ])('reads %s', (line, ttlMs) => {
    expect(load(proxy(line)).configuration?.proxy.main.ttlMs).toBe(ttlMs)
    expect(load(proxy(line)).warnings).toEqual([])
  })

  it('warns of seconds that are nanoseconds', () => {
    expect(load(proxy('ttl: 3600')).warnings).toEqual([
      'proxy.ttl: 3600 means 3600 nanoseconds; write 3600s',
    ])
  })

  it('takes 0 for tags that are asked for each time, and nothing below', () => {
    expect(load(proxy('tagttl: 0')).configuration?.proxy.main.tagTtlMs).toBe(0)
    expect(load(proxy('tagttl: -1s')).problems).toHaveLength(1)
    expect(load(proxy('ttl: 3600')).problems[0]).toContain('a bare number counts nanoseconds')
    expect(load(proxy('ratelimitstatus: 429')).configuration?.proxy.rateLimitStatus).toBe(429)
    expect(load(proxy('ratelimitstatus: 418')).problems).toHaveLength(1)
  })

  it('takes hosts and https URLs for realms', () => {
    const realms = '["Auth.example.com", "auth:5001", "https://auth.example.com/token"]'
    expect(load(proxy(`allowedrealms: ${realms}`)).configuration?.proxy.main.allowedRealms).toEqual(
      ['auth.example.com', 'auth:5001', 'https://auth.example.com/token'],
    )
    const wrong = '["http://a/token", "a/b", "*.a", "https://u:p@a/"]'
    expect(load(proxy(`allowedrealms: ${wrong}`)).problems).toHaveLength(4)
  })

  it('hands on the proxy servers of the environment, lower case first', () => {
    const { configuration } = load(file(), { HTTP_PROXY: 'http://a', http_proxy: 'http://b' })
    expect(configuration?.proxy.environmentProxy.httpProxy).toBe('http://b')
  })

  it('cannot use a proxy server in the environment that speaks another protocol', () => {
    expect(load(file(), { http_proxy: 'socks5://a:1080' }).problems).toEqual([
      'http_proxy: expected an http or https proxy such as http://host:3128',
    ])
  })
})

describe('values', () => {
  it.each(['yes', 'On', 'TRUE', 'y', '"true"'])('takes %s for true', (value) => {
    const { configuration } = load(file(`log: {accesslog: {disabled: ${value}}}`))
    expect(configuration?.log.accessLogEnabled).toBe(false)
  })

  it('renames log fields that every line has of its own, as registry does', () => {
    const { configuration } = load(file('log: {fields: {time: mine, level: 7, msg: hello, a: 1}}'))
    expect(configuration?.log.fields).toEqual({
      'fields.time': 'mine',
      'fields.level': 7,
      'fields.msg': 'hello',
      a: 1,
    })
  })

  it('leaves out headers that would tell clients a wrong end of each answer, and says so', () => {
    const headers = '{Content-Length: ["3"], connection: [close], X-A: [b]}'
    const { configuration, warnings } = load(file(`http: {headers: ${headers}}`))
    expect(configuration?.http.headers).toEqual({ 'X-A': ['b'] })
    expect(warnings).toEqual([
      'http.headers.Content-Length: ignored: each answer has its own',
      'http.headers.connection: ignored: each answer has its own',
    ])
  })

  it('keeps the types of log fields, and the text of what only looks like a number', () => {
    const { configuration } = load(file('log: {fields: {a: 1, b: true, c: "1.10", d: yes}}'))
    expect(configuration?.log.fields).toEqual({ a: 1, b: true, c: '1.10', d: 'yes' })
  })

  it('takes level words in any case, and log.level over loglevel', () => {
    const { configuration } = load(file('loglevel: debug', 'log: {level: WARN}'))
    expect(configuration?.log.level).toBe('warn')
  })

  it('takes logstash for json, and says so', () => {
    const { configuration, warnings } = load(file('log: {formatter: logstash}'))
    expect(configuration?.log.formatter).toBe('json')
    expect(warnings).toEqual([
      'log.formatter: logstash is taken as json, whose fields have other names',
    ])
  })

  it('counts zero as "not set" where Go does', () => {
    const { configuration } = load(
      file(
        'catalog: {maxentries: -1}',
        'tags: {maxtags: 0}',
        'health: {storagedriver: {enabled: true, interval: 0, threshold: 0}}',
      ),
    )
    expect(configuration).toMatchObject({
      catalog: { entriesMax: 1000 },
      tags: { tagsMax: 1000 },
      health: { storageDriver: { intervalMs: 10_000, threshold: 1 } },
    })
  })

  it('takes no keys from prototypes', () => {
    const text = file('__proto__: {a: 1}', 'log: {fields: {__proto__: x, constructor: y}}')
    const { configuration, warnings } = load(text)
    expect(warnings).toEqual(['__proto__: unknown key, ignored'])
    expect(Object.entries(configuration?.log.fields ?? {})).toEqual([
      ['__proto__', 'x'],
      ['constructor', 'y'],
    ])
  })
})

describe('redis', () => {
  it('reads the TLS keys of registry:3.0', () => {
    const { configuration } = load(file('redis: {addrs: [a], tls: {clientcas: [/ca]}}'))
    expect(configuration?.redis).toMatchObject({
      addresses: [{ host: 'a', port: 6379 }],
      tls: { rootCaPaths: ['/ca'] },
    })
  })

  it('does not take half a key pair, or both spellings of the address', () => {
    expect(load(file('redis: {addr: a, addrs: [b], tls: {key: /k}}')).problems).toEqual([
      'redis.addr: cannot stand beside redis.addrs; move the address there',
      'redis.tls: certificate and key go together; one of them is missing',
    ])
  })
})

describe('what is said of a configuration', () => {
  it.each([
    ['proxy: {upstreams: {"bob:hunter2@ghcr.io": {}}}', {}],
    ['proxy: {upstreams: {"https://bob:hunter2@ghcr.io": {ttl: x}}}', {}],
    ['proxy: {upstreams: {"bob:hunter2/x@ghcr.io": {}, "BOB:hunter2/x@ghcr.io": {}}}', {}],
    ['proxy: {remoteurl: "https://x?token=hunter2"}', {}],
    ['proxy: {remoteurl: "https://bob:hunter2/hunter2@x"}', {}],
    ['proxy: {remoteurl: "https://x#hunter2"}', {}],
    ['proxy: {remoteurl: "x/?token=hunter2"}', {}],
    ['health: {http: [{uri: "ftp://x/?hunter2"}]}', {}],
    ['', { 'REGISTRY_PROXY_UPSTREAMS_bob:hunter2@ghcr.io_TTL': '1h' }],
    ['', { 'REGISTRY_PROXY_UPSTREAMS_bob:hunter2@ghcr.io_NONE': '1h' }],
    ['', { 'REGISTRY_PROXY_UPSTREAMS_bob:hunter2@ghcr.io': '"' }],
  ])('has no secret in it: %s %j', (text, environment) => {
    const { problems, warnings } = load(file(text), environment)
    const said = [...problems, ...warnings].join('\n')
    expect(said).toContain('***')
    expect(said).not.toContain('hunter2')
  })
})
