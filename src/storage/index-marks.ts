// What a run leaves in the index's directory for the next one: empty files, whose names alone tell something.
//   opening     it has not been read through yet: damage found then may have ended the process
//   running.N   the N-th run in a row that was not ended in order: damage may show at a write only, each time
//   damaged     lmdb said so
//   complete    nothing that is on disk was missing when it was closed

import { stat, writeFile } from 'node:fs/promises'
import path from 'node:path'
import type { FileWriter } from './file-writer.ts'
import { StorageError, isAbsent, listDirectory, removeFile } from './filesystem.ts'
import { indexFile } from './index-database.ts'
import type { StoragePaths } from './paths.ts'

/** That ended badly in a row: the next one does not try again. */
const RUNS_MAX = 3
/** A run that has used the index for so long was not ended by it. */
const SOUND_AFTER_MS = 3_600_000

const RUNNING = /^running\.(\d+)$/

export interface IndexMarksDeps {
  readonly paths: StoragePaths
  readonly writer: FileWriter
}

export class IndexMarks {
  readonly #deps: IndexMarksDeps
  /** Runs before this one. */
  #runs = 0

  constructor(deps: IndexMarksDeps) {
    this.#deps = deps
  }

  /** @returns why the index must not be opened; undefined: it may be. @throws {StorageError} */
  async doubt(): Promise<string | undefined> {
    const names = await this.#names()
    if (names.includes('opening')) return 'the last attempt to read it ended the process'
    if (names.includes('damaged')) return 'it was found to be damaged'
    const runs = await this.#runsBefore(names)
    if (runs >= RUNS_MAX) return `the last ${runs} runs with it were not ended in order`
    this.#runs = runs
    return undefined
  }

  /** Now it will be opened; there are no other marks. @throws {StorageError} the disk has no room for them */
  async begin(): Promise<void> {
    for (const name of ['opening', `running.${this.#runs + 1}`]) {
      await this.#deps.writer.write(this.#file(name), '')
    }
  }

  /** It was read through, and has not ended the process. */
  async noteRead(): Promise<void> {
    await removeFile(this.#file('opening'))
  }

  /** Never rejects: on a disk that takes nothing the next run finds it out, too. */
  async noteDamaged(): Promise<void> {
    await writeFile(this.#file('damaged'), '').catch(() => undefined)
  }

  /** Closed in order: a start that is stopped early has not failed. */
  async noteClosed(): Promise<void> {
    for (const name of await this.#names()) {
      if (name === 'opening' || RUNNING.test(name)) await removeFile(this.#file(name))
    }
  }

  /** @throws {StorageError} */
  async noteComplete(): Promise<void> {
    const file = this.#file('complete')
    await writeFile(file, '').catch((error: unknown) => {
      throw new StorageError('write', file, error)
    })
  }

  /**
   * Takes that mark away: from now on a crash may keep something from the index. That needs no room on the disk.
   *
   * @returns whether it was there
   * @throws {StorageError} it still is
   */
  takeComplete(): Promise<boolean> {
    return removeFile(this.#file('complete'))
  }

  async #runsBefore(names: readonly string[]): Promise<number> {
    const runs = Math.max(0, ...names.map((name) => Number(RUNNING.exec(name)?.[1] ?? 0)))
    if (runs === 0) return 0
    const beganMs = await changedAtMs(this.#file(`running.${runs}`))
    const lastUsedMs = await changedAtMs(indexFile(this.#deps.paths))
    return lastUsedMs - beganMs >= SOUND_AFTER_MS ? 0 : runs
  }

  async #names(): Promise<string[]> {
    return (await listDirectory(this.#deps.paths.index)).map(({ name }) => name)
  }

  #file(name: string): string {
    return path.join(this.#deps.paths.index, name)
  }
}

async function changedAtMs(file: string): Promise<number> {
  try {
    return (await stat(file)).mtimeMs
  } catch (error) {
    if (isAbsent(error)) return 0
    throw new StorageError('look at', file, error)
  }
}
