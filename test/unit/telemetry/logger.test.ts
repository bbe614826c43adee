import { describe, expect, it } from 'vitest'
import type { Logger } from 'pino'
import { createLogger } from '../../../src/telemetry/logger.ts'
import { FakeClock } from '../../support/fake-clock.ts'

function logged(formatter: 'text' | 'json', write: (logger: Logger) => void): string {
  const lines: string[] = []
  const destination = { write: (line: string): number => lines.push(line) }
  const clock = new FakeClock()
  write(createLogger({ clock, destination }, { level: 'info', formatter, fields: { site: 'a b' } }))
  return lines.join('')
}

describe('the log as text', () => {
  it("has registry:2's order, quotes what needs it, and adds the configured fields", () => {
    const line = logged('text', (logger) => logger.info({ digest: 'sha256:ab' }, 'a message'))
    expect(line).toBe(
      'time="2026-01-01T00:00:00.000Z" level=info msg="a message" site="a b" digest="sha256:ab"\n',
    )
  })

  it('gives an error in a word, and the stack of a bug of ours alone', () => {
    const err = new Error('it broke')
    const plain = logged('text', (logger) => logger.error({ err }, 'failed'))
    expect(plain).toContain('msg=failed error="it broke"')
    expect(plain.split('\n')).toHaveLength(2)
    const bug = logged('text', (logger) => logger.error({ err, isBug: true }, 'failed'))
    expect(bug).toContain('    at ')
  })

  it('stays one line whatever is logged', () => {
    const line = logged('text', (logger) => logger.warn({ reason: 'a\n"b"' }, 'c\nd'))
    expect(line.match(/\n/g)).toHaveLength(1)
  })

  it('leaves out what is below the level', () => {
    expect(logged('text', (logger) => logger.debug('detail'))).toBe('')
  })
})

describe.each(['text', 'json'] as const)('secrets in the log as %s', (formatter) => {
  it('are masked by their names', () => {
    const secret = 'c2VjcmV0'
    const line = logged(formatter, (logger) =>
      logger.info(
        { password: secret, headers: { authorization: secret }, answer: { token: secret } },
        'a message',
      ),
    )
    expect(line).not.toContain(secret)
    expect(line).toContain('***')
  })
})
