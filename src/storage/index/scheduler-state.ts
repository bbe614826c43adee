// registry's own expiry times, `scheduler-state.json`: read when a volume is taken over, and written when this
// cache stops, so that registry:2 finds its file valid and goes on from there. Ours are in the content index; what
// this file says is a hint, and a broken one is no reason not to start.

import { open, stat } from 'node:fs/promises'
import { randomUUID } from 'node:crypto'
import path from 'node:path'
import type { RepositoryName } from '../../oci/reference.ts'
import { StorageError, moveInto, readSmallFile, removeFile } from '../filesystem.ts'
import type { StoragePaths } from '../paths.ts'
import type { LinkEntry } from './content-index.ts'

/** Hundreds of thousands of entries; a larger file is not worth the memory for a hint. */
const READ_MAX_BYTES = 64 * 1024 * 1024
/** Entries written at once. */
const WRITE_BATCH = 1_000

/** `<repository>@<digest>` → when it expires, in milliseconds since the epoch. */
export type ExpiryTimes = ReadonlyMap<string, number>

/** @returns what can be understood of the file; nothing when it is missing, empty, too large, corrupt or closed to us */
export async function readSchedulerState(paths: StoragePaths): Promise<ExpiryTimes> {
  const times = new Map<string, number>()
  const file = paths.schedulerState
  const isReadable = await stat(file).then(
    ({ size }) => size <= READ_MAX_BYTES,
    () => false,
  )
  // It is a hint: what keeps us from reading it must not keep the volume from being scanned.
  const bytes = isReadable ? await readSmallFile(file).catch(() => undefined) : undefined
  for (const [key, value] of Object.entries(parseObject(bytes))) {
    const expiry = typeof value === 'object' && value !== null && 'ExpiryData' in value
    const timeMs = expiry ? Date.parse(String(value.ExpiryData)) : Number.NaN
    if (!Number.isNaN(timeMs)) times.set(key, timeMs)
  }
  return times
}

/**
 * Replaces the file, a batch at a time.
 *
 * @param ttlMsOf 0: nothing of it expires, and the file does not name it
 * @throws {StorageError} the old file is still there
 */
export async function writeSchedulerState(
  paths: StoragePaths,
  entries: AsyncIterable<LinkEntry>,
  ttlMsOf: (repository: RepositoryName) => number,
): Promise<void> {
  const temporary = path.join(paths.temporary, randomUUID())
  try {
    const handle = await open(temporary, 'wx')
    try {
      let batch: string[] = []
      let separator = '{'
      const flush = async (): Promise<void> => {
        if (batch.length > 0) await handle.write(separator + batch.join(','))
        if (batch.length > 0) separator = ','
        batch = []
      }
      for await (const entry of entries) {
        const ttlMs = ttlMsOf(entry.repository)
        if (ttlMs === 0) continue
        if (batch.push(entryText(entry, ttlMs)) >= WRITE_BATCH) await flush()
      }
      await flush()
      await handle.write(separator === '{' ? '{}' : '}')
      await handle.datasync()
    } finally {
      await handle.close()
    }
    await moveInto(temporary, paths.schedulerState)
  } catch (error) {
    // What stays behind is swept at the next start.
    await removeFile(temporary).catch(() => undefined)
    throw error instanceof StorageError
      ? error
      : new StorageError('write', paths.schedulerState, error)
  }
}

function entryText({ digest, kind, lastUsedMs, repository }: LinkEntry, ttlMs: number): string {
  const key = `${repository}@${digest}`
  const value = {
    Key: key,
    ExpiryData: new Date(lastUsedMs + ttlMs).toISOString(),
    EntryType: kind === 'blob' ? 0 : 1,
  }
  return `${JSON.stringify(key)}:${JSON.stringify(value)}`
}

function parseObject(bytes: Buffer | undefined): Record<string, unknown> {
  try {
    const json: unknown = bytes && JSON.parse(bytes.toString('utf8'))
    return typeof json === 'object' && json !== null ? { ...json } : {}
  } catch {
    // An empty or torn file is what a crash of registry:2 leaves.
    return {}
  }
}
