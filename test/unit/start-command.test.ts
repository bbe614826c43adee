import { readFileSync } from 'node:fs'
import path from 'node:path'
import { describe, expect, it } from 'vitest'
import { START_ENVIRONMENT, START_FLAGS } from '../bench/start-command.mjs'

const START_VARIABLES = Object.entries(START_ENVIRONMENT).map(([name, value]) => `${name}=${value}`)

const read = (file: string): string =>
  readFileSync(path.join(import.meta.dirname, '../..', file), 'utf8')

describe('the program is started with the same flags', () => {
  it('by npm', () => {
    expect(START_FLAGS).not.toEqual([])
    expect(START_VARIABLES).not.toEqual([])
  })

  it('by npm, with no shell in between that would keep SIGTERM to itself', () => {
    const { scripts } = JSON.parse(read('package.json')) as { scripts: { start: string } }
    expect(scripts.start).toContain(' exec node ')
  })

  it('in a container', () => {
    const lines = read('Dockerfile').split('\n')
    const words = ['node', ...START_FLAGS, '/app/dist/main.js']
    expect(lines).toContain(`ENTRYPOINT [${words.map((word) => `"${word}"`).join(', ')}]`)
    expect(lines).toContain(`ENV ${START_VARIABLES.join(' ')}`)
  })

  it('by systemd', () => {
    const lines = read('README.md').split('\n')
    expect(lines).toContain(
      `ExecStart=/usr/bin/node ${START_FLAGS.join(' ')} /opt/layover/dist/main.js serve /etc/layover/config.yml`,
    )
    expect(lines).toContain(`Environment=${START_VARIABLES.join(' ')}`)
  })
})
