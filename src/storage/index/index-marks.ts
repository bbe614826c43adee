// What a run leaves in the index's directory for the next one: empty files, whose names alone tell something.
//   opening     it has not been read through yet: damage found then may have ended the process
//   running     a run has it, and is not writing to it
//   writing.N   it is, and N - 1 runs before it ended so at their first writes: damage may show then only, each time
//   damaged     lmdb said so
//   complete    nothing that is on disk was missing when it was closed

import { rename, writeFile } from 'node:fs/promises'
import path from 'node:path'
import type { FileWriter } from '../file-writer.ts'
import { StorageError, listDirectory, removeFile } from '../filesystem.ts'
import type { StoragePaths } from '../paths.ts'

/** That ended in one of their first writes, one after the other: the next one does not try again. */
const RUNS_MAX = 3
/** Writes that succeed: what ends the process then is something else. */
const SOUND_AFTER_WRITES = 5

const OPENING = 'opening'
const RUNNING = 'running'
const DAMAGED = 'damaged'
const COMPLETE = 'complete'
const WRITING = /^writing\.(\d+)$/

export interface IndexMarksDeps {
  readonly paths: StoragePaths
  readonly writer: FileWriter
}

export class IndexMarks {
  readonly #deps: IndexMarksDeps
  /** That ended in a write, before this one. */
  #runs = 0
  /** That have succeeded in this one. */
  #writes = 0
  #writers = 0
  #busy = 'writing.1'
  #moved = Promise.resolve()

  constructor(deps: IndexMarksDeps) {
    this.#deps = deps
  }

  /** @returns why the index must not be opened; undefined: it may be. @throws {StorageError} */
  async doubt(): Promise<string | undefined> {
    const names = await this.#names()
    if (names.includes(OPENING)) return 'the last attempt to read it ended the process'
    if (names.includes(DAMAGED)) return 'it was found to be damaged'
    const runs = Math.max(0, ...names.map((name) => Number(WRITING.exec(name)?.[1] ?? 0)))
    if (runs >= RUNS_MAX) return `the last ${runs} runs ended in one of their first writes to it`
    this.#runs = runs
    return undefined
  }

  /** Now it will be opened; there are no other marks. @throws {StorageError} the disk has no room for them */
  async begin(): Promise<void> {
    for (const name of [OPENING, RUNNING]) {
      await this.#deps.writer.write(this.#file(name), '')
    }
  }

  /** It was read through, and has not ended the process. */
  async noteRead(): Promise<void> {
    await removeFile(this.#file(OPENING))
  }

  /** Says, while it lasts, that the index is being written to. Without room for marks it goes, too. */
  async during(write: () => Promise<void>): Promise<void> {
    if (this.#writers++ === 0) this.#move(RUNNING, (this.#busy = `writing.${this.#runs + 1}`))
    await this.#moved
    try {
      await write()
      if (++this.#writes >= SOUND_AFTER_WRITES) this.#runs = 0
    } finally {
      if (--this.#writers === 0) this.#move(this.#busy, RUNNING)
      await this.#moved
    }
  }

  /** Never rejects: on a disk that takes nothing the next run finds it out, too. */
  async noteDamaged(): Promise<void> {
    await writeFile(this.#file(DAMAGED), '').catch(() => undefined)
  }

  /** Closed in order: a start that is stopped early has not failed. */
  async noteClosed(): Promise<void> {
    await this.#moved
    for (const name of [OPENING, RUNNING, this.#busy]) await removeFile(this.#file(name))
  }

  /** @throws {StorageError} */
  async noteComplete(): Promise<void> {
    const file = this.#file(COMPLETE)
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
    return removeFile(this.#file(COMPLETE))
  }

  /** Renaming needs no room. */
  #move(from: string, to: string): void {
    const move = (): Promise<void> => rename(this.#file(from), this.#file(to))
    this.#moved = this.#moved.then(move).catch(() => undefined)
  }

  async #names(): Promise<string[]> {
    return (await listDirectory(this.#deps.paths.index)).map(({ name }) => name)
  }

  #file(name: string): string {
    return path.join(this.#deps.paths.index, name)
  }
}
