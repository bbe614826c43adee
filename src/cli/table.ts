// Tables and sizes for people.

const UNITS = ['B', 'KiB', 'MiB', 'GiB', 'TiB'] as const

/** `1.50 GiB`: three or four digits, so that a column can be compared at a glance. */
export function formatBytes(bytes: number): string {
  let amount = bytes
  let unit = 0
  while (amount >= 1024 && unit < UNITS.length - 1) {
    amount /= 1024
    unit++
  }
  const digits = unit === 0 || amount >= 100 ? 0 : amount >= 10 ? 1 : 2
  return `${amount.toFixed(digits)} ${UNITS[unit]}`
}

/** Columns as wide as their widest cell; numbers to the right, what comes last to the left. */
export function formatTable(rows: readonly (readonly string[])[]): string {
  const widths: number[] = []
  for (const row of rows) {
    for (const [column, cell] of row.entries()) {
      widths[column] = Math.max(widths[column] ?? 0, cell.length)
    }
  }
  const lines = rows.map((row) => {
    const cells = row.map((cell, column) => {
      return column === row.length - 1 ? cell : cell.padStart(widths[column] ?? 0)
    })
    return `${cells.join('  ')}\n`
  })
  return lines.join('')
}
