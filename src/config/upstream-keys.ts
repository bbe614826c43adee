// The keys that an upstream has, the default one directly under `proxy`, others under `proxy.upstreams.<host>`.

import { dictionary, list, scalar, section, type Scalar } from './node.ts'
import { boolean, duration, integer, realm, secret, text, url } from './scalars.ts'
import { parseDuration } from './duration.ts'
import { textOf } from './yaml.ts'

/** A host, with a port if need be; `*` for any public one, `*.host` for all below one. */
export const UPSTREAM_NAME = {
  expected: 'a registry host such as ghcr.io or registry.corp.example:5000, *.pkg.dev, or "*"',
  pattern:
    /^(?:\*|\*(?:\.[a-z\d](?:[a-z\d-]*[a-z\d])?)+|localhost(?::\d{1,5})?|[a-z\d](?:[a-z\d-]*[a-z\d])?(?:(?:\.[a-z\d](?:[a-z\d-]*[a-z\d])?)+(?::\d{1,5})?|:\d{1,5}))$/i,
}

/** `*` stands for any part of a tag, `?` for one character. */
const TAG_PATTERN = {
  expected: 'a tag, in which * stands for any text, such as v*.*.*',
  pattern: /^[\w.*?-]{1,128}$/,
}

/** `*` stands for any text without a slash, `**` for any text, `?` for one character. */
const REPOSITORY_PATTERN = {
  expected: 'a repository such as library/alpine, team-*/** or **',
  pattern: /^(?=.{1,512}$)[a-z\d._*?-]+(?:\/[a-z\d._*?-]+)*$/,
}

/** The tag never moves. */
export const IMMUTABLE = 'immutable'

const exec = () => section({ command: text(), lifetime: duration({ example: '1h' }) })

export const upstreamKeys = () => ({
  // Several are mirrors, and the origin last.
  remoteurl: list(url()),
  username: text(),
  password: secret(),
  usernamefile: text(),
  passwordfile: text(),
  credentials: section({
    dockerconfig: pathOrTrue(),
    helper: matching({
      expected: 'what follows docker-credential- in its name, such as ecr-login',
      pattern: /^[a-z\d][a-z\d._-]*$/,
    }),
    exec: exec(),
  }),
  ca: list(text()),
  certificate: text(),
  key: text(),
  skipverify: boolean(),
  timeout: duration({ example: '25s' }),
  connecttimeout: duration({ example: '10s' }),
  maxconnections: integer(1, 1000),
  requestspersecond: integer(1),
  httpproxy: matching({
    expected: 'an http or https proxy such as http://host:3128, or none',
    pattern: /^(?:none|(?:https?:\/\/)?[^\s/]+\/?)$/i,
  }),
  tagrules: dictionary(tagTtl(), TAG_PATTERN),
  allow: list(matching(REPOSITORY_PATTERN)),
  deny: list(matching(REPOSITORY_PATTERN)),
  allowedrealms: list(realm()),
  redirecthosts: list(
    matching({
      expected: 'a host such as cdn.example.com, or *.example.com for all below it',
      pattern: /^(?:\*\.)?[a-z\d][a-z\d.-]*$/i,
    }),
  ),
  allowprivateaddresses: boolean(),
  hosts: list(
    matching({
      expected: 'a host by which clients reach this cache, such as ghcr.cache.example',
      pattern: /^[a-z\d][a-z\d.-]*$/i,
    }),
  ),
  private: boolean(),
  repositories: dictionary(section({ private: boolean() }), REPOSITORY_PATTERN),
})

/** As distribution v3 has it, for the default upstream. */
export const proxyExec = exec

function matching({
  expected,
  pattern,
}: {
  expected: string
  pattern: RegExp
}): Scalar<string | undefined> {
  return scalar({
    expected,
    parse: (raw) => (pattern.test(textOf(raw)) ? textOf(raw) : undefined),
  })
}

/** Milliseconds; Infinity for tags that never move. */
function tagTtl(): Scalar<number | undefined> {
  return scalar({
    expected: `a duration such as 30s, or ${IMMUTABLE}`,
    parse(raw) {
      if (textOf(raw).toLowerCase() === IMMUTABLE) return Number.POSITIVE_INFINITY
      const ms = parseDuration(textOf(raw))
      return ms !== undefined && ms >= 0 ? ms : undefined
    },
  })
}

/** True for where Docker keeps it. */
function pathOrTrue(): Scalar<string | boolean | undefined> {
  return scalar<string | boolean>({
    expected: 'true, or the path of a Docker config.json',
    parse(raw) {
      if (/^(?:true|false)$/i.test(textOf(raw))) return textOf(raw).toLowerCase() === 'true'
      return textOf(raw)
    },
  })
}
