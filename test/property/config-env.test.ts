import * as fc from 'fast-check'
import { dump } from 'js-yaml'
import { describe, expect, it } from 'vitest'

import { formatDuration, parseDuration } from '../../src/config/duration.ts'
import { formatConfiguration } from '../../src/config/format.ts'
import { ConfigurationError, loadConfiguration } from '../../src/config/load.ts'

const load = (text: string | undefined, environment: Record<string, string> = {}) =>
  loadConfiguration({ text, path: 'config.yml' }, environment).configuration

const word = fc.stringMatching(/^[a-z][a-z0-9]{0,8}$/)
const durationText = fc.integer({ min: 1, max: 10_000_000 }).map(formatDuration)
const port = fc.integer({ min: 1, max: 65_535 })

/** A path in the file, the name that a variable gives it, and a value that fits. */
const setting = fc.oneof(
  fc.tuple(fc.constant('log.level'), fc.constant('LOG_LEVEL'), fc.constantFrom('debug', 'error')),
  fc.tuple(
    fc.constant('log.accesslog.disabled'),
    fc.constant('LOG_ACCESSLOG_DISABLED'),
    fc.boolean(),
  ),
  word.chain((key) =>
    fc.tuple(
      fc.constant(`log.fields.${key}`),
      fc.constant(`LOG_FIELDS_${key.toUpperCase()}`),
      fc.oneof(fc.string({ minLength: 1 }), fc.integer(), fc.boolean()),
    ),
  ),
  fc.tuple(
    fc.constant('storage.filesystem.rootdirectory'),
    fc.constant('STORAGE_FILESYSTEM_ROOTDIRECTORY'),
    fc.string({ minLength: 1 }),
  ),
  fc.tuple(
    fc.constant('storage.maintenance.uploadpurging.age'),
    fc.constant('STORAGE_MAINTENANCE_UPLOADPURGING_AGE'),
    durationText,
  ),
  fc.tuple(
    fc.constant('http.addr'),
    fc.constant('HTTP_ADDR'),
    port.map((number) => `:${number}`),
  ),
  fc.tuple(fc.constant('http.headers.x-a'), fc.constant('HTTP_HEADERS_X-A'), fc.array(word)),
  fc.tuple(fc.constant('catalog.maxentries'), fc.constant('CATALOG_MAXENTRIES'), port),
  // Less than a second is refused, as it would empty the cache.
  fc.tuple(
    fc.constant('proxy.ttl'),
    fc.constant('PROXY_TTL'),
    fc.nat(10_000).map((hours) => `${hours}h`),
  ),
  fc.tuple(fc.constant('proxy.tagttl'), fc.constant('PROXY_TAGTTL'), durationText),
  fc.tuple(
    fc.constant('health.file'),
    fc.constant('HEALTH_FILECHECKERS'),
    fc.constant([{ file: '/a' }]),
  ),
)

function documentOf(path: string, value: unknown): unknown {
  return path.split('.').reduceRight<unknown>((inner, key) => ({ [key]: inner }), value)
}

function outcome(text: string, environment: Record<string, string> = {}): unknown {
  try {
    return formatConfiguration(load(text, environment))
  } catch (error) {
    return error
  }
}

function expectOutcome(result: unknown): void {
  if (typeof result !== 'string') expect(result).toBeInstanceOf(ConfigurationError)
}

describe('a REGISTRY_* variable', () => {
  it('means what the same path in the file means', () => {
    fc.assert(
      fc.property(setting, ([path, name, value]) => {
        const text = `version: 0.1\n${dump(documentOf(path, value))}`
        const variables = { [`REGISTRY_${name}`]: dump(value) }
        expect(load('version: 0.1', variables)).toEqual(load(text))
        expect(load(undefined, variables)).toEqual(load(text))
      }),
    )
  })

  it('goes over any value in the file, and back to the default when it is empty', () => {
    fc.assert(
      fc.property(setting, ([path, name, value]) => {
        const text = `version: 0.1\n${dump(documentOf(path, value))}`
        expect(load(text, { [`REGISTRY_${name}`]: '' })).toEqual(load('version: 0.1'))
      }),
    )
  })
})

describe('durations', () => {
  it('are the same after a round trip', () => {
    const century = 100 * 365 * 24 * 3_600_000
    fc.assert(
      fc.property(fc.integer({ min: -century, max: century }), (ms) => {
        expect(parseDuration(formatDuration(ms))).toBe(ms)
      }),
    )
    fc.assert(
      fc.property(fc.integer({ min: 0, max: 2 ** 40 }), (ns) => {
        const ms = parseDuration(`${ns}ns`) ?? NaN
        expect(parseDuration(String(ns))).toBe(ms)
        expect(parseDuration(formatDuration(ms))).toBe(ms)
      }),
    )
  })
})

describe('anything else', () => {
  const garbage = fc.oneof(
    fc.string(),
    fc.string({ unit: 'binary' }),
    fc.anything().map((value) => JSON.stringify(value) ?? ''),
  )
  const keys = fc.constantFrom(
    ...'version log storage auth http redis health proxy catalog fields filesystem cache'.split(
      ' ',
    ),
    ...'headers debug tcp addr addrs tls ttl remoteurl password'.split(' '),
  )
  const { tree } = fc.letrec<{ tree: unknown }>((tie) => ({
    tree: fc.oneof(
      { maxDepth: 5 },
      fc.oneof(fc.string(), fc.integer(), fc.double(), fc.boolean(), fc.constant(null)),
      fc.array(tie('tree'), { maxLength: 3 }),
      fc.dictionary(keys, tie('tree'), { maxKeys: 6 }),
    ),
  }))

  it('in a file is a ConfigurationError or a configuration, never another failure', () => {
    fc.assert(fc.property(garbage, (text) => expectOutcome(outcome(text))))
    fc.assert(fc.property(garbage, (text) => expectOutcome(outcome(`version: 0.1\n${text}`))))
    fc.assert(
      fc.property(tree, (value) => expectOutcome(outcome(JSON.stringify(value)))),
      {
        numRuns: 500,
      },
    )
  })

  it('in a variable is a ConfigurationError or a configuration, never another failure', () => {
    const name = fc
      .array(fc.oneof(keys, fc.constantFrom('0', '1', '', 'TCPCHECKERS', '__proto__')), {
        maxLength: 5,
      })
      .map((names) => `REGISTRY_${names.join('_').toUpperCase()}`)
    fc.assert(
      fc.property(fc.dictionary(name, garbage, { maxKeys: 5 }), (environment) =>
        expectOutcome(outcome('version: 0.1', environment)),
      ),
      { numRuns: 500 },
    )
  })
})
