// "Did you mean …?": the word that somebody most likely meant to type.

/** Farther apart, two words are different words. */
const DISTANCE_MAX = 2

/** @returns undefined when none is near, compared without regard to case */
export function nearestWord(typed: string, words: readonly string[]): string | undefined {
  const [nearest] = words
    .map((word) => ({ word, distance: editDistance(typed.toLowerCase(), word) }))
    .filter(({ word, distance }) => distance <= DISTANCE_MAX && distance * 2 < word.length)
    .sort((a, b) => a.distance - b.distance)
  return nearest?.word
}

/** Levenshtein's, by rows; words too different in length are not compared. */
function editDistance(a: string, b: string): number {
  if (Math.abs(a.length - b.length) > DISTANCE_MAX) return Infinity
  let previous = Array.from({ length: b.length + 1 }, (_, index) => index)
  for (const [row, letter] of a.split('').entries()) {
    const current = [row + 1]
    for (const [column, other] of b.split('').entries()) {
      const replaced = (previous[column] ?? 0) + (letter === other ? 0 : 1)
      const removed = (previous[column + 1] ?? 0) + 1
      const inserted = (current[column] ?? 0) + 1
      current.push(Math.min(replaced, removed, inserted))
    }
    previous = current
  }
  return previous[b.length] ?? Infinity
}
