// Which part of a blob, if any, a request asks for. One range is answered with 206; several would need a
// multipart body, which no client of a registry needs: they get the whole blob, as RFC 9110 allows.

export interface ByteRange {
  /** First and last byte, both inclusive. */
  readonly first: number
  readonly last: number
}

export type RangeAnswer = ByteRange | 'whole' | 'unsatisfiable'

const SINGLE_RANGE = /^bytes=\s*(\d*)-(\d*)\s*$/i

/**
 * @param header the value of `Range`; what is not understood is ignored
 * @param ifRange the value of `If-Range`; anything but `etag` makes the range void
 * @see https://www.rfc-editor.org/rfc/rfc9110#section-14.2
 */
export function selectRange(
  header: string | undefined,
  ifRange: string | undefined,
  { etag, sizeBytes }: { etag: string; sizeBytes: number },
): RangeAnswer {
  if (header === undefined || (ifRange !== undefined && ifRange.trim() !== etag)) return 'whole'
  const match = SINGLE_RANGE.exec(header)
  if (!match) return 'whole'
  const [, firstText = '', lastText = ''] = match
  if (firstText === '') {
    if (lastText === '') return 'whole'
    const count = Math.min(Number(lastText), sizeBytes)
    return count > 0 ? { first: sizeBytes - count, last: sizeBytes - 1 } : 'unsatisfiable'
  }
  const first = Number(firstText)
  const last = lastText === '' ? Number.POSITIVE_INFINITY : Number(lastText)
  if (last < first) return 'whole'
  return first < sizeBytes ? { first, last: Math.min(last, sizeBytes - 1) } : 'unsatisfiable'
}

/**
 * Whether `If-None-Match` names this content. Clients and registries write digests quoted, unquoted or weak.
 *
 * @see https://www.rfc-editor.org/rfc/rfc9110#section-13.1.2
 */
export function matchesNone(header: string | undefined, etagValue: string): boolean {
  if (header === undefined) return true
  return !header
    .split(',')
    .map((tag) => tag.trim())
    .some((tag) => tag === '*' || tag.replace(/^W\//, '').replaceAll('"', '') === etagValue)
}
