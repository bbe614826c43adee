import { describe, expect, it } from 'vitest'
import { parseFault, program } from '../../support/fake-upstream-cli.ts'
import { FAULT_NOTES, NAMED_FAULTS } from '../../support/fake-upstream-faults.ts'

describe('a fault by hand', () => {
  it.each([
    ['hang', { kind: undefined, fault: NAMED_FAULTS.hang, times: undefined }],
    ['blob:cut-at-64k*1', { kind: 'blob', fault: NAMED_FAULTS['cut-at-64k'], times: 1 }],
    ['token:{"status":429}', { kind: 'token', fault: { status: 429 }, times: undefined }],
  ])('is understood: %s', (text, fault) => {
    expect(parseFault(text)).toEqual(fault)
  })

  it.each(['nope', 'blob:nope', '{"status"'])('is refused with what to do: %s', (text) => {
    expect(() => parseFault(text)).toThrow(/--help lists them|is not JSON/)
  })
})

it('--help has a line for each fault', () => {
  let help = ''
  program.configureOutput({ writeOut: (text) => (help += text) }).outputHelp()
  for (const [name, about] of Object.entries(FAULT_NOTES)) {
    expect(help).toContain(`  ${name.padEnd(26)} ${about}\n`)
  }
})
