// Where the credentials for an upstream come from, as the configuration has it. What is given here is used for
// one upstream and no other; when it is used, and what happens when it is refused, is login-guard.ts's.

import { homedir } from 'node:os'
import { join } from 'node:path'
import type { Logger } from 'pino'
import type { Clock } from '../../clock.ts'
import {
  FILE_LIFETIME_MS,
  readLoginFiles,
  readSmallFile,
  REFUSED_FILE_LIFETIME_MS,
} from './credential-files.ts'
import {
  askHelper,
  customHelper,
  HELPER_LIFETIME_MS,
  namedHelper,
  type Environment,
} from './credential-helper.ts'
import { dockerEntry, serverNameOf, type DockerEntry } from './docker-config.ts'
import { loginOf, type Credentials, type Login } from './login.ts'
import { Remembered } from './remembered.ts'

export type CredentialsOptions =
  | { readonly kind: 'static'; readonly username: string; readonly password: string }
  /** Read again when they change. One of the usernames must be given. */
  | {
      readonly kind: 'files'
      readonly username: string | undefined
      readonly usernameFile?: string | undefined
      readonly passwordFile: string
    }
  /** Undefined: `$DOCKER_CONFIG/config.json`, else `~/.docker/config.json`. */
  | { readonly kind: 'docker-config'; readonly file: string | undefined }
  /** The part after `docker-credential-`. */
  | { readonly kind: 'helper'; readonly helper: string }
  /** distribution's `proxy.exec`; 0: asked each time, Infinity: until the answer is refused. */
  | { readonly kind: 'exec'; readonly command: string; readonly lifetimeMs: number }

export interface CredentialsDeps {
  readonly clock: Clock
  readonly logger: Logger
  /** Of the process: what helpers need of it is passed on. */
  readonly environment: Environment
}

/**
 * @param upstream.name for the log
 * @param upstream.host under which the credentials are known: the registry's
 * @throws {CredentialsError} for a helper that cannot be one
 */
export function createCredentials(
  options: CredentialsOptions | undefined,
  deps: CredentialsDeps,
  upstream: { readonly name: string; readonly host: string },
): Credentials {
  if (!options) return fixed(undefined)
  const { clock, environment } = deps
  const { host, name } = upstream
  switch (options.kind) {
    case 'static':
      return fixed(loginOf(options.username, options.password))
    case 'files': {
      const read = (): Promise<Login> => readLoginFiles(options)
      const memory = new Remembered(deps, { name, lifetimeMs: FILE_LIFETIME_MS, read })
      return {
        ...forAnyHost(memory, host),
        current: (_host, options) => memory.current(host, maxAgeOf(options)),
      }
    }
    case 'docker-config':
      return new DockerConfigCredentials(deps, { ...upstream, file: options.file })
    case 'helper':
      return helperCredentials(deps, name, options.helper, serverNameOf(host))
    case 'exec': {
      const program = customHelper(options.command, environment)
      const { lifetimeMs } = options
      // As registry:3: asked about the host that the credentials will be sent to.
      const read = (realmHost: string, signal: AbortSignal): Promise<Login | undefined> =>
        askHelper(program, realmHost, { clock, signal })
      const memory = new Remembered(deps, { name, lifetimeMs, read })
      return { ...forAnyHost(memory, host), current: (realmHost) => memory.current(realmHost) }
    }
  }
}

function fixed(login: Login | undefined): Credentials {
  return { current: async () => login, forget: () => {}, close: () => {} }
}

function helperCredentials(
  { clock, environment, logger }: CredentialsDeps,
  name: string,
  helper: string,
  server: string,
): Credentials {
  const program = namedHelper(helper, environment)
  const read = (_host: string, signal: AbortSignal): Promise<Login | undefined> =>
    askHelper(program, server, { clock, signal })
  const lifetimeMs = HELPER_LIFETIME_MS
  return forAnyHost(new Remembered({ clock, logger }, { name, lifetimeMs, read }), server)
}

/** Of what stands in a file. */
function maxAgeOf({ wasRefused = false } = {}): { maxAgeMs?: number } {
  return wasRefused ? { maxAgeMs: REFUSED_FILE_LIFETIME_MS } : {}
}

/** Known under one name, wherever they are sent: asking for them under another is no reason to read again. */
function forAnyHost(memory: Remembered<Login>, host: string): Credentials {
  return {
    current: () => memory.current(host),
    forget: () => memory.forget(),
    close: () => memory.close(),
  }
}

/** The file is looked at again every few seconds; a helper that it names has a memory of its own. */
class DockerConfigCredentials implements Credentials {
  readonly #deps: CredentialsDeps
  readonly #name: string
  readonly #host: string
  readonly #file: Remembered<DockerEntry>
  #helper: { readonly name: string; readonly credentials: Credentials } | undefined

  constructor(
    deps: CredentialsDeps,
    { name, host, file }: { name: string; host: string; file: string | undefined },
  ) {
    this.#deps = deps
    this.#name = name
    this.#host = host
    const path = file ?? defaultPath(deps.environment)
    const read = async (): Promise<DockerEntry | undefined> =>
      dockerEntry(await readSmallFile(path), host, path)
    this.#file = new Remembered(deps, { name, lifetimeMs: FILE_LIFETIME_MS, read })
  }

  async current(host: string, options?: { wasRefused?: boolean }): Promise<Login | undefined> {
    const entry = await this.#file.current(this.#host, maxAgeOf(options))
    if (entry && 'helper' in entry) return this.#helperOf(entry).current(host)
    return entry?.login
  }

  forget(): void {
    this.#file.forget()
    this.#helper?.credentials.forget()
  }

  close(): void {
    this.#file.close()
    this.#helper?.credentials.close()
  }

  #helperOf({ helper, server }: { helper: string; server: string }): Credentials {
    if (this.#helper?.name === helper) return this.#helper.credentials
    this.#helper?.credentials.close()
    const credentials = helperCredentials(this.#deps, this.#name, helper, server)
    this.#helper = { name: helper, credentials }
    return credentials
  }
}

function defaultPath(environment: Environment): string {
  const directory =
    environment['DOCKER_CONFIG'] || join(environment['HOME'] || homedir(), '.docker')
  return join(directory, 'config.json')
}
