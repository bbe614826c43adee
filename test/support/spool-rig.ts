// A spool in a directory of its own, on a clock that stands still, and readers that check what they get.

import { mkdir } from 'node:fs/promises'
import { expect, onTestFinished } from 'vitest'
import { digestOf, type Digest } from '../../src/oci/digest.ts'
import { BlobStore } from '../../src/storage/blob-store.ts'
import type { ByteSource } from '../../src/storage/byte-source.ts'
import type { Digester } from '../../src/storage/digester.ts'
import type { StorageError } from '../../src/storage/filesystem.ts'
import { senderIdOf, StoragePaths } from '../../src/storage/paths.ts'
import { LagAllowance } from '../../src/storage/spool/lag-allowance.ts'
import { Spool } from '../../src/storage/spool/spool.ts'
import { FakeClock } from './fake-clock.ts'
import { makeDigester, makeBlobStore } from './storage-thread.ts'
import { makeTempDirectory } from './temp-directory.ts'
import { nextTurn, waitFor, within } from './wait-for.ts'

/** Of all parts, where it does not matter. */
export const SENDER = senderIdOf('hub')

export interface SpoolRigOptions {
  /** What the upstream is going to send. */
  readonly bytes: Buffer
  /** What the client asked for, if that is something else. */
  readonly digest?: Digest
  /** Undefined: not announced. Default: the length of `bytes`. */
  readonly sizeBytes?: number | undefined
  /** What all spools without a file share. */
  readonly lag?: LagAllowance
  readonly resumedBytes?: number
  /** False: there is no file from the start. */
  readonly isKept?: boolean
  readonly digester?: Digester
  /** Called when there are directories, before the spool is opened. */
  readonly prepare?: (paths: StoragePaths, digest: Digest) => Promise<void>
}

export interface SpoolRig {
  readonly spool: Spool
  readonly clock: FakeClock
  readonly paths: StoragePaths
  readonly store: BlobStore
  /** Every failure of the disk that was reported. */
  readonly failures: StorageError[]
}

export async function openSpool(options: SpoolRigOptions): Promise<SpoolRig> {
  const { bytes, digester = makeDigester(), isKept = true, prepare, resumedBytes = 0 } = options
  const { lag = new LagAllowance() } = options
  const digest = options.digest ?? digestOf(bytes)
  const paths = new StoragePaths(await makeTempDirectory())
  await mkdir(paths.spool, { recursive: true })
  await mkdir(paths.temporary, { recursive: true })
  await prepare?.(paths, digest)
  const clock = new FakeClock()
  const failures: StorageError[] = []
  const spool = await Spool.open(
    { clock, digester, lag, onStorageFailure: (error) => failures.push(error) },
    {
      digest,
      sizeBytes: 'sizeBytes' in options ? options.sizeBytes : bytes.length,
      file: isKept ? paths.spoolFile(digest, SENDER) : undefined,
      resumedBytes,
    },
  )
  return {
    spool,
    clock,
    paths,
    store: makeBlobStore(paths),
    failures,
  }
}

/**
 * A reader that is closed with the test, if not before.
 *
 * @throws when it is too late to join
 */
export function join(spool: Spool): ByteSource {
  const reader = spool.reader()
  if (!reader) throw new Error('the spool can no longer be joined')
  onTestFinished(() => reader.close())
  return reader
}

/** Feeds the spool as an upstream does, waiting whenever it is asked to. */
export async function feed(spool: Spool, bytes: Buffer, chunkBytes = 64 * 1024): Promise<void> {
  for (let start = 0; start < bytes.length; start += chunkBytes) {
    await spool.append(bytes.subarray(start, start + chunkBytes))
  }
}

export interface ReadOptions {
  readonly from?: number
  /** Position after the last byte wanted. */
  readonly to: number
  readonly scratchBytes?: number
}

/** Reads a range as a client would, in its own scratch, and closes the reader. */
export async function readRange(reader: ByteSource, options: ReadOptions): Promise<Buffer> {
  const { from = 0, scratchBytes = 64 * 1024, to } = options
  const scratch = Buffer.alloc(scratchBytes)
  const parts: Buffer[] = []
  try {
    for (let position = from; position < to;) {
      const wanted = scratch.subarray(0, Math.min(scratchBytes, to - position))
      const part = await within(`byte ${position}`, reader.read(position, wanted))
      if (part.length === 0 || part.length > wanted.length) throw new Error('wrong length')
      parts.push(Buffer.from(part))
      position += part.length
    }
  } finally {
    reader.close()
  }
  return Buffer.concat(parts)
}

/** Compares without printing a megabyte of differences. */
export function expectSame(actual: Uint8Array | undefined, expected: Uint8Array): void {
  expect(actual?.length).toBe(expected.length)
  expect(actual && Buffer.compare(actual, expected)).toBe(0)
}

/** Counts turns of the event loop, not time: enough for whatever can happen without more input. */
export async function isStillWaiting(promise: Promise<unknown>): Promise<boolean> {
  let settled = false
  const settle = (): void => void (settled = true)
  promise.then(settle, settle)
  for (let turn = 0; turn < 50; turn++) await nextTurn()
  return !settled
}

/** Lets time pass until a read has its answer: what is still to be written waits for the clock. */
export async function passOn<T>(clock: FakeClock, read: Promise<T>): Promise<T> {
  await waitFor('the bytes to be passed on', async () => {
    await clock.advance(10)
    return !(await isStillWaiting(read))
  })
  return read
}
