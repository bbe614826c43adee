// Runs in the storage thread. Replaces small files. Synchronous on purpose: nobody waits but this thread.

import { randomUUID } from 'node:crypto'
import { closeSync, openSync, renameSync, rmSync, writeSync } from 'node:fs'
import path from 'node:path'
import { MOVE_TRIES_MAX, isAbsent, makeDirectorySync } from './filesystem.ts'
import type { WriteRequest } from './write-queue.ts'

/** @throws the system's error; the old file, if any, is still there, and none after it was replaced */
export function writeFiles({ files, temporaryDirectory }: WriteRequest): void {
  for (const { bytes, file } of files) {
    const temporary = path.join(temporaryDirectory, randomUUID())
    try {
      writeNew(temporary, typeof bytes === 'string' ? Buffer.from(bytes) : bytes)
      moveInto(temporary, file)
    } catch (error) {
      // What stays behind is swept at the next start.
      rmSync(temporary, { force: true })
      throw error
    }
  }
}

function writeNew(file: string, bytes: Uint8Array): void {
  const fd = openNew(file)
  try {
    for (let written = 0; written < bytes.length;) {
      written += writeSync(fd, bytes, written, bytes.length - written)
    }
  } finally {
    closeSync(fd)
  }
}

/** Somebody may have removed the directory, or put another volume in its place: that must not cost what comes next. */
function openNew(file: string): number {
  try {
    return openSync(file, 'wx')
  } catch (error) {
    if (!isAbsent(error)) throw error
    makeDirectorySync(path.dirname(file))
    return openSync(file, 'wx')
  }
}

/** A new link or blob has a directory of its own, nearly always missing: it is made first. */
function moveInto(from: string, to: string): void {
  for (let tries = 1; ; tries++) {
    makeDirectory(path.dirname(to))
    try {
      renameSync(from, to)
      return
    } catch (error) {
      if (!isAbsent(error) || tries >= MOVE_TRIES_MAX) throw error
    }
  }
}

function makeDirectory(directory: string): void {
  try {
    makeDirectorySync(directory)
  } catch (error) {
    // Pruned while it was being made: the next try makes it again. Anything else the rename tells.
    if (!isAbsent(error)) throw error
  }
}
