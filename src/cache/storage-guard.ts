// A cache may fail to cache; it may not fail to serve. What a disk refuses on the way to keeping something is
// logged and counted here, and goes no further.

import type { Logger } from 'pino'
import { StorageError } from '../storage/filesystem.ts'
import type { Metrics } from '../telemetry/metrics.ts'

export class StorageGuard {
  readonly #logger: Logger
  readonly #metrics: Metrics

  constructor(deps: { logger: Logger; metrics: Metrics }) {
    this.#logger = deps.logger
    this.#metrics = deps.metrics
  }

  /**
   * Does what is good to have done, but not needed to answer.
   *
   * @returns the result; undefined when the disk refused
   * @throws whatever is not a StorageError
   */
  async attempt<Value>(action: () => Promise<Value>): Promise<Value | undefined> {
    try {
      return await action()
    } catch (error) {
      if (!(error instanceof StorageError)) throw error
      this.report(error)
      return undefined
    }
  }

  report(error: StorageError): void {
    this.#metrics.storageErrors.inc()
    const { code, path } = error
    this.#logger.error({ code, path }, `${error.message}; clients are served, but this is not kept`)
  }
}
