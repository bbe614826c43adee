import { openSync } from 'node:fs'
import { readFile } from 'node:fs/promises'
import path from 'node:path'
import { describe, expect, it } from 'vitest'
import { openDestination } from '../../../src/telemetry/log-destination.ts'
import { makeTempDirectory } from '../../support/temp-directory.ts'

const linesUpTo = (count: number): string[] =>
  Array.from({ length: count }, (_, index) => `${index} ${'x'.repeat(200)}\n`)

/** The destination closes it. */
async function openFile(): Promise<{ fd: number; text: () => Promise<string> }> {
  const file = path.join(await makeTempDirectory(), 'log')
  return { fd: openSync(file, 'w'), text: () => readFile(file, 'utf8') }
}

describe.each([true, false])('a destination (buffered: %s)', (isBuffered) => {
  it('has every line, in order, when it has ended, however many one turn has written', async () => {
    const { fd, text } = await openFile()
    const destination = openDestination(fd, { isBuffered })
    const lines = linesUpTo(10_000)
    for (const line of lines.slice(0, 5_000)) destination.write(line)
    await new Promise(setImmediate)
    for (const line of lines.slice(5_000)) destination.write(line)
    await destination.end()
    expect(await text()).toBe(lines.join(''))
  })

  it('drops what is written after its end', async () => {
    const { fd, text } = await openFile()
    const destination = openDestination(fd, { isBuffered })
    destination.write('before\n')
    const ended = destination.end()
    destination.write('after\n')
    await ended
    expect(await text()).toBe('before\n')
  })

  it('keeps as much as it may of what one turn writes, and says that it drops the rest', async () => {
    const { fd, text } = await openFile()
    const destination = openDestination(fd, { isBuffered })
    let drops = 0
    destination.onDrop(() => drops++)
    const line = `${'x'.repeat(64 * 1024 - 1)}\n`
    for (let count = 0; count < 160; count++) destination.write(line)
    await destination.end()
    expect(drops).toBe(1)
    const keptBytes = (await text()).length
    expect(keptBytes).toBeGreaterThan(7 * 1024 * 1024)
    expect(keptBytes).toBeLessThanOrEqual(9 * 1024 * 1024)
  })
})
