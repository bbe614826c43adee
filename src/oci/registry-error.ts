// What a client may be told. One table says which status and message belong to a code; nobody else does.

export interface ErrorKind {
  readonly status: number
  readonly message: string
}

/** @see https://github.com/opencontainers/distribution-spec/blob/main/spec.md#error-codes */
export const ERROR_KINDS = {
  BLOB_UNKNOWN: { status: 404, message: 'blob unknown to registry' },
  MANIFEST_UNKNOWN: { status: 404, message: 'manifest unknown' },
  NAME_UNKNOWN: { status: 404, message: 'repository name not known to registry' },
  NAME_INVALID: { status: 400, message: 'invalid repository name' },
  DIGEST_INVALID: {
    status: 400,
    message: 'invalid digest: expected sha256:<64 lower-case hex digits>, or sha512 with 128',
  },
  PAGINATION_NUMBER_INVALID: { status: 400, message: 'invalid number of results requested' },
  RANGE_INVALID: { status: 416, message: 'invalid content range' },
  UNAUTHORIZED: { status: 401, message: 'authentication required' },
  DENIED: { status: 403, message: 'requested access to the resource is denied' },
  UNSUPPORTED: { status: 405, message: 'The operation is unsupported.' },
  TOOMANYREQUESTS: { status: 429, message: 'too many requests' },
  LOOP_DETECTED: {
    status: 508,
    message: 'the request has come through this cache before: check what its upstreams point at',
  },
  UNAVAILABLE: { status: 503, message: 'service unavailable' },
} as const satisfies Record<string, ErrorKind>

export type ErrorCode = keyof typeof ERROR_KINDS

export interface RegistryErrorOptions {
  /** Shown to the client as `detail`: never a credential, a token or a signed URL. */
  readonly detail?: unknown
  /** Sent as `Retry-After`, rounded up to whole seconds. */
  readonly retryAfterMs?: number | undefined
  readonly cause?: unknown
}

/** A failure that is safe to show to a client. Its message is the table's. */
export class RegistryError extends Error {
  override readonly name = 'RegistryError'
  readonly code: ErrorCode
  readonly detail: unknown
  readonly retryAfterMs: number | undefined

  constructor(code: ErrorCode, { detail, retryAfterMs, cause }: RegistryErrorOptions = {}) {
    super(ERROR_KINDS[code].message, { cause })
    this.code = code
    this.detail = detail
    this.retryAfterMs = retryAfterMs
  }

  get status(): number {
    return ERROR_KINDS[this.code].status
  }
}
