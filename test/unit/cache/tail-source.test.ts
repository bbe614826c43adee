import { Readable } from 'node:stream'
import { describe, expect, it } from 'vitest'
import type { Repository } from '../../../src/cache/repositories.ts'
import { TailSource } from '../../../src/cache/tail-source.ts'
import { digestOf } from '../../../src/oci/digest.ts'
import type { BlobOptions, UpstreamBlob } from '../../../src/upstream/remote-registry.ts'
import type { UpstreamError } from '../../../src/upstream/upstream-error.ts'

const bytes = Buffer.from('0123456789')

/** A range of the blob, from endpoints that send these bodies one after the other. */
function tailOf(...bodies: Readable[]): { tail: TailSource; refusals: UpstreamError[] } {
  const refusals: UpstreamError[] = []
  const refuse = (reason: UpstreamError): boolean => refusals.push(reason) > 0
  const getBlob = (_name: string, _digest: string, options: BlobOptions): UpstreamBlob => {
    const { offset = 0, signal } = options
    const body = bodies.shift()
    if (!body) throw new Error('asked once too often')
    signal?.addEventListener('abort', () => body.destroy(signal.reason as Error))
    return { startOffset: offset, sizeBytes: bytes.length, body, sentBy: 'mirror', refuse }
  }
  const repository = { name: 'a', registry: { getBlob } } as unknown as Repository
  const deps = { join: () => undefined, onClose: () => undefined }
  return { tail: new TailSource(deps, { repository, digest: digestOf(bytes) }), refusals }
}

async function* sending(...chunks: (Buffer | Error)[]): AsyncGenerator<Buffer> {
  for (const chunk of chunks) {
    if (chunk instanceof Error) throw chunk
    yield chunk
  }
}

describe('a range straight from the upstream', () => {
  it.each([
    ['broke off: Error: reset', new Error('reset')],
    ['ended early', undefined],
  ])('goes on at another endpoint when it %s', async (how, error) => {
    const first = Readable.from(sending(bytes.subarray(4, 6), ...(error ? [error] : [])))
    const { refusals, tail } = tailOf(first, Readable.from(sending(bytes.subarray(6))))
    const scratch = Buffer.alloc(10)
    expect(await tail.read(4, scratch)).toEqual(bytes.subarray(4, 6))
    expect(refusals).toEqual([])
    expect(await tail.read(6, scratch)).toEqual(bytes.subarray(6))
    expect(refusals.map(({ kind, message }) => [kind, message])).toEqual([
      ['unreachable', `mirror: a range of a blob ${how}`],
    ])
    tail.close()
  })

  it('refuses nobody when it is the client that left', async () => {
    const { refusals, tail } = tailOf(new Readable({ read: () => undefined }))
    const read = tail.read(4, Buffer.alloc(10))
    tail.close()
    await expect(read).rejects.toThrow()
    expect(refusals).toEqual([])
  })
})
