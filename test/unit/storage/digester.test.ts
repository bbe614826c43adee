import { appendFile, truncate, writeFile } from 'node:fs/promises'
import path from 'node:path'
import { describe, expect, it } from 'vitest'
import { hexOf, type Digest } from '../../../src/oci/digest.ts'
import { Digester } from '../../../src/storage/digester.ts'
import { makeDigester, makeStorageThread } from '../../support/storage-thread.ts'
import { blobOf } from '../../support/images.ts'
import { canListOpenFiles, openFilesBelow } from '../../support/open-files.ts'
import { makeTempDirectory } from '../../support/temp-directory.ts'
import { waitFor, within } from '../../support/wait-for.ts'

const MIB = 1024 * 1024

/** The result, bounded: a lost reply would otherwise hang the test without a word. */
const resultOf = (finished: Promise<string>): Promise<string> => within('a digest', finished)

async function makeFile(content: Uint8Array, name = 'file'): Promise<string> {
  const file = path.join(await makeTempDirectory(), name)
  await writeFile(file, content)
  return file
}

describe('a digest of a file', () => {
  it.each(['sha256', 'sha384', 'sha512'] as const)('is its %s', async (algorithm) => {
    const blob = blobOf(3 * MIB + 17, 'algorithms', algorithm)
    const run = makeDigester().open(await makeFile(blob.bytes), algorithm)
    run.advance(blob.bytes.length)
    expect(await resultOf(run.finish())).toBe(hexOf(blob.digest))
  })

  it('is that of the empty string when nothing was written', async () => {
    const run = makeDigester().open(await makeFile(Buffer.alloc(0)), 'sha256')
    expect(await resultOf(run.finish())).toBe(hexOf(blobOf(0, 0).digest))
  })

  it('is of the bytes announced, and not of what else is in the file', async () => {
    const blob = blobOf(1000, 'announced')
    const file = await makeFile(Buffer.concat([blob.bytes, Buffer.alloc(500)]))
    const run = makeDigester().open(file, 'sha256')
    run.advance(1000)
    expect(await resultOf(run.finish())).toBe(hexOf(blob.digest))
  })

  it('follows a file that grows', async () => {
    const blob = blobOf(2 * MIB, 'growing')
    const file = await makeFile(Buffer.alloc(0))
    const run = makeDigester().open(file, 'sha256')
    for (let position = 0; position < blob.bytes.length; position += 100_000) {
      const chunk = blob.bytes.subarray(position, position + 100_000)
      await appendFile(file, chunk)
      run.advance(position + chunk.length)
    }
    expect(await resultOf(run.finish())).toBe(hexOf(blob.digest))
  })

  it('goes on with bytes that never reached the file, in order', async () => {
    const blob = blobOf(5 * MIB, 'appended')
    const file = await makeFile(blob.bytes.subarray(0, 3 * MIB))
    const run = makeDigester().open(file, 'sha256')
    run.advance(3 * MIB)
    for (const start of [3, 4]) {
      const reused = Buffer.from(blob.bytes.subarray(start * MIB, (start + 1) * MIB))
      void run.append(reused)
      reused.fill(0)
    }
    expect(await resultOf(run.finish())).toBe(hexOf(blob.digest))
  })

  it('is right for each of many files that are hashed side by side', async () => {
    const digester = makeDigester()
    const blobs = Array.from({ length: 8 }, (_, seed) => blobOf(MIB + seed * 300_000, seed))
    const runs = await Promise.all(
      blobs.map(async ({ bytes }) => digester.open(await makeFile(bytes), 'sha256')),
    )
    for (let step = 1; step <= 4; step++) {
      runs.forEach((run, index) => {
        run.advance(Math.floor(((blobs[index]?.bytes.length ?? 0) * step) / 4))
      })
    }
    const results = await Promise.all(runs.map((run) => resultOf(run.finish())))
    expect(results).toEqual(blobs.map(({ digest }: { digest: Digest }) => hexOf(digest)))
  })

  it('of a small file does not wait for that of a big one', async () => {
    const digester = makeDigester()
    const [big, small] = [blobOf(96 * MIB, 'big'), blobOf(10, 'small')]
    const order: string[] = []
    const [bigRun, smallRun] = await Promise.all(
      [big, small].map(async ({ bytes }) => {
        const run = digester.open(await makeFile(bytes), 'sha256')
        return { run, sizeBytes: bytes.length }
      }),
    )
    if (!bigRun || !smallRun) throw new Error('there are two')
    bigRun.run.advance(bigRun.sizeBytes)
    const bigResult = bigRun.run.finish().finally(() => order.push('big'))
    smallRun.run.advance(smallRun.sizeBytes)
    const smallResult = smallRun.run.finish().finally(() => order.push('small'))
    expect(await resultOf(smallResult)).toBe(hexOf(small.digest))
    expect(await resultOf(bigResult)).toBe(hexOf(big.digest))
    expect(order).toEqual(['small', 'big'])
  })
})

