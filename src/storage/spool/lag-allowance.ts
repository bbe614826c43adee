// What downloads that the disk does not take may hold in memory for their slowest readers: one sum for all of them,
// however many there are, of which each has an equal part.

const MIB = 1024 * 1024
const ALL_MAX_BYTES = 64 * MIB
const EACH_MAX_BYTES = 8 * MIB
/** Two blocks: with less, a download and its readers would take turns. */
const EACH_MIN_BYTES = MIB

export class LagAllowance {
  #downloads = 0

  /** How far the slowest reader of one download may be behind. */
  get bytes(): number {
    const equalBytes = Math.floor(ALL_MAX_BYTES / Math.max(1, this.#downloads))
    return Math.min(EACH_MAX_BYTES, Math.max(EACH_MIN_BYTES, equalBytes))
  }

  /** One more. @returns what ends that, to be called once */
  join(): () => void {
    this.#downloads++
    return () => {
      this.#downloads--
    }
  }
}
