// Sizes as operators write them: `200GiB`, `1.5TB`, `500 MB`; and parts of a disk: `80%`.

/** A letter alone is what Docker and the kernel mean by it: powers of 1024. */
const UNITS: Readonly<Record<string, number>> = {
  '': 1,
  b: 1,
  k: 1024,
  kb: 1e3,
  kib: 1024,
  m: 1024 ** 2,
  mb: 1e6,
  mib: 1024 ** 2,
  g: 1024 ** 3,
  gb: 1e9,
  gib: 1024 ** 3,
  t: 1024 ** 4,
  tb: 1e12,
  tib: 1024 ** 4,
}

const WRITTEN_UNITS = [
  { name: 'TiB', factor: 1024 ** 4 },
  { name: 'GiB', factor: 1024 ** 3 },
  { name: 'MiB', factor: 1024 ** 2 },
  { name: 'KiB', factor: 1024 },
]

const SIZE = /^(\d{1,16}(?:\.\d{1,6})?)\s?([a-z]{0,3})$/i
const PART = /^(\d{1,3}(?:\.\d{1,6})?)\s?%$/

/** An amount of disk: so many bytes, or a part of the file system between 0 and 1. */
export type DiskAmount =
  | { readonly kind: 'bytes'; readonly bytes: number }
  | { readonly kind: 'part'; readonly part: number }

/** @returns bytes; undefined for anything else */
export function parseSize(text: string): number | undefined {
  const [, amount, unit] = SIZE.exec(text.trim()) ?? []
  const factor = UNITS[unit?.toLowerCase() ?? ' ']
  if (amount === undefined || factor === undefined) return undefined
  const bytes = Math.floor(Number(amount) * factor)
  return Number.isSafeInteger(bytes) ? bytes : undefined
}

/** @returns undefined for anything else */
export function parseDiskAmount(text: string): DiskAmount | undefined {
  const [, percent] = PART.exec(text.trim()) ?? []
  if (percent !== undefined) {
    const part = Number(percent) / 100
    return part <= 1 ? { kind: 'part', part } : undefined
  }
  const bytes = parseSize(text)
  return bytes === undefined ? undefined : { kind: 'bytes', bytes }
}

/** The shortest that reads the same again. */
export function formatSize(bytes: number): string {
  const unit = WRITTEN_UNITS.find(({ factor }) => bytes >= factor && bytes % factor === 0)
  return unit ? `${bytes / unit.factor}${unit.name}` : `${bytes}B`
}

export function formatDiskAmount(amount: DiskAmount): string {
  if (amount.kind === 'bytes') return formatSize(amount.bytes)
  // Without what floating point adds.
  return `${Number((amount.part * 100).toFixed(6))}%`
}
