import { describe, expect, it } from 'vitest'
import { DigestTable } from '../../../../src/cache/upkeep/digest-table.ts'
import { digestOf, type Digest } from '../../../../src/oci/digest.ts'

const digests = Array.from({ length: 5_000 }, (_, number) => digestOf(Buffer.from(`${number}`)))

describe('a digest table', () => {
  it('has the last number of each digest, 0 too, and none of others', () => {
    const table = new DigestTable()
    for (const [number, digest] of digests.entries()) table.set(digest, number + 1)
    for (const [number, digest] of digests.entries()) if (number % 2) table.set(digest, 0)
    const numbers = digests.map((digest) => table.get(digest))
    expect(numbers).toEqual(digests.map((_, number) => (number % 2 ? 0 : number + 1)))
    expect(table.get(digestOf(Buffer.from('none')))).toBeUndefined()
  })

  it('tells digests apart that have half of the bits in common, and finds them in any slot', () => {
    const table = new DigestTable()
    const ends = ['ffffffff', '00000000'].flatMap((high) =>
      ['ffffffff', 'fffffffe', '00000000'].map((low) => `${high}${low}`),
    )
    const like = ends.map((end) => `sha256:${end.padStart(64, 'a')}` as Digest)
    for (const [number, digest] of like.entries()) table.set(digest, number)
    expect(like.map((digest) => table.get(digest))).toEqual([0, 1, 2, 3, 4, 5])
  })
})
