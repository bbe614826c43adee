// A process of which ever more is mapped: an index that is opened with it is opened again whenever it can be.

import { openTables, type IndexDatabase } from '../../src/storage/index/index-database.ts'
import type { IndexHandleOptions } from '../../src/storage/index/index-handle.ts'

const GIB = 1024 ** 3

export interface MappedMemory extends Required<IndexHandleOptions> {
  /** How often it was opened again. */
  reopenings: number
  /** Called to open it again. */
  onReopen: (open: () => IndexDatabase) => IndexDatabase
}

export function everMoreMapped(): MappedMemory {
  let bytes = 0
  const memory: MappedMemory = {
    mappedBytes: () => (bytes += GIB),
    reopenings: 0,
    onReopen: (open) => open(),
    reopen: (file) => {
      memory.reopenings++
      return memory.onReopen(() => openTables(file))
    },
  }
  return memory
}
