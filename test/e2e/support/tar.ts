// The little of tar that a layer needs: files, directories and symbolic links, in the ustar format.

const BLOCK_BYTES = 512
const MODIFIED_S = Date.UTC(2024, 0, 1) / 1000

export interface TarEntry {
  /** At most 100 characters; a directory's ends with a slash. */
  readonly name: string
  readonly mode: number
  readonly content?: Buffer
  /** Makes it a symbolic link. */
  readonly linkTo?: string
}

export function tarArchive(entries: readonly TarEntry[]): Buffer {
  const blocks = entries.flatMap((entry) => {
    const content = entry.content ?? Buffer.alloc(0)
    return [
      header(entry, content.length),
      content,
      Buffer.alloc(-content.length & (BLOCK_BYTES - 1)),
    ]
  })
  return Buffer.concat([...blocks, Buffer.alloc(2 * BLOCK_BYTES)])
}

/** @see https://pubs.opengroup.org/onlinepubs/9699919799/utilities/pax.html (ustar Interchange Format) */
function header({ name, mode, linkTo }: TarEntry, sizeBytes: number): Buffer {
  const block = Buffer.alloc(BLOCK_BYTES)
  const octal = (value: number, offset: number, digits: number): void => {
    block.write(value.toString(8).padStart(digits, '0'), offset)
  }
  block.write(name, 0)
  octal(mode, 100, 7)
  octal(0, 108, 7) // owner and group: root
  octal(0, 116, 7)
  octal(sizeBytes, 124, 11)
  octal(MODIFIED_S, 136, 11)
  block.fill(' ', 148, 156) // the checksum counts its own field as blanks
  block.write(typeFlag(name, linkTo), 156)
  block.write(linkTo ?? '', 157)
  block.write('ustar\x0000', 257)
  octal(
    block.reduce((sum, byte) => sum + byte, 0),
    148,
    6,
  )
  block.writeUInt8(0, 154)
  return block
}

function typeFlag(name: string, linkTo: string | undefined): string {
  if (linkTo !== undefined) return '2'
  return name.endsWith('/') ? '5' : '0'
}
