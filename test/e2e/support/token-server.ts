// The token endpoint of the upstream, as auth.docker.io is that of Docker Hub: anybody may pull what is
// under `library/`. Only the tests themselves may push, with tokens that they sign here.

import { createPrivateKey, randomUUID, sign, X509Certificate, type KeyObject } from 'node:crypto'
import { readFileSync } from 'node:fs'
import type { IncomingMessage, ServerResponse } from 'node:http'
import { LoopbackServer } from './loopback-server.ts'
import { run } from './processes.ts'
import type { Workspace } from './workspace.ts'

const ISSUER = 'e2e-issuer'
const SERVICE = 'e2e-registry'
const TOKEN_TTL_S = 60

interface Access {
  readonly type: string
  readonly name: string
  readonly actions: readonly string[]
}

export class TokenServer {
  readonly server: LoopbackServer
  readonly #certificatePath: string
  readonly #certificate: string
  readonly #key: KeyObject

  private constructor(server: LoopbackServer, certificatePath: string, keyPath: string) {
    this.server = server
    this.#certificatePath = certificatePath
    this.#certificate = new X509Certificate(readFileSync(certificatePath)).raw.toString('base64')
    this.#key = createPrivateKey(readFileSync(keyPath))
  }

  static async start(workspace: Workspace): Promise<TokenServer> {
    const [certificate, key] = [workspace.path('token.crt'), workspace.path('token.key')]
    const curve = ['-newkey', 'ec', '-pkeyopt', 'ec_paramgen_curve:P-256', '-nodes', '-days', '2']
    const files = ['-subj', '/CN=e2e', '-keyout', key, '-out', certificate]
    await run(workspace, 'openssl', ['req', '-x509', ...curve, ...files])
    const server = new LoopbackServer((request, response) => tokens.#answer(request, response))
    const tokens = new TokenServer(server, certificate, key)
    await server.start()
    workspace.onClose(() => server.stop())
    return tokens
  }

  /** The `auth.token` section of the registry that believes these tokens. */
  get registryAuth(): Readonly<Record<string, string>> {
    const realm = `${this.server.url}/token`
    return { realm, service: SERVICE, issuer: ISSUER, rootcertbundle: this.#certificatePath }
  }

  /** A token that allows everything on one repository. */
  pushToken(repository: string): string {
    return this.#issue([{ type: 'repository', name: repository, actions: ['pull', 'push'] }])
  }

  #answer(request: IncomingMessage, response: ServerResponse): void {
    const { searchParams } = new URL(request.url ?? '/', this.server.url)
    const scopes = searchParams.getAll('scope').flatMap((scope) => scope.split(' '))
    const token = this.#issue(scopes.map(anonymousAccess))
    response.setHeader('content-type', 'application/json')
    response.end(JSON.stringify({ token, access_token: token, expires_in: TOKEN_TTL_S }))
  }

  /** @see https://distribution.github.io/distribution/spec/auth/jwt/ */
  #issue(access: readonly Access[]): string {
    const nowS = Math.floor(Date.now() / 1000)
    const times = { iat: nowS, nbf: nowS - 5, exp: nowS + TOKEN_TTL_S, jti: randomUUID() }
    const head = encode({ typ: 'JWT', alg: 'ES256', x5c: [this.#certificate] })
    const body = encode({ iss: ISSUER, sub: '', aud: SERVICE, ...times, access })
    const signature = sign('sha256', Buffer.from(`${head}.${body}`), {
      key: this.#key,
      dsaEncoding: 'ieee-p1363',
    })
    return `${head}.${body}.${signature.toString('base64url')}`
  }
}

function anonymousAccess(scope: string): Access {
  const [type = '', name = '', actions = ''] = scope.split(':')
  const allowed = name.startsWith('library/') && actions.split(',').includes('pull')
  return { type, name, actions: allowed ? ['pull'] : [] }
}

function encode(json: unknown): string {
  return Buffer.from(JSON.stringify(json)).toString('base64url')
}
