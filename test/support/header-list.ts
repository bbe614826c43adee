import type { HeaderList } from '../../src/http/exchange.ts'

/** What a client would find in it. */
export function byName(headers: HeaderList): Record<string, string> {
  const pairs = headers.flatMap((name, at) => (at % 2 === 0 ? [[name, headers[at + 1] ?? '']] : []))
  return Object.fromEntries(pairs)
}
