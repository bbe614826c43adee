// Single system calls that fail, one kind after the other, while a client pulls: it is served, the log names the
// error, and when the disk has recovered so has the cache, by itself.

import { spawnSync } from 'node:child_process'
import { once } from 'node:events'
import { existsSync, readdirSync, readFileSync } from 'node:fs'
import { Agent, request, type IncomingMessage } from 'node:http'
import { dirname, join } from 'node:path'
import { beforeAll, describe, expect, it } from 'vitest'
import type { FakeUpstream } from '../support/fake-upstream.ts'
import { rawGet, type RawResponse } from '../support/http-client.ts'
import { blobOf, type TestBlob } from '../support/images.ts'
import { blobFile, partFile } from '../support/layover.ts'
import { waitFor } from '../support/wait-for.ts'
import { IS_COMPARISON, startBeforeFakeUpstream, type Cache } from './support/cache.ts'
import { withSyscallFault, type SyscallFault } from './support/syscall-fault.ts'
import { openWorkspace } from './support/workspace.ts'

const NAME = 'library/faulty'
/** Spooled to disk, and kept in memory. */
const LARGE_BYTES = 1_500_000
const SMALL_BYTES = 1_000

const workspace = openWorkspace()
let upstream: FakeUpstream
let cache: Cache
let root: string

beforeAll(async () => {
  ;({ upstream, cache, root } = await startBeforeFakeUpstream(workspace))
})

interface Target {
  readonly blob: TestBlob
  readonly data: string
  readonly part: string
  readonly link: string
  /** Where the bytes and the link have to be made room for. */
  readonly directory: string
  readonly linkDirectory: string
}

function push(seed: string, sizeBytes: number): Target {
  const blob = blobOf(sizeBytes, seed)
  upstream.addBlob(NAME, blob)
  const hex = blob.digest.slice('sha256:'.length)
  const data = join(root, blobFile(blob.digest))
  const link = join(root, `docker/registry/v2/repositories/${NAME}/_layers/sha256/${hex}/link`)
  const part = join(root, partFile(blob.digest, upstream))
  return { blob, data, part, link, directory: dirname(data), linkDirectory: dirname(link) }
}

const get = ({ blob }: Target): Promise<RawResponse> =>
  rawGet(`${cache.url}/v2/${NAME}/blobs/${blob.digest}`)

function expectServed({ blob }: Target, answer: RawResponse): void {
  expect([answer.status, answer.ending]).toEqual([200, 'complete'])
  expect(answer.body.equals(blob.bytes)).toBe(true)
}

function errorsSince(before: number): string[] {
  return cache
    .logLines()
    .slice(before)
    .filter(({ level }) => level === 'error')
    .map(({ msg }) => msg)
}

/** Pulls while the call fails, and until everything is kept when it does not. */
async function pullThrough(target: Target, fault: SyscallFault): Promise<void> {
  const before = cache.logLines().length
  await withSyscallFault(workspace, cache.pid, fault, async () => {
    expectServed(target, await get(target))
    await waitFor('the error to be named', () =>
      errorsSince(before).some((message) => message.includes(fault.error)),
    )
  })
  await waitFor('it to be served from what is stored', async () => {
    const answer = await get(target)
    expectServed(target, answer)
    const isKept = existsSync(target.data) && existsSync(target.link)
    return isKept && answer.header('x-cache') === 'HIT'
  })
}

describe.skipIf(IS_COMPARISON)('a new blob', () => {
  it.each([
    ['openat', 'ENOSPC', 'part'],
    ['openat', 'EMFILE', 'part'],
    ['openat', 'EIO', 'part'],
    ['pwrite64', 'ENOSPC', 'part'],
    ['pwrite64', 'EIO', 'part'],
    ['fdatasync', 'EIO', 'part'],
    ['fdatasync', 'ENOSPC', 'part'],
    ['rename', 'EIO', 'part'],
    ['rename', 'ENOSPC', 'part'],
    ['rename', 'EROFS', 'part'],
    ['mkdir', 'ENOSPC', 'directory'],
    ['mkdir', 'EIO', 'linkDirectory'],
  ] as const)('is served though %s says %s (%s)', async (call, error, file) => {
    const target = push(`${call} ${error} ${file}`, LARGE_BYTES)
    await pullThrough(target, { call, error, path: target[file] })
  })

  it.each([
    ['mkdir', 'ENOSPC', 'directory'],
    ['mkdir', 'EIO', 'linkDirectory'],
  ] as const)('that is small is served though %s says %s (%s)', async (call, error, file) => {
    const target = push(`small ${call} ${error} ${file}`, SMALL_BYTES)
    await pullThrough(target, { call, error, path: target[file] })
  })
})

