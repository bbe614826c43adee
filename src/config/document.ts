// The keys of the configuration file, as distribution's config.yml (version 0.1) spells them, with ours
// beside theirs. Declared once: what is read, warned about, set by REGISTRY_* and hidden is said here.

import {
  dictionary,
  ignored,
  list,
  refused,
  scalar,
  section,
  withDefault,
  type ValueOf,
} from './node.ts'
import {
  boolean,
  checkedUrl,
  choice,
  diskAmount,
  duration,
  headerValue,
  hostAndPort,
  imagePattern,
  integer,
  listenAddress,
  secret,
  size,
  text,
  textNumberOrBoolean,
  urlPath,
} from './scalars.ts'
import { proxyExec, UPSTREAM_NAME, upstreamKeys } from './upstream-keys.ts'
import { textOf } from './yaml.ts'

const MINUTE_MS = 60_000
const HOUR_MS = 60 * MINUTE_MS

const READ_ONLY = 'accepted, but has no effect in a read-only cache'
const THIS_VERSION = 'accepted, but has no effect in this version'

const OTHER_STORAGE =
  'this version stores on the local file system only; remove the key and use storage.filesystem'
const CLIENT_AUTHENTICATION =
  'authentication of clients is not supported by this version; put an authenticating proxy in front and remove the key'

const level = () => choice('error', 'warn', 'info', 'debug')

