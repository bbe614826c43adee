// The faults of time, of the connection, and of bodies and their lengths.

import { FAULT_NOTES, NAMED_FAULTS, type FaultName } from '../support/fake-upstream-faults.ts'
import {
  BLOB_BYTES,
  HARMLESS,
  MANIFESTS,
  OUTAGE,
  RESOURCES,
  SMALL,
  type FaultRow,
  type Meaning,
} from './fault-row.ts'

type Rest = Partial<FaultRow> & Pick<FaultRow, 'at' | 'means' | 'shows'>

/** A row that is one named fault, for as long as it lasts. */
export function named(name: FaultName, rest: Rest): FaultRow {
  return { name, about: FAULT_NOTES[name], plans: [{ fault: name }], ...rest }
}

/** The same, for one answer only. */
export function once(fault: FaultName, rest: Rest): FaultRow {
  const plans = [{ fault, times: 1 }]
  return { name: `${fault}-once`, about: `once: ${FAULT_NOTES[fault]}`, plans, ...rest }
}

function cut(arrivesBytes: number): { blob: Meaning } {
  return { blob: { is: 'cut', arrivesBytes } }
}

function wrong(announcedBytes: number, fromByte = 0): { blob: Meaning } {
  return { blob: { is: 'wrong', announcedBytes, fromByte } }
}

const time: FaultRow[] = [
  named('slow', { at: RESOURCES, means: HARMLESS, shows: 'headers' }),
  named('throttled', { at: RESOURCES, means: HARMLESS, shows: 'body' }),
  named('dripping', { at: SMALL, means: HARMLESS, shows: 'body' }),
  {
    name: 'dripping-blob',
    about: 'sends 20 kB at a time',
    at: ['blob'],
    means: HARMLESS,
    shows: 'body',
    plans: [{ fault: { drip: { bytes: 20_000, intervalMs: 1 } } }],
  },
  named('hang', { at: RESOURCES, means: OUTAGE, shows: 'headers' }),
  named('hang-after-headers', { at: RESOURCES, means: OUTAGE, shows: 'body', meansAt: cut(0) }),
  named('hang-in-body', { at: SMALL, means: OUTAGE, shows: 'body' }),
  // An attempt ends after 25 s of this clock, and the eighth is beyond three minutes.
  {
    name: 'hang-in-blob',
    about: 'sends 10 kB, then nothing, each time',
    at: ['blob'],
    means: { is: 'cut', arrivesBytes: 8 * 10_000 },
    shows: 'body',
    plans: [{ fault: { hangAtByte: 10_000 } }],
    counts: 'resume',
  },
  {
    name: 'hang-in-blob-once',
    about: 'sends 200 kB, then nothing; the next time it does',
    at: ['blob'],
    means: HARMLESS,
    shows: 'body',
    plans: [{ fault: { hangAtByte: 200_000 }, times: 1 }],
    counts: 'resume',
  },
]

const connection: FaultRow[] = [
  {
    name: 'down',
    about: 'nobody listens',
    at: RESOURCES,
    means: OUTAGE,
    shows: 'headers',
    plans: [],
    isDown: true,
  },
  named('cut-before-headers', { at: RESOURCES, means: OUTAGE, shows: 'headers' }),
  once('cut-before-headers', { at: RESOURCES, means: HARMLESS, shows: 'headers' }),
  named('reset-before-headers', { at: RESOURCES, means: OUTAGE, shows: 'headers' }),
  once('reset-before-headers', { at: RESOURCES, means: HARMLESS, shows: 'headers' }),
  named('not-http', { at: RESOURCES, means: OUTAGE, shows: 'headers' }),
  named('cut-at-start', { at: RESOURCES, means: OUTAGE, shows: 'body', meansAt: cut(0) }),
  // Of a blob, whether a reset overtakes the bytes before it is chance; that it is resumed is not.
  named('reset-at-start', { at: SMALL, means: OUTAGE, shows: 'body' }),
  // Each attempt brings 100 bytes, and there are 100 attempts at most.
  named('cut-in-first-chunk', {
    at: RESOURCES,
    means: OUTAGE,
    shows: 'body',
    meansAt: cut(100 * 100),
  }),
  named('reset-in-first-chunk', { at: SMALL, means: OUTAGE, shows: 'body' }),
  named('cut-at-last-byte', {
    at: RESOURCES,
    means: OUTAGE,
    shows: 'body',
    meansAt: cut(BLOB_BYTES - 1),
  }),
  named('reset-at-last-byte', { at: SMALL, means: OUTAGE, shows: 'body' }),
  named('cut-at-64k', { at: ['blob'], means: HARMLESS, shows: 'body', counts: 'resume' }),
  ...(['cut-at-start', 'cut-in-first-chunk', 'cut-at-64k', 'cut-at-last-byte'] as const).map(
    (name) => once(name, { at: ['blob'], means: HARMLESS, shows: 'body', counts: 'resume' }),
  ),
  ...(
    ['reset-at-start', 'reset-in-first-chunk', 'reset-at-64k', 'reset-at-last-byte'] as const
  ).map((name) => once(name, { at: ['blob'], means: HARMLESS, shows: 'body' })),
]

