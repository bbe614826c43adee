// The digest of what a spool receives: hashed behind the writer in the storage thread, from the file; here, where
// there is no file that the thread could read.

import type { Hash } from 'node:crypto'
import { algorithmOf, hasherFor, type Digest } from '../../oci/digest.ts'
import type { Digester, DigestRun } from '../digester.ts'

export class SpoolHash {
  readonly #digest: Digest
  readonly #run: DigestRun | undefined
  readonly #inline: Hash | undefined
  #isAborted = false

  /** @param file undefined: everything comes through `append` */
  constructor(deps: { digester: Digester }, options: { digest: Digest; file: string | undefined }) {
    const { digest, file } = options
    this.#digest = digest
    if (file === undefined) this.#inline = hasherFor(digest)
    else this.#run = deps.digester.open(file, algorithmOf(digest))
  }

  /** The file has so many bytes by now. */
  advance(fileBytes: number): void {
    this.#run?.advance(fileBytes)
  }

  /** Bytes that the file does not have. @returns a promise when more should wait until they are hashed */
  append(bytes: Buffer): Promise<void> | undefined {
    this.#inline?.update(bytes)
    return this.#run?.append(bytes)
  }

  abort(): void {
    this.#isAborted = true
    this.#run?.abort()
  }

  /**
   * @param readAgain all bytes from the first on, should the thread fail
   * @returns lower-case hex
   */
  async finish(readAgain: () => AsyncIterable<Buffer>): Promise<string> {
    if (!this.#run) return this.#inline?.digest('hex') ?? ''
    try {
      return await this.#run.finish()
    } catch (error) {
      if (this.#isAborted) throw error
      // The thread could not read the file, or died; that is no fault of the bytes.
      const hasher = hasherFor(this.#digest)
      for await (const bytes of readAgain()) hasher.update(bytes)
      return hasher.digest('hex')
    }
  }
}
