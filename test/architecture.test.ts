// The house rules that a reviewer would otherwise have to remember: which folder may import which, what is
// touched in one place only, how long a file may be.

import { readFileSync, readdirSync } from 'node:fs'
import path from 'node:path'
import { describe, expect, it } from 'vitest'

const SOURCE = path.resolve(import.meta.dirname, '..', 'src')

interface SourceFile {
  /** Relative to `src`, with forward slashes. */
  readonly name: string
  /** First folder, or the file itself at the top. */
  readonly part: string
  readonly text: string
  /** Without comments and with strings emptied. */
  readonly code: string
  /** Files of `src` that it imports, relative to `src`. */
  readonly imports: readonly string[]
}

const files = readdirSync(SOURCE, { recursive: true, encoding: 'utf8' })
  .filter((name) => name.endsWith('.ts'))
  .map((name) => readSource(name.split(path.sep).join('/')))

function readSource(name: string): SourceFile {
  const text = readFileSync(path.join(SOURCE, name), 'utf8')
  const specifiers = [...text.matchAll(/(?:from|import)\s*\(?'(\.[^']+)'/g)].map(
    ([, found]) => found ?? '',
  )
  const imports = specifiers.map((specifier) =>
    path.posix.join(path.posix.dirname(name), specifier),
  )
  const code = text
    .replace(/\/\*[\s\S]*?\*\//g, '')
    .replace(/(^|\s)\/\/.*$/gm, '')
    .replace(/'(?:[^'\\\n]|\\.)*'/g, "''")
  return { name, part: partOf(name), text, code, imports }
}

function partOf(name: string): string {
  return name.split('/')[0] ?? name
}

/** What each part may import besides itself. Arrows point one way: nothing imports what is left of it. */
const ARROWS: Readonly<Record<string, readonly string[]>> = {
  'main.ts': ['cli.ts', 'clock.ts', 'telemetry'],
  'cli.ts': ['cli'],
  // The commands ask a server that runs, and show what it answers.
  cli: ['service.ts', 'http', 'cache', 'config', 'telemetry', 'clock.ts'],
  'service.ts': [
    'service-storage.ts',
    'service-upstreams.ts',
    'http',
    'cache',
    'storage',
    'upstream',
    'config',
    'telemetry',
    'clock.ts',
  ],
  'service-storage.ts': ['cache', 'storage', 'config', 'oci', 'telemetry', 'clock.ts'],
  'service-upstreams.ts': ['cache', 'upstream', 'config', 'oci', 'clock.ts'],
  http: ['cache', 'oci', 'telemetry', 'clock.ts'],
  cache: ['storage', 'upstream', 'oci', 'telemetry', 'clock.ts'],
  storage: ['oci', 'clock.ts'],
  upstream: ['oci', 'clock.ts'],
  telemetry: ['clock.ts'],
  config: [],
  oci: [],
  'clock.ts': [],
}

/**
 * Folders inside a part, and which of its other files import them. They build on the rest of their part; it does not
 * know them otherwise.
 */
const INNER: Readonly<Record<string, readonly string[]>> = {
  'cache/upkeep': [],
  'storage/index': [],
  // The error for bytes that are not what their name says, which both have.
  'storage/spool': ['storage/verified-blobs.ts'],
  // Requests get their login there; and what asks for tokens goes out by the same transport as they do.
  'upstream/login': ['upstream/upstream-session.ts'],
}

describe('the architecture', () => {
  it('has only parts whose place is known', () => {
    expect(new Set(files.map(({ part }) => part))).toEqual(new Set(Object.keys(ARROWS)))
  })

  it.each(files)('$name imports only what its part may', ({ imports, part }) => {
    const foreign = imports.map(partOf).filter((imported) => imported !== part)

    expect(foreign.filter((imported) => !ARROWS[part]?.includes(imported))).toEqual([])
  })

  it('has only folders inside of parts whose place is known', () => {
    const folders = files.map(({ name }) => path.posix.dirname(name))

    expect(new Set(folders.filter((folder) => folder.includes('/')))).toEqual(
      new Set(Object.keys(INNER)),
    )
  })

  it.each(Object.entries(INNER))('%s is known in its part to few', (folder, allowed) => {
    const around = files.filter(
      ({ name, part }) => part === partOf(folder) && !name.startsWith(`${folder}/`),
    )
    const importing = around.filter(({ imports }) =>
      imports.some((imported) => imported.startsWith(`${folder}/`)),
    )

    expect(importing.map(({ name }) => name)).toEqual(allowed)
  })

  it('has no import cycles', () => {
    const byName = new Map(files.map((file) => [file.name, file]))
    const done = new Set<string>()
    const visit = (name: string, trail: readonly string[]): void => {
      expect(trail, `a cycle: ${[...trail, name].join(' → ')}`).not.toContain(name)
      if (done.has(name)) return
      for (const imported of byName.get(name)?.imports ?? []) visit(imported, [...trail, name])
      done.add(name)
    }

    for (const { name } of files) visit(name, [])
  })

  it('imports every source file from somewhere', () => {
    const imported = new Set(files.flatMap((file) => file.imports))
    // Started by a process or a thread, not imported.
    const entries = new Set(['main.ts', 'storage/storage-worker.ts'])

    expect(
      files.map(({ name }) => name).filter((name) => !imported.has(name) && !entries.has(name)),
    ).toEqual([])
  })
})

/** What is touched in the named files only. */
const CONFINED: readonly { what: string; pattern: RegExp; allowed: readonly string[] }[] = [
  { what: 'the environment', pattern: /\bprocess\.env\b/, allowed: ['main.ts'] },
  { what: 'the exit', pattern: /\bprocess\.exit\b/, allowed: ['main.ts'] },
  {
    what: 'the time',
    pattern: /\bDate\.now\(|\bnew Date\(\)|performance\.now\(/,
    allowed: ['clock.ts'],
  },
  { what: 'timers', pattern: /(?<![.\w])set(Timeout|Interval)\(/, allowed: ['clock.ts'] },
  { what: 'the console', pattern: /\bconsole\./, allowed: [] },
  { what: 'pipe() without error handling', pattern: /\.pipe\(/, allowed: [] },
  { what: 'tee(), which buffers without bound', pattern: /\.tee\(/, allowed: [] },
  { what: 'default exports', pattern: /\bexport default\b/, allowed: [] },
  { what: 'any', pattern: /: any\b|<any>|\bas any\b/, allowed: [] },
]

describe('the house rules', () => {
  it.each(CONFINED)('$what: only where it belongs', ({ allowed, pattern }) => {
    const found = files.filter(({ code, name }) => pattern.test(code) && !allowed.includes(name))

    expect(found.map(({ name }) => name)).toEqual([])
  })

  it('keeps HTTP out of the cache', () => {
    const cache = files.filter(({ part }) => part === 'cache')

    expect(cache.filter(({ code }) => /\bstatusCode\b|\bHono\b|node:http/.test(code))).toEqual([])
  })

  it.each(files)('$name opens with what it is for', ({ text }) => {
    expect(text.replace(/^#!.*\n/, '')).toMatch(/^\/\/ /)
  })

  it('keeps every file under 400 lines', () => {
    const long = files.filter(({ text }) => text.split('\n').length > 400)

    expect(long.map(({ name }) => name)).toEqual([])
  })

  it('leaves no TODO without an issue', () => {
    expect(files.filter(({ text }) => /\b(TODO|FIXME|XXX)\b(?!.*#\d)/.test(text))).toEqual([])
  })
})