const bodies: FaultRow[] = [
  named('empty-body', { at: ['tags', 'referrers', 'token'], means: OUTAGE, shows: 'body' }),
  // No bytes leave nothing to hold back: a claim that there are none is not passed on.
  {
    ...named('empty-body', { at: [...MANIFESTS, 'blob'], means: OUTAGE, shows: 'body' }),
    name: 'empty-content',
    counts: 'mismatch',
  },
  named('short-body', { at: ['tags', 'referrers', 'token'], means: OUTAGE, shows: 'body' }),
  {
    ...named('short-body', { at: [...MANIFESTS, 'blob'], means: OUTAGE, shows: 'body' }),
    name: 'short-content',
    meansAt: wrong(10),
    counts: 'mismatch',
  },
  named('long-body', {
    at: [...MANIFESTS, 'blob'],
    means: OUTAGE,
    shows: 'body',
    meansAt: wrong(BLOB_BYTES + 1, BLOB_BYTES),
    counts: 'mismatch',
  }),
  named('huge-body', {
    at: [...MANIFESTS, 'token', 'referrers', 'blob'],
    means: OUTAGE,
    shows: 'body',
    meansAt: wrong(BLOB_BYTES + 10_000_000, BLOB_BYTES),
  }),
  named('wrong-first-byte', {
    at: [...MANIFESTS, 'blob'],
    means: OUTAGE,
    shows: 'body',
    meansAt: wrong(BLOB_BYTES),
    counts: 'mismatch',
  }),
  {
    name: 'wrong-middle-byte',
    about: 'a byte in the middle is inverted',
    at: ['blob'],
    means: { is: 'wrong', announcedBytes: BLOB_BYTES, fromByte: BLOB_BYTES / 2 },
    shows: 'body',
    plans: [{ fault: { flipByteAt: BLOB_BYTES / 2 } }],
    counts: 'mismatch',
  },
  {
    name: 'wrong-last-byte',
    about: 'the last byte is inverted',
    at: ['blob'],
    means: { is: 'wrong', announcedBytes: BLOB_BYTES, fromByte: BLOB_BYTES - 1 },
    shows: 'body',
    plans: [{ fault: { flipByteAt: BLOB_BYTES - 1 } }],
    counts: 'mismatch',
  },
  // Of a rest, Content-Range tells the length of the whole: what is missing is known.
  named('length-too-long', {
    at: RESOURCES,
    means: OUTAGE,
    shows: 'body',
    meansAt: wrong(2_000_000, BLOB_BYTES),
    meansForRest: HARMLESS,
    breaksLate: true,
  }),
  named('length-too-short', {
    at: RESOURCES,
    means: OUTAGE,
    shows: 'body',
    meansAt: wrong(20),
    meansForRest: { is: 'cut', arrivesBytes: 100 * 20 },
  }),
  named('no-content-length', { at: RESOURCES, means: HARMLESS, shows: 'headers' }),
  named('chunked', { at: RESOURCES, means: HARMLESS, shows: 'headers' }),
  named('gzip', { at: RESOURCES, means: HARMLESS, shows: 'headers' }),
  named('brotli', { at: RESOURCES, means: HARMLESS, shows: 'headers' }),
  named('unknown-encoding', { at: RESOURCES, means: OUTAGE, shows: 'body' }),
  named('garbage', { at: SMALL, means: OUTAGE, shows: 'body' }),
  named('html-200', { at: SMALL, means: OUTAGE, shows: 'headers' }),
  {
    ...named('html-200', { at: ['blob'], means: OUTAGE, shows: 'body' }),
    name: 'html-200-blob',
    meansAt: wrong(Buffer.byteLength(NAMED_FAULTS['html-200'].body)),
    counts: 'mismatch',
  },
  {
    name: 'html-200-without-length',
    about: 'a web page instead of a blob, and no length',
    at: ['blob'],
    means: OUTAGE,
    shows: 'body',
    plans: [{ fault: { ...NAMED_FAULTS['html-200'], framing: 'chunked' } }],
    counts: 'mismatch',
  },
  {
    name: 'wrong-byte-then-down',
    about: 'a byte is inverted, the download breaks at 64 KiB, and then nobody answers',
    at: ['blob'],
    means: { is: 'cut', arrivesBytes: 65_536 },
    shows: 'body',
    plans: [
      { fault: 'cut-before-headers' },
      { fault: { flipByteAt: 1_000, cutAtByte: 65_536 }, times: 1 },
    ],
    states: ['cold', 'warm'],
    breaksLate: true,
    leavesWrong: true,
    counts: 'resume',
  },
  {
    name: 'wrong-byte-and-length-too-long',
    about: 'a byte is inverted, and Content-Length is too large',
    at: ['blob'],
    means: { is: 'wrong', announcedBytes: 2_000_000, fromByte: 1_000 },
    shows: 'body',
    plans: [{ fault: { flipByteAt: 1_000, contentLength: 2_000_000 } }],
    meansForRest: HARMLESS,
    breaksLate: true,
  },
  {
    name: 'length-changes',
    about: 'a download breaks at 64 KiB, and its rest is of another length',
    at: ['blob'],
    means: { is: 'cut', arrivesBytes: 65_536 },
    shows: 'body',
    plans: [{ fault: { contentLength: 2_000_000, cutAtByte: 65_536 }, times: 1 }],
    states: ['cold', 'warm'],
    breaksLate: true,
    counts: 'mismatch',
  },
  // The tag's digest leads nowhere, and with the manifest itself the same is claimed.
  named('digest-header-wrong', {
    at: ['tag'],
    means: OUTAGE,
    shows: 'headers',
    counts: 'mismatch',
  }),
  {
    ...named('digest-header-wrong', { at: ['digest', 'blob'], means: HARMLESS, shows: 'headers' }),
    name: 'digest-header-ignored',
  },
  {
    ...named('digest-header-wrong', { at: ['tag'], means: HARMLESS, shows: 'headers' }),
    name: 'digest-header-wrong-in-head',
    about: 'HEAD names the digest of something else',
    plans: [{ fault: 'digest-header-wrong', method: 'HEAD' }],
  },
  named('digest-header-missing', { at: [...MANIFESTS, 'blob'], means: HARMLESS, shows: 'headers' }),
]

export const ROWS_OF_THE_WIRE: readonly FaultRow[] = [...time, ...connection, ...bodies]