const store = async (seed: string): Promise<Target> => {
  const target = push(seed, LARGE_BYTES)
  await get(target)
  await waitFor('it to be stored', () => existsSync(target.data) && existsSync(target.link))
  await cache.restart()
  upstream.reset()
  return target
}

describe.skipIf(IS_COMPARISON)('a stored blob', () => {
  it.each([
    ['openat', 'EMFILE'],
    ['openat', 'EIO'],
  ])('is fetched if %s says %s, and found again afterwards', async (call, error) => {
    const target = await store(`stored ${call} ${error}`)
    await pullThrough(target, { call, error, path: target.data })
    expect(upstream.count({ kind: 'blob', method: 'GET' })).toBe(1)
  })

  it('that the disk cannot read (pread64 says EIO) breaks one answer, and is fetched for the next', async () => {
    const target = await store('unreadable')
    const before = cache.logLines().length
    const fault = { call: 'pread64', error: 'EIO', path: target.data }
    await withSyscallFault(workspace, cache.pid, fault, async () => {
      const broken = await get(target)
      expect([broken.status, broken.ending]).toEqual([200, 'fin'])
      await waitFor('the error to be named', () =>
        errorsSince(before).some((message) => /EIO.*it is fetched again/.test(message)),
      )
      expectServed(target, await get(target))
    })
    expect(upstream.count({ kind: 'blob', method: 'GET' })).toBe(1)
    expectServed(target, await get(target))
  })
})

/** The soft limit alone. @param files numbers of descriptors from this one on are refused */
function limitOpenFiles(files: string): void {
  const result = spawnSync('prlimit', ['--pid', `${cache.pid}`, `--nofile=${files}:`])
  expect(result.status, result.stderr.toString()).toBe(0)
}

/** What the next file that is opened gets. */
function nextDescriptor(): number {
  const used = new Set(readdirSync(`/proc/${cache.pid}/fd`).map(Number))
  let next = 0
  while (used.has(next)) next++
  return next
}

/** Gets a blob over the agent's one connection. @returns whether it was right */
async function getOver(agent: Agent, { blob }: Target): Promise<boolean> {
  const sent = request(`${cache.url}/v2/${NAME}/blobs/${blob.digest}`, { agent }).end()
  const [response] = (await once(sent, 'response')) as [IncomingMessage]
  const parts = (await response.toArray()) as Buffer[]
  return Buffer.concat(parts).equals(blob.bytes)
}

describe.skipIf(IS_COMPARISON)('a process that may open no more files', () => {
  it('serves over the connections that it has, and keeps again when the limit is raised', async () => {
    const targets = Array.from({ length: 4 }, (_, at) => push(`descriptors ${at}`, LARGE_BYTES))
    const agent = new Agent({ keepAlive: true, maxSockets: 1 })
    workspace.onClose(() => agent.destroy())
    const limits = readFileSync(`/proc/${cache.pid}/limits`, 'utf8')
    const usual = /^Max open files\s+(\d+)/m.exec(limits)?.[1] ?? ''
    // One connection here, and one to the upstream.
    expect(await getOver(agent, push('before', SMALL_BYTES))).toBe(true)
    const before = cache.logLines().length

    limitOpenFiles(`${nextDescriptor()}`)
    for (const target of targets) expect(await getOver(agent, target)).toBe(true)
    await waitFor('the error to be named', () =>
      errorsSince(before).some((message) => message.includes('EMFILE, too many open files')),
    )
    limitOpenFiles(usual)

    for (const target of targets) {
      await waitFor('it to be stored', async () => {
        expectServed(target, await get(target))
        return existsSync(target.data) && existsSync(target.link)
      })
    }
  })
})
