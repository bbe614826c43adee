// Patterns for the names of repositories and tags, as operators write them: `library/node`, `team-*/**`, `v*.*.*`.
// `*` stands for anything but a slash, `**` for anything, `?` for one character; all else stands for itself.

export type Pattern = (text: string) => boolean

/** What a pattern may be made of: names, tags and wildcards; and how long it may be. */
const PATTERN = /^[\w.\-/*?]{1,512}$/

/** @returns undefined when `text` is no pattern: nothing could ever match it */
export function parsePattern(text: string): Pattern | undefined {
  if (!PATTERN.test(text)) return undefined
  const steps = stepsOf(text)
  return (candidate) => isMatch(steps, candidate)
}

/** One character, or what takes several of them. */
type Step = Readonly<
  /** `*` takes one component's, `**` any, and its `**` + `/` whole components, in two steps. */
  | { kind: 'any-of-component' | 'any' | 'components' | 'in-component' | 'one' }
  | { kind: 'this'; character: string }
>

function stepsOf(text: string): Step[] {
  return [...text.matchAll(/\*\*\/|\*+|./g)].flatMap(([part]): Step[] => {
    if (part === '**/') return [{ kind: 'components' }, { kind: 'in-component' }]
    if (part.startsWith('**')) return [{ kind: 'any' }]
    if (part === '*') return [{ kind: 'any-of-component' }]
    return part === '?' ? [{ kind: 'one' }] : [{ kind: 'this', character: part }]
  })
}

/**
 * Follows all ways through the pattern side by side: names come from clients, and a regular expression with many
 * stars would take years over some of them.
 */
function isMatch(steps: readonly Step[], candidate: string): boolean {
  let reached = new Set<number>()
  reach(steps, 0, reached)
  for (const character of candidate) {
    const next = new Set<number>()
    for (const at of reached) {
      const to = after(steps[at], at, character)
      if (to !== undefined) reach(steps, to, next)
    }
    if (next.size === 0) return false
    reached = next
  }
  return reached.has(steps.length)
}

/** Adds a step, and those that come next when it takes nothing. */
function reach(steps: readonly Step[], at: number, reached: Set<number>): void {
  if (reached.has(at)) return
  reached.add(at)
  const kind = steps[at]?.kind
  if (kind === 'any' || kind === 'any-of-component') reach(steps, at + 1, reached)
  if (kind === 'components') reach(steps, at + 2, reached)
}

/** @returns the step after this character; undefined when the step does not take it */
function after(step: Step | undefined, at: number, character: string): number | undefined {
  const isSlash = character === '/'
  switch (step?.kind) {
    case 'this':
      return step.character === character ? at + 1 : undefined
    case 'one':
      return isSlash ? undefined : at + 1
    case 'any-of-component':
      return isSlash ? undefined : at
    case 'any':
      return at
    case 'components':
      return isSlash ? undefined : at + 1
    case 'in-component':
      return isSlash ? at - 1 : at
    case undefined:
      return undefined
  }
}

/** How much of a pattern is fixed: of several that match, the one that says most counts. */
export function weightOf(pattern: string): number {
  return pattern.replaceAll(/[*?]/g, '').length * 2 + (/[*?]/.test(pattern) ? 0 : 1)
}

/** A rule's `match`: a pattern for repositories and, after a colon, one for tags. */
export interface ImagePattern {
  readonly matchesRepository: Pattern
  /** Undefined: whatever the tag. */
  readonly matchesTag: Pattern | undefined
}

/** @returns undefined when `text` is none */
export function parseImagePattern(text: string): ImagePattern | undefined {
  const [repository = '', tag, ...rest] = text.split(':')
  const matchesRepository = parsePattern(repository)
  const matchesTag = tag === undefined ? undefined : parsePattern(tag)
  const isWrong = rest.length > 0 || !matchesRepository || (tag !== undefined && !matchesTag)
  return isWrong
    ? undefined
    : { matchesRepository, matchesTag: tag === '*' ? undefined : matchesTag }
}