const headerName = {
  expected: 'a header name such as X-Content-Type-Options',
  pattern: /^[\w!#$%&'*+.^`|~-]+$/,
}

const interval = () => duration({ example: '10s' })
const threshold = () => withDefault(integer(0), 1)

const log = section({
  level: level(),
  formatter: withDefault(choice('text', 'json', 'logstash'), 'text'),
  fields: dictionary(textNumberOrBoolean()),
  accesslog: section({ disabled: withDefault(boolean(), false) }),
  reportcaller: ignored(THIS_VERSION),
  hooks: ignored(THIS_VERSION),
})

const otherStorage = () => refused(OTHER_STORAGE, { evenEmpty: true })

const storage = section(
  {
    filesystem: section({
      rootdirectory: withDefault(text(), '/var/lib/registry'),
      maxthreads: ignored(THIS_VERSION),
    }),
    cache: section({
      blobdescriptor: text(),
      layerinfo: text(),
      blobdescriptorsize: withDefault(integer(0), 10_000),
    }),
    maxsize: diskAmount(),
    minfree: diskAmount(),
    retention: list(
      section({
        match: imagePattern(),
        pin: withDefault(boolean(), false),
        ttl: duration({ example: '24h' }),
      }),
    ),
    scrub: section({
      interval: duration({ example: '168h' }),
      rate: size({ example: '20MB' }),
    }),
    // Expiry removes what it should whether or not clients may delete.
    delete: ignored(),
    redirect: ignored('accepted, but has no effect: content is always sent from here'),
    tag: ignored(THIS_VERSION),
    maintenance: section({
      uploadpurging: section({
        enabled: withDefault(boolean(), true),
        age: withDefault(duration({ example: '168h' }), 168 * HOUR_MS),
        interval: duration({ example: '24h' }),
        dryrun: withDefault(boolean(), false),
      }),
      readonly: ignored(READ_ONLY),
    }),
    s3: otherStorage(),
    s3aws: otherStorage(),
    azure: otherStorage(),
    gcs: otherStorage(),
    inmemory: otherStorage(),
    swift: otherStorage(),
    oss: otherStorage(),
  },
  // Whatever else stands here is a driver to distribution, which does not start either.
  { shorthand: true, unknownKey: 'neither a known key nor a storage driver; remove it' },
)

const authProvider = () => refused(CLIENT_AUTHENTICATION, { evenEmpty: true })

const auth = section(
  { none: ignored(), htpasswd: authProvider(), token: authProvider(), silly: authProvider() },
  { shorthand: true, unknownKey: CLIENT_AUTHENTICATION },
)

const http = section({
  addr: withDefault(text(), ':5000'),
  net: withDefault(choice('tcp', 'unix'), 'tcp'),
  prefix: withDefault(urlPath(), ''),
  host: text(),
  headers: dictionary(list(headerValue()), headerName),
  draintimeout: duration({ example: '30s' }),
  listeners: list(
    section({
      addr: text(),
      net: withDefault(choice('tcp', 'unix'), 'tcp'),
      upstream: text(),
    }),
  ),
  debug: section({
    addr: listenAddress(),
    prometheus: section({
      enabled: withDefault(boolean(), false),
      path: withDefault(urlPath(), '/metrics'),
    }),
  }),
  tls: refused(
    'TLS on the listener is not supported by this version; put a TLS-terminating proxy in front or remove the key',
  ),
  secret: ignored(),
  relativeurls: ignored(READ_ONLY),
  http2: ignored('accepted, but has no effect: clients speak HTTP/2 over TLS only'),
  h2c: ignored(THIS_VERSION),
})

const proxy = section({
  ...upstreamKeys(),
  ttl: duration({ example: '168h', mayBeNegative: true }),
  tagttl: withDefault(duration({ example: '60s' }), MINUTE_MS),
  ratelimitstatus: withDefault(choice('503', '429'), '503'),
  exec: proxyExec(),
  cachewritetimeout: ignored(THIS_VERSION),
  upstreams: dictionary(
    section({
      enabled: boolean(),
      ...upstreamKeys(),
      ttl: duration({ example: '168h', mayBeNegative: true }),
      tagttl: duration({ example: '60s' }),
    }),
    UPSTREAM_NAME,
  ),
})

const health = section(
  {
    storagedriver: section({
      enabled: withDefault(boolean(), false),
      interval: interval(),
      threshold: threshold(),
    }),
    file: list(section({ file: text(), interval: interval(), threshold: threshold() })),
    http: list(
      section({
        uri: checkedUrl(),
        headers: dictionary(list(headerValue({ secret: true })), headerName),
        statuscode: withDefault(integer(100, 599), 200),
        timeout: duration({ example: '5s' }),
        interval: interval(),
        threshold: threshold(),
      }),
    ),
    tcp: list(
      section({
        addr: hostAndPort(),
        timeout: duration({ example: '5s' }),
        interval: interval(),
        threshold: threshold(),
      }),
    ),
  },
  { variableNames: { file: 'FileCheckers', http: 'HTTPCheckers', tcp: 'TCPCheckers' } },
)

/** Negative means none to the client library that distribution uses. */
const redisTimeout = () => duration({ example: '5s', mayBeNegative: true })

const redis = section({
  // As registry:2 has it, then as registry:3 does.
  addr: hostAndPort(6379),
  addrs: list(hostAndPort(6379)),
  username: text(),
  password: secret(),
  sentinelusername: text(),
  sentinelpassword: secret(),
  mastername: text(),
  clientname: text(),
  db: withDefault(integer(0), 0),
  maxretries: integer(-1),
  dialtimeout: redisTimeout(),
  readtimeout: redisTimeout(),
  writetimeout: redisTimeout(),
  tls: section({
    enabled: boolean(),
    certificate: text(),
    key: text(),
    rootcas: list(text()),
    // What registry:3.0 calls rootcas.
    clientcas: list(text()),
  }),
  pool: ignored(THIS_VERSION),
  protocol: ignored(THIS_VERSION),
  minretrybackoff: ignored(THIS_VERSION),
  maxretrybackoff: ignored(THIS_VERSION),
  contexttimeoutenabled: ignored(THIS_VERSION),
  poolfifo: ignored(THIS_VERSION),
  poolsize: ignored(THIS_VERSION),
  pooltimeout: ignored(THIS_VERSION),
  minidleconns: ignored(THIS_VERSION),
  maxidleconns: ignored(THIS_VERSION),
  maxactiveconns: ignored(THIS_VERSION),
  connmaxidletime: ignored(THIS_VERSION),
  connmaxlifetime: ignored(THIS_VERSION),
  maxredirects: ignored(THIS_VERSION),
  readonly: ignored(THIS_VERSION),
  routebylatency: ignored(THIS_VERSION),
  routerandomly: ignored(THIS_VERSION),
  disableidentity: ignored(THIS_VERSION),
  identitysuffix: ignored(THIS_VERSION),
  unstableresp3: ignored(THIS_VERSION),
})

/** @see https://distribution.github.io/distribution/about/configuration/ */
export const DOCUMENT = section({
  version: scalar({
    expected: '0.1',
    parse: (raw) => (textOf(raw) === '0.1' ? '0.1' : undefined),
  }),
  log,
  loglevel: level(),
  storage,
  auth,
  middleware: ignored(READ_ONLY),
  http,
  notifications: ignored('accepted, but has no effect in this version: no events are sent'),
  redis,
  health,
  catalog: section({ maxentries: integer() }),
  tags: section({ maxtags: integer(0) }),
  proxy,
  validation: ignored(READ_ONLY),
  policy: ignored(READ_ONLY),
  reporting: ignored(THIS_VERSION),
  compatibility: ignored(READ_ONLY),
})

/** The file as it was read: YAML's spelling, undefined where there is no default. */
export type Document = ValueOf<typeof DOCUMENT>
