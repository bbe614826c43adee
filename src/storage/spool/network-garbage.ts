// What the network hands over is garbage as soon as it is copied into a spool. V8 lets 32 MiB of it gather, and takes
// that for a reason to mark the whole heap, again and again: a cold GiB took half as long again, and 30 MB more memory.
// Here V8 is told when, which costs a fraction of a millisecond (where it is marking just then, Node 24 ends that as
// well: measured, it gains as much). It needs `--expose-gc`, as in `npm start`.

const COLLECT_AFTER_BYTES = 4 * 1024 * 1024

/** @param collect undefined: V8 decides, as it does without the flag */
export function garbageCount(
  collect: ((options: { type: 'minor' }) => unknown) | undefined,
): (bytes: number) => void {
  let gatheredBytes = 0
  return (bytes) => {
    gatheredBytes += bytes
    if (gatheredBytes < COLLECT_AFTER_BYTES) return
    gatheredBytes = 0
    collect?.({ type: 'minor' })
  }
}

/** Of all downloads together: they share one heap. */
export const noteGarbage = garbageCount(globalThis.gc)
