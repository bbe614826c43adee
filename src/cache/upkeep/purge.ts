// Removes what an operator has chosen, while clients are served: nothing that is being read goes, and what somebody
// asks for afterwards is fetched again. One purge at a time, and never before all of the volume is known: what the
// index lacks could not be shared, counted or protected.

import type { Logger } from 'pino'
import type { Clock } from '../../clock.ts'
import type { Metrics } from '../../telemetry/metrics.ts'
import { NotReadyError, volumeUnknown } from './not-ready.ts'
import { PurgeRun, type PurgeItem, type PurgeRunDeps, type PurgeSummary } from './purge-run.ts'
import { selectionOf, type PurgeRequest } from './purge-selection.ts'
import type { StoredNames } from './stored-names.ts'

export interface PurgeDeps extends PurgeRunDeps {
  readonly clock: Clock
  readonly logger: Logger
  readonly metrics: Metrics
  readonly names: StoredNames
}

/** Each thing that was chosen, and at the end the sums; none if it was stopped. */
export type Purging = AsyncGenerator<PurgeItem, PurgeSummary | undefined>

export class Purge {
  readonly #deps: PurgeDeps
  #running: Purging | undefined
  #isStopped = false

  constructor(deps: PurgeDeps) {
    this.#deps = deps
  }

  /**
   * Checks a request, and begins. The items have to be read, or returned from: only that lets the next purge begin.
   * Whoever stops reading stops the purge; what was removed until then is gone.
   *
   * @param options.isDryRun tells what would go, and removes nothing
   * @throws {PurgeRequestError}
   * @throws {NotReadyError} while the volume is looked through, or another purge runs
   */
  start(request: PurgeRequest, { isDryRun }: { isDryRun: boolean }): Purging {
    const { clock, inventory, names } = this.#deps
    const selection = selectionOf(request, { names, nowMs: clock.now() })
    if (!inventory.isComplete) throw volumeUnknown()
    if (this.#isStopped) throw new NotReadyError('the server is stopping')
    if (this.#running) throw new NotReadyError('another purge runs; try again after it')
    const run = new PurgeRun(this.#deps, selection, { isDryRun })
    const purging = this.#run(run, request)
    const end = purging.return.bind(purging)
    // A generator that has not come to its first item yet would not hear of it.
    purging.return = (value) => {
      run.stop()
      return end(value)
    }
    this.#running = purging
    return purging
  }

  /** Ends the one that runs, after the thing that it is at. */
  async stop(): Promise<void> {
    this.#isStopped = true
    await this.#running?.return(undefined)
  }

  async *#run(run: PurgeRun, request: PurgeRequest): Purging {
    try {
      yield* run.items()
      return run.isStopped ? undefined : run.summary
    } finally {
      this.#running = undefined
      await this.#settle(run.summary, request)
    }
  }

  async #settle(summary: PurgeSummary, request: PurgeRequest): Promise<void> {
    const { inventory, logger, metrics } = this.#deps
    if (summary.isDryRun) return
    const { freedBytes, removed } = summary
    metrics.purgedBlobs.inc(removed)
    metrics.purgedBytes.inc(freedBytes)
    logger.info({ request, ...summary }, `purged ${removed} blobs (${freedBytes} bytes)`)
    try {
      await inventory.flush()
    } catch (error) {
      // The janitor tries again.
      logger.warn({ err: error }, 'could not write down what was purged yet')
    }
  }
}
