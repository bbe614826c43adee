// The faults of statuses, tokens, redirects and ranges, and content that is odd by itself.

import { FAULT_NOTES, type FaultName } from '../support/fake-upstream-faults.ts'
import {
  ABSENT,
  CONTENT,
  HARMLESS,
  MANIFESTS,
  OUTAGE,
  RESOURCES,
  type FaultRow,
  type Meaning,
} from './fault-row.ts'
import { named, once } from './rows-of-the-wire.ts'

/** However long an upstream wants to be left alone, clients are told an hour at most. */
const RETRY_AFTER_MAX_S = 3_600
/** Refused credentials rest, since accounts are locked after a few attempts. */
const LOGIN_PAUSE_S = 60

function limited(retryAfterS: number): Meaning {
  return { is: 'outage', retryAfterS }
}

const statuses: FaultRow[] = [
  named('denied', { at: RESOURCES, means: ABSENT, shows: 'headers' }),
  // A token server that is not there says nothing about what was to be pulled.
  named('not-found', {
    at: RESOURCES,
    means: ABSENT,
    shows: 'headers',
    meansAt: { token: OUTAGE },
  }),
  named('html-404', { at: RESOURCES, means: ABSENT, shows: 'headers', meansAt: { token: OUTAGE } }),
  named('rate-limited', { at: RESOURCES, means: OUTAGE, shows: 'headers' }),
  named('rate-limited-60s', { at: RESOURCES, means: limited(60), shows: 'headers' }),
  named('rate-limited-until-date', {
    at: RESOURCES,
    means: limited(RETRY_AFTER_MAX_S),
    shows: 'headers',
  }),
  named('rate-limited-absurdly', {
    at: RESOURCES,
    means: limited(RETRY_AFTER_MAX_S),
    shows: 'headers',
  }),
  named('rate-limited-as-text', { at: RESOURCES, means: OUTAGE, shows: 'headers' }),
  named('internal-error', { at: RESOURCES, means: OUTAGE, shows: 'headers' }),
  once('internal-error', { at: RESOURCES, means: HARMLESS, shows: 'headers' }),
  named('bad-gateway', { at: RESOURCES, means: OUTAGE, shows: 'headers' }),
  named('unavailable', { at: RESOURCES, means: OUTAGE, shows: 'headers' }),
  once('unavailable', { at: RESOURCES, means: HARMLESS, shows: 'headers' }),
  named('unavailable-120s', { at: RESOURCES, means: limited(120), shows: 'headers' }),
  named('gateway-timeout', { at: RESOURCES, means: OUTAGE, shows: 'headers' }),
]

const tokens: FaultRow[] = [
  named('unauthorized', { at: CONTENT, means: ABSENT, shows: 'headers' }),
  {
    name: 'token-revoked',
    about: '401 once, though the token was good a moment ago',
    at: CONTENT,
    means: HARMLESS,
    shows: 'headers',
    plans: [{ fault: 'unauthorized', times: 1 }],
    holdsToken: true,
  },
  {
    name: 'token-refused',
    about: 'the token server gives nobody a token (401)',
    at: ['token'],
    means: ABSENT,
    shows: 'headers',
    plans: [{ fault: 'unauthorized' }],
  },
  {
    name: 'login-refused',
    about: 'the token server refuses the password (401)',
    at: ['token'],
    means: limited(LOGIN_PAUSE_S),
    shows: 'headers',
    plans: [{ fault: 'unauthorized', strikesAll: true }],
    station: 'login',
    lastsOnMs: LOGIN_PAUSE_S * 1000,
  },
  {
    name: 'login-denied',
    about: 'the token server knows the password, and says no (403)',
    at: ['token'],
    means: ABSENT,
    shows: 'headers',
    plans: [{ fault: 'denied' }],
    station: 'login',
  },
  named('no-expiry', { at: ['token'], means: HARMLESS, shows: 'body' }),
  named('no-token', { at: ['token'], means: OUTAGE, shows: 'body' }),
  {
    name: 'token-redirect',
    about: 'the token server sends us on, where credentials must not go',
    at: ['token'],
    means: OUTAGE,
    shows: 'headers',
    plans: [{ fault: 'redirect-cross-host' }],
  },
]

const FOLLOWED = ['redirect-relative', 'redirect-cross-host', 'redirect-thrice'] as const
const NOT_FOLLOWED = [
  'redirect-11-hops',
  'redirect-loop',
  'redirect-without-location',
  'redirect-to-loopback',
  'redirect-to-loopback-6',
  'redirect-to-link-local',
] as const