describe('a file that cannot be hashed', () => {
  it('is reported to whoever asks for its digest, and to nobody else', async () => {
    const digester = makeDigester()
    const missing = digester.open('/nonexistent/file', 'sha256')
    const blob = blobOf(1000, 'bystander')
    const other = digester.open(await makeFile(blob.bytes), 'sha256')
    missing.advance(100)
    const appended = missing.append(Buffer.from('more'))
    other.advance(1000)
    await expect(resultOf(missing.finish())).rejects.toThrow(/ENOENT/)
    await within('the bytes to be let go of', appended)
    expect(await resultOf(other.finish())).toBe(hexOf(blob.digest))
  })

  it('may be shorter than announced', async () => {
    const file = await makeFile(blobOf(1000, 'short').bytes)
    await truncate(file, 600)
    const run = makeDigester().open(file, 'sha256')
    run.advance(1000)
    await expect(resultOf(run.finish())).rejects.toThrow('the file ends at byte 600')
  })

  it('may fail before its digest is asked for', async () => {
    const digester = makeDigester()
    const run = digester.open('/nonexistent/file', 'sha256')
    // Answered in order: once this one is, the failure has been reported.
    await resultOf(digester.open(await makeFile(Buffer.alloc(0)), 'sha256').finish())
    await expect(resultOf(run.finish())).rejects.toThrow('ENOENT')
  })
})

describe('an aborted run', () => {
  it('fails whoever waits for it, and may be aborted again', async () => {
    const run = makeDigester().open(await makeFile(blobOf(1000, 'aborted').bytes), 'sha256')
    const result = run.finish()
    run.abort()
    run.abort()
    await expect(resultOf(result)).rejects.toThrow('aborted')
    run.advance(1000)
    await expect(resultOf(run.finish())).rejects.toThrow('aborted')
  })

  it.runIf(canListOpenFiles)('closes its file, as every other end does', async () => {
    const digester = makeDigester()
    const file = await makeFile(blobOf(1000, 'descriptors').bytes)
    const runs = Array.from({ length: 3 }, () => digester.open(file, 'sha256'))
    runs[0]?.abort()
    runs[1]?.advance(1000)
    await resultOf(runs[1]?.finish() ?? Promise.resolve(''))
    runs[2]?.advance(2000)
    await expect(resultOf(runs[2]?.finish() ?? Promise.resolve(''))).rejects.toThrow('ends at byte')
    const directory = path.dirname(file)
    const allClosed = async (): Promise<boolean> => (await openFilesBelow(directory)).length === 0
    await waitFor('the file to be closed', allClosed)
  })
})

describe('closing the thread', () => {
  it('fails the runs that are under way', async () => {
    const thread = makeStorageThread()
    const run = new Digester({ thread }).open(await makeFile(Buffer.alloc(0)), 'sha256')
    const result = run.finish()
    await Promise.all([
      expect(resultOf(result)).rejects.toThrow('closed'),
      within('the thread to end', thread.close()),
    ])
    run.abort()
  })

  it('is fine when nothing was ever asked of it, and twice', async () => {
    const thread = makeStorageThread()
    await thread.close()
    new Digester({ thread }).open(await makeFile(Buffer.alloc(0)), 'sha256').abort()
    await thread.close()
    await thread.close()
  })
})
