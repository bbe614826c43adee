// A blob's bytes as a sender reads them: from a finished file, or from a download that is still growing.

export interface ByteSource {
  /**
   * The next bytes at `position`, as many as there are at once.
   *
   * The result may be a view of `scratch`, or memory that the source shares with other readers: it is
   * read-only, and valid until the second read after this one begins, or the source is closed.
   *
   * @param position offset of the first byte, below the blob's size
   * @param scratch where the source may put the bytes; its length is the most that is returned
   * @returns at least one byte
   * @throws when the bytes will never come; the client must then not get a clean end
   */
  read(position: number, scratch: Buffer): Promise<Buffer>
  /** Ends the reading. Idempotent; a read that is under way may still settle. */
  close(): void
}
