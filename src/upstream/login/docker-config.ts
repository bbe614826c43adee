// Docker's config.json (and Podman's auth.json, and a Kubernetes secret of type dockerconfigjson): which entry
// is meant for a registry. Hosts match exactly, never as a prefix of another's, and an entry for one path of a
// registry is not one for all of it.
// @see https://docs.docker.com/reference/cli/docker/login/#credential-stores

import { DOCKER_HUB_NAMES } from '../../oci/registry-host.ts'
import { isObject, type JsonObject } from '../response-body.ts'
import { CredentialsError, loginOf, type Login } from './login.ts'

/** What Docker calls Docker Hub, in its file and to helpers. */
const DOCKER_HUB_SERVER = 'https://index.docker.io/v1/'

export type DockerEntry =
  { readonly login: Login } | { readonly helper: string; readonly server: string }

/** @param host of the registry, with its port if that is not the usual one */
export function serverNameOf(host: string): string {
  return DOCKER_HUB_NAMES.has(host) ? DOCKER_HUB_SERVER : host
}

/**
 * A helper for the registry counts first, then the store for all, then what stands in the file itself.
 *
 * @throws {CredentialsError} for what is no such file, or holds an entry that cannot be read
 */
export function dockerEntry(text: string, host: string, path: string): DockerEntry | undefined {
  const config = parse(text, path)
  const server = serverNameOf(host)
  const helper = find(config['credHelpers'], host) ?? config['credsStore']
  if (typeof helper === 'string' && helper !== '') return { helper, server }
  const entry = find(config['auths'], host)
  const login = isObject(entry) ? loginIn(entry, path, server) : undefined
  return login && { login }
}

function parse(text: string, path: string): JsonObject {
  let json: unknown
  try {
    json = JSON.parse(text)
  } catch {
    // Not as the cause: V8 quotes the text.
  }
  if (isObject(json)) return json
  throw new CredentialsError(`${path} is not a JSON object: expected a config.json of docker`)
}

/** The exact key first, since Docker itself writes only that; then other spellings of the same host. */
function find(section: unknown, host: string): unknown {
  if (!isObject(section)) return undefined
  const exact = serverNameOf(host)
  if (Object.hasOwn(section, exact)) return section[exact]
  const isHub = DOCKER_HUB_NAMES.has(host)
  const key = Object.keys(section).find((name) => {
    const named = hostOf(name)
    return named !== undefined && (named === host || (isHub && DOCKER_HUB_NAMES.has(named)))
  })
  return key === undefined ? undefined : section[key]
}

/** `https://host/v1/` and the like are old spellings of the host; any other path is a part of a registry. */
function hostOf(key: string): string | undefined {
  return /^(?:https?:\/\/)?([^/]+)(?:\/(?:v[12]\/?)?)?$/i.exec(key)?.[1]?.toLowerCase()
}

function loginIn(entry: JsonObject, path: string, server: string): Login | undefined {
  const { auth, identitytoken: identityToken, username, password } = entry
  if (typeof identityToken === 'string' && identityToken !== '') return { identityToken }
  if (typeof auth === 'string' && auth !== '') {
    const pair = Buffer.from(auth, 'base64').toString('utf8')
    const colon = pair.indexOf(':')
    // Passwords may have colons, usernames may not. Docker pads with NUL.
    const login =
      colon > 0 && loginOf(pair.slice(0, colon), pair.slice(colon + 1).replace(/\0+$/, ''))
    if (login) return login
    throw new CredentialsError(`${path}: auth of ${server} is not base64 of username:password`)
  }
  if (typeof username !== 'string' || typeof password !== 'string') return undefined
  return loginOf(username, password)
}
