// Programs that know credentials: docker-credential-* and whatever speaks their protocol. One run is one
// question: the server on standard input, JSON on standard output. No shell, a bounded answer, a bounded time.
// @see https://github.com/docker/docker-credential-helpers

import { execFile } from 'node:child_process'
import type { Clock } from '../../clock.ts'
import { presentable } from '../failed-answer.ts'
import { isObject } from '../response-body.ts'
import { CredentialsError, loginOf, type Login } from './login.ts'

export type Environment = Readonly<Record<string, string | undefined>>

/** Half of what the call that needs the credentials has. Helpers of clouds ask a server: that takes seconds. */
const HELPER_LIMIT_MS = 10_000

/** A service account's key is 2 KiB, an access token up to 4 KiB. */
const OUTPUT_SIZE_MAX_BYTES = 64 * 1024

/**
 * How long a helper's answer is used where nobody says. Google's live an hour, of which the helper may have
 * used up most; those of ECR live 12 h, and its helper renews them at half time. A run now and then is cheap.
 */
export const HELPER_LIFETIME_MS = 5 * 60_000

const NOT_FOUND = 'credentials not found in native keychain'

/** What helpers are known to need: where programs, homes and keys are, who they are in a cloud, the way out. */
const HELPER_VARIABLES =
  /^(PATH|HOME|USER|LOGNAME|LANG|LC_\w+|TZ|TMPDIR|XDG_\w+|DBUS_SESSION_BUS_ADDRESS|GNUPGHOME|PASSWORD_STORE_\w+|DOCKER_CONFIG|(AWS|ECS|ECR|GOOGLE|CLOUDSDK|GCE|AZURE|IDENTITY|MSI|ACR|OCI|VAULT)_\w+|(https?|no|all)_proxy|SSL_CERT_(FILE|DIR))$/i

/** Ours: the first may hold passwords of this cache, the second changes how programs of ours run. */
const OWN_VARIABLES = /^(REGISTRY|NODE)_/

export interface HelperProgram {
  readonly command: string
  readonly environment: Environment
}

/**
 * @param name the part after `docker-credential-`
 * @throws {CredentialsError} a name that could be a path or an option
 */
export function namedHelper(name: string, environment: Environment): HelperProgram {
  if (!/^[a-z0-9][a-z0-9._-]*$/.test(name)) {
    throw new CredentialsError(
      `"${name.slice(0, 100)}" cannot be a credential helper: expected the part of its name after docker-credential-, such as ecr-login`,
    )
  }
  const command = `docker-credential-${name}`
  return { command, environment: pick(environment, (key) => HELPER_VARIABLES.test(key)) }
}

/** A program of the operator's own, as registry:3 runs it: it may need any of its environment. */
export function customHelper(command: string, environment: Environment): HelperProgram {
  return { command, environment: pick(environment, (key) => !OWN_VARIABLES.test(key)) }
}

function pick(environment: Environment, isWanted: (key: string) => boolean): Environment {
  return Object.fromEntries(Object.entries(environment).filter(([key]) => isWanted(key)))
}

/**
 * Runs the helper once.
 *
 * @param server what is asked for: a host, or Docker Hub's `https://index.docker.io/v1/`
 * @returns undefined when it knows none
 * @throws {CredentialsError}
 */
export async function askHelper(
  { command, environment }: HelperProgram,
  server: string,
  { clock, signal }: { clock: Clock; signal: AbortSignal },
): Promise<Login | undefined> {
  const { error, output, complaint } = await run(command, server, { clock, environment, signal })
  if (!error) return parseOutput(output, command)
  if (output.trim() === NOT_FOUND) return undefined
  throw new CredentialsError(`${command} get failed: ${reasonOf(error, output, complaint)}`, {
    cause: error,
  })
}

interface Outcome {
  readonly error: Error | null
  readonly output: string
  readonly complaint: string
}

function run(
  command: string,
  input: string,
  { clock, environment, signal }: { clock: Clock; environment: Environment; signal: AbortSignal },
): Promise<Outcome> {
  const ending = new AbortController()
  const end = (): void => ending.abort(signal.reason)
  const cancel = clock.setTimer(HELPER_LIMIT_MS, () =>
    ending.abort(new CredentialsError(`no answer within ${HELPER_LIMIT_MS / 1000} s`)),
  )
  if (signal.aborted) end()
  signal.addEventListener('abort', end, { once: true })
  return new Promise((resolve) => {
    const options = {
      env: environment,
      maxBuffer: OUTPUT_SIZE_MAX_BYTES,
      signal: ending.signal,
      // Nothing that it could still have to put in order is ours.
      killSignal: 'SIGKILL',
    } as const
    const child = execFile(command, ['get'], options, (failure, output, complaint) => {
      cancel()
      signal.removeEventListener('abort', end)
      const error = ending.signal.aborted ? (ending.signal.reason as Error) : failure
      resolve({ error, output, complaint })
    })
    // It may have ended without reading.
    child.stdin?.on('error', () => {}).end(input)
  })
}

/** @throws {CredentialsError} without a word of the output: it may be a secret */
function parseOutput(output: string, command: string): Login | undefined {
  let json: unknown
  try {
    json = JSON.parse(output)
  } catch {
    // Not as the cause: V8 quotes the text.
  }
  const { Username: username, Secret: secret } = isObject(json) ? json : {}
  if (typeof username === 'string' && typeof secret === 'string') return loginOf(username, secret)
  throw new CredentialsError(`${command} get did not answer with Username and Secret as JSON`)
}

function reasonOf(error: Error, output: string, complaint: string): string {
  if (error instanceof CredentialsError) return error.message
  const code = 'code' in error ? error.code : undefined
  if (code === 'ENOENT') return 'there is no such program (is it in PATH?)'
  if (code === 'EACCES') return 'it may not be executed'
  if (code === 'ERR_CHILD_PROCESS_STDIO_MAXBUFFER') {
    return `it wrote more than ${OUTPUT_SIZE_MAX_BYTES} bytes`
  }
  // Docker's helpers complain on standard output. Where there is JSON, there may be a secret.
  const said = complaint.trim() || (output.includes('{') ? '' : output.trim())
  const how = typeof code === 'number' ? `exit code ${code}` : 'it was killed'
  return said === '' ? how : `${how}: ${presentable(said)}`
}
