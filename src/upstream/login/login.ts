// What an upstream is logged in to with, and where it comes from. Not everything that we are given is a
// password: an identity token (`docker login` to Azure or Google leaves one) is only good for buying tokens.

export type Login = Password | { readonly identityToken: string }

export interface Password {
  readonly username: string
  readonly password: string
}

/** A source of logins. It remembers what it read; asking it for each request is right. */
export interface Credentials {
  /**
   * What is to be used now; undefined to ask anonymously.
   *
   * @param host where it will be sent: that of the token realm, or of the registry itself
   * @param options.wasRefused what was given last was refused: a source that costs little is looked at more often
   * @throws {CredentialsError} there should be one, but it cannot be had
   */
  current(host: string, options?: { readonly wasRefused?: boolean }): Promise<Login | undefined>
  /** The upstream refused what `current` gave: it is read anew when it is next asked for. */
  forget(): void
  /** Ends what runs. */
  close(): void
}

/** For the operator; the message may name files and commands, and never has a secret in it. */
export class CredentialsError extends Error {
  override readonly name = 'CredentialsError'
}

/** The name that credential helpers give to identity tokens. */
const IDENTITY_TOKEN_USERNAME = '<token>'

/** @returns undefined when there is nothing to log in with */
export function loginOf(username: string, secret: string): Login | undefined {
  if (secret === '') return undefined
  if (username === IDENTITY_TOKEN_USERNAME) return { identityToken: secret }
  return username === '' ? undefined : { username, password: secret }
}
