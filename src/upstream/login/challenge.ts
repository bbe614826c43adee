// WWW-Authenticate, read as RFC 9110 §11.6.1 has it: a list of challenges whose separator is also that of
// their parameters. Never throws; what cannot be read ends the list.

export interface Challenge {
  /** Lower case. */
  readonly scheme: string
  /** Names in lower case; the first of equal names counts. */
  readonly params: ReadonlyMap<string, string>
}

const SCHEME = /[\s,]*([\w!#$%&'*+.^`|~-]+)(?=[\s,]|$)/y
const TOKEN68 = /[ \t]+[\w.~+/-]+=*[ \t]*(?=,|$)/y
// Unquoted values are taken more freely than the RFC has them: `realm=https://…` is seen in the wild.
const PARAM = /[\s,]*([\w!#$%&'*+.^`|~-]+)\s*=\s*(?:"((?:[^"\\]|\\.)*)"|([^\s,"=][^\s,"]*))/y

/** @param header one header's value, or several headers of the same name */
export function parseChallenges(header: string | readonly string[] | undefined): Challenge[] {
  const text = typeof header === 'string' ? header : (header ?? []).join(', ')
  const challenges: Challenge[] = []
  let position = 0
  const take = (pattern: RegExp): RegExpExecArray | null => {
    pattern.lastIndex = position
    const match = pattern.exec(text)
    if (match) position = pattern.lastIndex
    return match
  }
  for (;;) {
    const scheme = take(SCHEME)?.[1]
    if (scheme === undefined) return challenges
    const params = new Map<string, string>()
    if (!take(TOKEN68)) {
      for (let match = take(PARAM); match; match = take(PARAM)) {
        const [, name = '', quoted, plain] = match
        const key = name.toLowerCase()
        if (!params.has(key)) params.set(key, quoted?.replaceAll(/\\(.)/g, '$1') ?? plain ?? '')
      }
    }
    challenges.push({ scheme: scheme.toLowerCase(), params })
  }
}
