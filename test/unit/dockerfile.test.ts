// What the Dockerfile promises, as far as can be told by reading it. .ci/image runs its steps.

import { readFileSync } from 'node:fs'
import path from 'node:path'
import { describe, expect, it } from 'vitest'

const read = (file: string): string =>
  readFileSync(path.join(import.meta.dirname, '../..', file), 'utf8')

/** Instructions, each on one line. */
const lines = read('Dockerfile').replaceAll('\\\n', ' ').split('\n')
const finalStage = lines.slice(lines.findLastIndex((line) => line.startsWith('FROM ')))

describe('the image', () => {
  it('has its data where registry has it: one line of proxy.yml is rewritten', () => {
    const [, pattern = '', directory] = /sed 's\|([^|]+)\|([^|]+)\|' proxy\.yml/.exec(
      lines.join('\n'),
    ) ?? ['']
    expect(directory).toBe('rootdirectory: /var/lib/registry')
    expect(read('proxy.yml').match(new RegExp(pattern, 'gm'))).toEqual(['rootdirectory: ./data'])
  })

  it('is built from files that .dockerignore lets through', () => {
    const copied = lines
      .filter((line) => line.startsWith('COPY ') && !line.includes('--from='))
      .flatMap((line) => line.split(' ').slice(1, -1))
    const [first, ...allowed] = read('.dockerignore')
      .split('\n')
      .filter((line) => line !== '' && !line.startsWith('#'))
    expect(first).toBe('*')
    expect(allowed.sort()).toEqual([...new Set(copied.map((file) => `!${file}`))].sort())
  })

  it('has no development dependencies', () => {
    const installs = finalStage.filter((line) => /\bnpm (ci|i|install)\b/.test(line))
    expect(installs).toEqual([expect.stringContaining('npm ci --omit=dev')])
  })

  it('runs as a user without rights, with a volume, a port and a health check that needs no curl', () => {
    const own = (name: string): string[] => finalStage.filter((line) => line.startsWith(`${name} `))
    expect(own('USER')).toEqual(['USER node'])
    expect(own('VOLUME')).toEqual(['VOLUME ["/var/lib/registry"]'])
    expect(own('EXPOSE')).toEqual(['EXPOSE 5000'])
    expect(own('HEALTHCHECK')).toEqual([
      expect.stringMatching(/ CMD \["node", "\/app\/dist\/main\.js", "health"\]$/),
    ])
    // Whatever is run in it is run before: by then there are no rights left.
    const user = finalStage.indexOf('USER node')
    expect(finalStage.findLastIndex((line) => line.startsWith('RUN '))).toBeLessThan(user)
  })
})
