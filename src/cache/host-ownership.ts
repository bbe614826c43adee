// Whose the repositories are that stand below a host's name. `gcr.io/p/q` on disk is `p/q` of the upstream gcr.io if
// there is one; else it is a repository of the main upstream, which may well be called so (a cache of several registries
// has such names). The layout is registry's, which does not tell the two apart. So the volume remembers which hosts had
// upstreams of their own, and what the one has stored goes before the other serves under the same name. The bytes stay.
// Docker Hub as the main one has no such names; what was stored under another main one, or nobody knows by whom, goes too.

import { randomUUID } from 'node:crypto'
import path from 'node:path'
import type { Logger } from 'pino'
import { parseRegistryHost, pathNameOf, type RegistryHost } from '../oci/registry-host.ts'
import type { FileWriter } from '../storage/file-writer.ts'
import {
  listDirectory,
  moveInto,
  readSmallFile,
  removeTree,
  StorageError,
} from '../storage/filesystem.ts'
import type { ContentIndex } from '../storage/index/content-index.ts'
import type { IndexChange } from '../storage/index/index-changes.ts'
import type { StoragePaths } from '../storage/paths.ts'
import { isOwnHost, storedHost, type HostNames } from './host-names.ts'
import type { Upstreams } from './upstreams.ts'

/** Written together. */
const BATCH_CHANGES = 500

export interface HostOwnershipDeps {
  readonly logger: Logger
  readonly paths: StoragePaths
  readonly writer: Pick<FileWriter, 'write'>
  readonly index: ContentIndex
  readonly upstreams: Pick<Upstreams, 'hostNames' | 'main'>
}

/**
 * Takes away what another upstream has stored under a name that is served now. To be called before anything is.
 *
 * @throws {StorageError} it is still there, and would be served as another upstream's
 */
export async function settleHosts(deps: HostOwnershipDeps): Promise<void> {
  const { logger, paths, upstreams, writer } = deps
  const now = upstreams.hostNames
  const before = await readHostNames(paths)
  const { isDockerHub } = upstreams.main
  const isChanged = (host: RegistryHost): boolean => {
    if (isOwnHost(before, host) === isOwnHost(now, host)) return false
    return isOwnHost(now, host) || !(isDockerHub && isNoneOfDockerHub(host))
  }
  const changed = await storedHosts(paths, isChanged)
  if (!changed) return
  if (changed.length > 0) await takeAway(deps, changed, now)
  const text = textOf(isDockerHub ? besideDockerHub(before, now) : now)
  if (text === textOf(before)) return
  await writer.write(paths.hostNames, text).catch((error: unknown) => {
    // The next start finds the same change again, and at worst takes away what has come in between.
    logger.error({ err: error }, 'could not write down which hosts have upstreams of their own')
  })
}

/** Docker Hub is not asked for names with a dot: nothing there is its, and nobody serves it. */
function isNoneOfDockerHub(hostOrPattern: string): boolean {
  return hostOrPattern.startsWith('*') || hostOrPattern.includes('.')
}

function isMains(names: HostNames, text: string): boolean {
  const host = parseRegistryHost(text)
  return host !== undefined && !isOwnHost(names, host)
}

/** Whose everything is once settled: what nobody serves is still whose it was, and may be served as that again. */
function besideDockerHub(before: HostNames, now: HostNames): HostNames {
  const others = new Set([...now.others, ...before.others.filter(isNoneOfDockerHub)])
  const main = new Set([
    ...now.main.filter((host) => isMains(before, host)),
    ...before.main.filter((host) => isMains(now, host)),
  ])
  return { main: [...main].sort(), others: [...others].sort() }
}

/** @returns undefined when nobody can tell now: then the next start has to */
async function storedHosts(
  paths: StoragePaths,
  isMeant: (host: RegistryHost) => boolean,
): Promise<RegistryHost[] | undefined> {
  const entries = await listDirectory(paths.repositories).catch((error: unknown) => {
    // What is closed to us is not served either: a volume of another user's is no reason not to start.
    if (error instanceof StorageError && error.code === 'EACCES') return undefined
    throw error
  })
  return entries?.flatMap(({ name }) => {
    const host = storedHost(name)
    return host && isMeant(host) ? [host] : []
  })
}

async function takeAway(
  { index, logger, paths, upstreams }: HostOwnershipDeps,
  hosts: readonly RegistryHost[],
  now: HostNames,
): Promise<void> {
  // The index first: after a crash what is still on disk is found, and taken away then.
  const names = new Set(hosts.map(pathNameOf))
  await forgetLinks(index, names).catch((error: unknown) => {
    logger.error({ err: error }, 'could not write down that links are taken away')
  })
  const { isDockerHub, name: main } = upstreams.main
  for (const host of hosts) {
    const discarded = path.join(paths.temporary, randomUUID())
    const directory = path.join(paths.repositories, pathNameOf(host))
    await moveInto(directory, discarded).catch((error: unknown) => {
      const cause = error instanceof StorageError ? error.cause : error
      throw new StorageError('take away what another upstream has stored in', directory, cause)
    })
    const before = isDockerHub && isNoneOfDockerHub(host) ? 'another main upstream' : main
    const [former, next] = isOwnHost(now, host) ? [before, host] : [host, main]
    logger.warn(
      { host },
      `what ${former} has stored under ${host}/ is taken away, for that is the name of what ${next} has now; ` +
        'it is fetched again when asked for',
    )
    // It may be large, and is swept at the next start if this does not get to its end.
    removeTree(discarded).catch((error: unknown) => {
      logger.warn({ err: error }, 'could not remove what was taken away')
    })
  }
}

/** @throws {StorageError} */
async function forgetLinks(index: ContentIndex, names: ReadonlySet<string>): Promise<void> {
  let changes: IndexChange[] = []
  for await (const { digest, repository } of index.links()) {
    const [first = ''] = repository.split('/', 1)
    if (!names.has(first)) continue
    changes.push({ change: 'unlink', digest, repository })
    if (changes.length < BATCH_CHANGES) continue
    await index.write(changes)
    changes = []
  }
  await index.write(changes)
}

/** Nothing is known of a volume that is taken over, or lost what it knew: then all of it counts as the main upstream's. */
async function readHostNames(paths: StoragePaths): Promise<HostNames> {
  const bytes = await readSmallFile(paths.hostNames).catch(() => undefined)
  try {
    const json: unknown = bytes && JSON.parse(bytes.toString('utf8'))
    const { main, others } = (json ?? {}) as Partial<Record<keyof HostNames, unknown>>
    return { main: textsIn(main), others: textsIn(others) }
  } catch {
    return { main: [], others: [] }
  }
}

function textsIn(value: unknown): string[] {
  return Array.isArray(value) ? value.filter((item) => typeof item === 'string') : []
}

function textOf({ main, others }: HostNames): string {
  // Without others, all is the main upstream's: as if there were no file.
  const names = others.length > 0 ? { main, others } : { main: [], others: [] }
  return JSON.stringify(names)
}
