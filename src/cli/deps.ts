// What the commands need of the process, and what they answer with.

import type { Clock } from '../clock.ts'
import type { Destination } from '../telemetry/log-destination.ts'

export interface CliDeps {
  readonly clock: Clock
  readonly environment: Readonly<Record<string, string | undefined>>
  readonly version: string
  readonly storageWorkerUrl: URL
  /** Used when neither the call nor the environment names a file. */
  readonly defaultConfigurationPath: string
  /** For what the user asked to see. */
  readonly print: (text: string) => void
  /** For messages about the call. */
  readonly complain: (text: string) => void
  readonly logDestination: Destination
  readonly accessDestination: Destination
  /** Resolves when the process is asked to stop. */
  readonly stopRequested: Promise<string>
  /** Takes what is to be told of an error that nobody caught. */
  readonly onBug: (report: (error: unknown) => void) => void
}

export const EXIT_OK = 0
export const EXIT_FAILURE = 1
export const EXIT_USAGE = 2
/** Of what was to be purged, something is in use and stays. */
export const EXIT_IN_USE = 3

/** At the end of each command's help. */
export const EXIT_CODES =
  'Exit codes: 0 done; 1 failed, or no server runs there; 2 a mistake in the call or the configuration; ' +
  '3 some of what was to be purged is in use, and stays.'
