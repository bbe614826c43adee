// Whether the volume is still the one that this process knows: somebody may remove what is on it, or mount another one
// in its place, while it runs. What memory knows of the disk is not true any more then.
//
// A directory is told from another one by its number, and numbers are given away again. So each is held open; that also
// keeps its number where file systems make them up (FUSE). A socket is held by whoever listens.

import { constants } from 'node:fs'
import { open, stat, type FileHandle } from 'node:fs/promises'
import path from 'node:path'
import { StorageError, isAbsent } from './filesystem.ts'
import type { StoragePaths } from './paths.ts'

interface Held {
  readonly identity: string
  readonly handle: FileHandle
}

export interface VolumeState {
  /** Whether anything has been removed or replaced since the last look. */
  readonly hasChanged: boolean
  /** Of ours, the first that is not what it was at the start: gone, or another one. */
  readonly foreign: string | undefined
}

export class VolumeWatch {
  readonly #paths: StoragePaths
  /** At the start, by path. */
  readonly #own = new Map<string, string>()
  /** What `#own` was at the last look; undefined: there was none. */
  #ownSeen: string | undefined
  #ownHeld: Held | undefined
  /** What memory knows of, as it was at the last look. */
  readonly #content = new Map<string, Held>()
  /** A look that fails in the middle may have seen it: the next one tells. */
  #hasChanged = false
  #isBegun = false
  #isClosed = false

  /** @param deps.paths where this process listens at the admin socket already, if it can */
  constructor(deps: { paths: StoragePaths }) {
    this.#paths = deps.paths
  }

  /**
   * Takes what there is at the first look that succeeds for what there should be. To be called one after the other.
   *
   * @throws {StorageError} it cannot be looked at
   */
  async look(): Promise<VolumeState> {
    if (!this.#isBegun) await this.#begin()
    let foreign: string | undefined
    const identities: (string | undefined)[] = []
    for (const [file, expected] of this.#own) {
      const identity = await identityOf(file)
      if (identity !== expected) foreign ??= file
      identities.push(identity)
    }
    const seen = identities.join()
    if (this.#ownSeen !== undefined && this.#ownSeen !== seen) this.#hasChanged = true
    this.#ownSeen = seen
    for (const directory of [this.#paths.blobs, this.#paths.repositories]) {
      await this.#lookAtContent(directory)
    }
    // What goes then is what we take away ourselves.
    if (this.#isClosed) return { hasChanged: false, foreign: undefined }
    const hasChanged = this.#hasChanged
    this.#hasChanged = false
    return { hasChanged, foreign }
  }

  /** A look that is under way finds nothing. */
  async close(): Promise<void> {
    this.#isClosed = true
    const held = [this.#ownHeld, ...this.#content.values()]
    this.#content.clear()
    this.#ownHeld = undefined
    for (const each of held) await each?.handle.close()
  }

  async #begin(): Promise<void> {
    const { adminSocket } = this.#paths
    const directory = path.dirname(adminSocket)
    this.#ownHeld ??= await hold(directory)
    if (this.#ownHeld) this.#own.set(directory, this.#ownHeld.identity)
    const socket = await identityOf(adminSocket)
    if (socket !== undefined) this.#own.set(adminSocket, socket)
    this.#isBegun = true
  }

  /** One that was not there before is no change: nobody knew of anything in it. */
  async #lookAtContent(directory: string): Promise<void> {
    const known = this.#content.get(directory)
    if (known) {
      if ((await identityOf(directory)) === known.identity) return
      this.#hasChanged = true
      this.#content.delete(directory)
      await known.handle.close()
    }
    const held = await hold(directory)
    // A look may be under way when it is closed.
    if (this.#isClosed) await held?.handle.close()
    else if (held) this.#content.set(directory, held)
  }
}

/** @returns undefined when it is not there */
async function hold(directory: string): Promise<Held | undefined> {
  let handle: FileHandle | undefined
  try {
    handle = await open(directory, constants.O_RDONLY | constants.O_DIRECTORY)
    const { dev, ino } = await handle.stat({ bigint: true })
    return { handle, identity: `${dev}:${ino}` }
  } catch (error) {
    await handle?.close()
    if (isAbsent(error)) return undefined
    throw new StorageError('look at', directory, error)
  }
}

/** @returns undefined when it is not there */
async function identityOf(file: string): Promise<string | undefined> {
  try {
    const { dev, ino } = await stat(file, { bigint: true })
    return `${dev}:${ino}`
  } catch (error) {
    if (isAbsent(error)) return undefined
    throw new StorageError('look at', file, error)
  }
}
