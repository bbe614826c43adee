// What a spool needs, and what it is for.

import type { Clock } from '../../clock.ts'
import type { Digest } from '../../oci/digest.ts'
import type { Digester } from '../digester.ts'
import type { StorageError } from '../filesystem.ts'
import type { LagAllowance } from './lag-allowance.ts'

export interface SpoolDeps {
  readonly clock: Clock
  readonly digester: Digester
  /** Shared with all others. */
  readonly lag: LagAllowance
  /** Called once, when the disk takes no more bytes; the download goes on without it. */
  readonly onStorageFailure: (error: StorageError) => void
}

export interface SpoolOptions {
  readonly digest: Digest
  /** Undefined: not announced; the end of the download decides. */
  readonly sizeBytes: number | undefined
  /** Undefined: nothing is to be kept; the bytes pass through memory at the pace of the slowest reader. */
  readonly file: string | undefined
  /** Bytes that an earlier attempt left in the file; they are verified with the rest. */
  readonly resumedBytes: number
}
