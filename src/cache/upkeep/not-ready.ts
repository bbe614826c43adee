// An operator's request that cannot be done now, though it could later; the message says when.

export class NotReadyError extends Error {
  override readonly name = 'NotReadyError'
}

/** Of what needs to know everything on disk. */
export function volumeUnknown(): NotReadyError {
  return new NotReadyError(
    'the volume is still being looked through; try again when the log says what was found in it',
  )
}
