import { describe, expect, it } from 'vitest'
import { garbageCount } from '../../../../src/storage/spool/network-garbage.ts'

const MIB = 1024 * 1024

describe('garbageCount', () => {
  it('has the young objects collected once for every 4 MiB that were received', () => {
    const collected: unknown[] = []
    const note = garbageCount((options) => collected.push(options))
    for (let count = 0; count < 4 * 16 - 1; count++) note(MIB / 16)
    expect(collected).toEqual([])
    note(MIB / 16)
    expect(collected).toEqual([{ type: 'minor' }])
    for (let count = 0; count < 2 * 4 * 16; count++) note(MIB / 16)
    expect(collected).toHaveLength(3)
  })

  it('does nothing in a process that was started without the flag', () => {
    const note = garbageCount(undefined)
    expect(() => note(64 * MIB)).not.toThrow()
  })
})