const redirects: FaultRow[] = [
  ...FOLLOWED.map((name) => named(name, { at: CONTENT, means: HARMLESS, shows: 'headers' })),
  ...NOT_FOLLOWED.map((name) => named(name, { at: CONTENT, means: OUTAGE, shows: 'headers' })),
  named('redirect-to-http', { at: CONTENT, means: OUTAGE, shows: 'headers', station: 'tls' }),
  named('redirect-expired', { at: ['blob'], means: OUTAGE, shows: 'headers' }),
  {
    name: 'redirect-expires',
    about: 'a download from the CDN breaks, and its URL works no more',
    at: ['blob'],
    means: HARMLESS,
    shows: 'body',
    plans: [{ fault: 'redirect-signed' }, { kinds: ['cdn'], fault: 'cut-at-64k', times: 1 }],
    counts: 'resume',
  },
]

/** A download breaks at 64 KiB, and its rest is answered like this. */
function resumed(range: FaultName, means: Meaning): FaultRow {
  return {
    name: `resumed-${range}`,
    about: `a broken download's rest: ${FAULT_NOTES[range]}`,
    at: ['blob'],
    means,
    shows: 'body',
    plans: [{ fault: range }, { fault: 'cut-at-64k', times: 1 }],
    states: ['cold', 'warm'],
    breaksLate: true,
    counts: 'resume',
  }
}

const ranges: FaultRow[] = [
  resumed('range-ignored', HARMLESS),
  resumed('range-refused', { is: 'cut', arrivesBytes: 65_536 }),
  resumed('range-shifted', { is: 'cut', arrivesBytes: 65_536 }),
  ...(['range-ignored', 'range-refused', 'range-shifted'] as const).map((name) =>
    named(name, { at: ['blob'], means: HARMLESS, shows: 'body', states: ['part'] }),
  ),
]

/** How long a client that was given the old image may be given it again. */
const TAG_TTL_MS = 60_000

const content: FaultRow[] = [
  {
    name: 'tag-moves',
    about: 'a tag moves between HEAD and GET',
    at: ['tag'],
    means: HARMLESS,
    shows: 'headers',
    plans: [{ method: 'HEAD', fault: 'tag-moves', times: 1 }],
    states: ['cold', 'stale'],
    lastsOnMs: TAG_TTL_MS,
  },
  {
    name: 'tag-moves-and-leaves-nothing',
    about: 'the same, and the old manifest is gone',
    at: ['tag'],
    means: HARMLESS,
    shows: 'headers',
    plans: [
      { method: 'HEAD', fault: 'tag-moves', times: 1 },
      { kinds: ['manifest-digest'], reference: 'first-image', fault: 'not-found' },
    ],
    states: ['cold'],
  },
  ...(
    [
      ['oversized', 'a manifest of more than 4 MiB'],
      ['image-and-index', 'a manifest with both layers and manifests'],
      ['schema-1', 'a manifest of schema 1'],
    ] as const
  ).map(([name, about]): FaultRow => {
    return { name, about, at: MANIFESTS, means: OUTAGE, shows: 'body', plans: [], content: name }
  }),
  {
    name: 'unknown-media-type',
    about: 'a manifest of a media type that nobody knows',
    at: MANIFESTS,
    means: HARMLESS,
    shows: 'headers',
    plans: [],
    content: 'unknown-media-type',
  },
  {
    name: 'sha512',
    about: 'digests are sha512',
    at: ['digest', 'blob'],
    means: HARMLESS,
    shows: 'headers',
    plans: [],
    content: 'sha512',
  },
  {
    name: 'many-tags',
    about: 'fifty thousand tags',
    at: ['tags'],
    means: HARMLESS,
    shows: 'headers',
    plans: [],
    content: 'many-tags',
  },
  ...(['link-to-other-host', 'link-upwards', 'link-malformed', 'link-endless'] as const).map(
    (name) => named(name, { at: ['tags', 'referrers'], means: HARMLESS, shows: 'headers' }),
  ),
  // Last: a registry that has refused HEAD for blobs once is not asked like that again.
  {
    ...named('no-head', { at: [...MANIFESTS, 'blob'], means: HARMLESS, shows: 'headers' }),
    plans: [{ method: 'HEAD', fault: 'no-head' }],
  },
]

export const ROWS_OF_ANSWERS: readonly FaultRow[] = [
  ...statuses,
  ...tokens,
  ...redirects,
  ...ranges,
  ...content,
]
