// The upstream of every target: a read-only registry over a data set, in a process of its own, that can
// be slowed down and counts what it is asked for and what it sends.
//
//   node origin.mjs DATASET-DIRECTORY PORT      listens on 127.0.0.1
//   /-/throttle?rate=&connectionRate=&latencyMs=    bytes/s in all and per answer; absent: no limit
//   /-/reset                                        counters to zero
//   /-/stats                                        all three answer with the counters
//
// Manifests (by tag and digest), blobs (with Range), nothing else: enough for a pull.

import { once } from 'node:events'
import { readFileSync } from 'node:fs'
import { open, readFile, stat } from 'node:fs/promises'
import { createServer } from 'node:http'
import path from 'node:path'
import { setTimeout as sleep } from 'node:timers/promises'
import { MANIFEST_TYPE } from './dataset.mjs'

const directory = process.argv[2]
const { repositories } = JSON.parse(readFileSync(path.join(directory, 'catalog.json'), 'utf8'))
const digestsOf = new Map(
  Object.entries(repositories).map(([name, { digests }]) => [name, new Set(digests)]),
)

/** Answers up to this size come from memory: opening files would bound the rate of small cold pulls. */
const IN_MEMORY_MAX_BYTES = 64 * 1024
const CHUNK_BYTES = 1024 * 1024
/** Small enough for an even flow at the rates used (1.3 ms at 50 MB/s). */
const THROTTLED_CHUNK_BYTES = 64 * 1024

const throttle = { rate: 0, connectionRate: 0, latencyMs: 0 }
let stats = newStats()
/** Answers under way; no counter, so that a reset leaves it alone. */
let active = 0

function newStats() {
  return { requests: {}, bodyBytes: 0, blobGets: new Map() }
}

/** Paces a flow: whoever takes bytes waits until the line would have carried those taken before. */
class Line {
  /** A line found free for longer was idle; for less, a timer was late, which is made up for. */
  static #LATE_MAX_MS = 50
  #freeAtMs = 0

  async take(bytes, bytesPerSecond) {
    if (!bytesPerSecond) return
    const nowMs = performance.now()
    if (this.#freeAtMs < nowMs - Line.#LATE_MAX_MS) this.#freeAtMs = nowMs
    this.#freeAtMs += (bytes / bytesPerSecond) * 1000
    const waitMs = this.#freeAtMs - nowMs
    if (waitMs >= 1) await sleep(waitMs)
  }
}

const uplink = new Line()
const contents = new Map()

/** Size, and bytes where they are small, of a file of the data set. */
async function content(digest) {
  let known = contents.get(digest)
  if (known === undefined) {
    const file = path.join(directory, 'blobs', digest.slice('sha256:'.length))
    const { size } = await stat(file)
    known = { file, size, bytes: size <= IN_MEMORY_MAX_BYTES ? await readFile(file) : undefined }
    contents.set(digest, known)
  }
  return known
}

/** Sends part of a file, reading the next chunk while one is being written. */
async function sendFile(response, file, start, end) {
  const slowed = throttle.rate > 0 || throttle.connectionRate > 0
  const chunkBytes = slowed ? THROTTLED_CHUNK_BYTES : CHUNK_BYTES
  const buffers = [Buffer.allocUnsafe(chunkBytes), Buffer.allocUnsafe(chunkBytes)]
  const connectionLine = new Line()
  const closed = once(response, 'close')
  const handle = await open(file)
  try {
    let written = Promise.resolve()
    for (let position = start, turn = 0; position <= end; turn ^= 1) {
      const wanted = Math.min(chunkBytes, end - position + 1)
      await connectionLine.take(wanted, throttle.connectionRate)
      await uplink.take(wanted, throttle.rate)
      const { bytesRead } = await handle.read(buffers[turn], 0, wanted, position)
      await written
      if (response.destroyed) return
      position += bytesRead
      stats.bodyBytes += bytesRead
      const chunk = buffers[turn].subarray(0, bytesRead)
      written = Promise.race([new Promise((done) => response.write(chunk, done)), closed])
    }
    await written
    response.end()
  } finally {
    await handle.close()
  }
}

function rangeOf(request, size) {
  const [, first, last] = /^bytes=(\d+)-(\d*)$/.exec(request.headers.range ?? '') ?? []
  if (first === undefined) return undefined
  return { start: Number(first), end: last ? Math.min(Number(last), size - 1) : size - 1 }
}

async function sendContent(request, response, { digest, isBlob }) {
  const { file, size, bytes } = await content(digest)
  const headers = {
    'Content-Type': isBlob ? 'application/octet-stream' : MANIFEST_TYPE,
    'Docker-Content-Digest': digest,
    'Docker-Distribution-Api-Version': 'registry/2.0',
    ETag: `"${digest}"`,
    'Accept-Ranges': 'bytes',
  }
  const range = isBlob ? rangeOf(request, size) : undefined
  if (range !== undefined && range.start > range.end) {
    response.writeHead(416, { 'Content-Range': `bytes */${size}` }).end()
    return
  }
  const { start, end } = range ?? { start: 0, end: size - 1 }
  if (range !== undefined) headers['Content-Range'] = `bytes ${start}-${end}/${size}`
  response.writeHead(range ? 206 : 200, { ...headers, 'Content-Length': end - start + 1 })
  if (request.method === 'HEAD') {
    response.end()
  } else if (bytes !== undefined) {
    await uplink.take(bytes.length, throttle.rate)
    stats.bodyBytes += end - start + 1
    response.end(bytes.subarray(start, end + 1))
  } else {
    await sendFile(response, file, start, end)
  }
}

/** What a path asks for: `digest` is undefined if the origin does not have it. */
function parse(url) {
  if (url === '/v2/') return { kind: 'ping' }
  const [, name, type, reference] = /^\/v2\/(.+)\/(manifests|blobs)\/([^/?]+)/.exec(url) ?? []
  if (name === undefined) return { kind: 'other' }
  const isBlob = type === 'blobs'
  const byDigest = reference.startsWith('sha256:')
  const digest = byDigest ? reference : repositories[name]?.tags[reference]
  const held = digestsOf.get(name)?.has(digest) ?? false
  const kind = isBlob ? 'blob' : byDigest ? 'manifest by digest' : 'manifest by tag'
  return { kind, isBlob, digest: held ? digest : undefined }
}

function count(request, response, { kind, digest }) {
  const key = `${request.method} ${kind}`
  stats.requests[key] = (stats.requests[key] ?? 0) + 1
  if (key === 'GET blob') stats.blobGets.set(digest, (stats.blobGets.get(digest) ?? 0) + 1)
  active += 1
  response.once('close', () => (active -= 1))
}

async function answer(request, response) {
  const asked = parse(request.url)
  count(request, response, asked)
  if (throttle.latencyMs > 0) await sleep(throttle.latencyMs)
  if (asked.kind === 'ping') {
    response.writeHead(200, { 'Docker-Distribution-Api-Version': 'registry/2.0' }).end('{}')
  } else if (asked.digest === undefined) {
    const code = asked.isBlob ? 'BLOB_UNKNOWN' : 'MANIFEST_UNKNOWN'
    response.writeHead(404).end(JSON.stringify({ errors: [{ code }] }))
  } else {
    await sendContent(request, response, asked)
  }
}

function control(url, response) {
  const { pathname, searchParams } = new URL(url, 'http://origin')
  if (pathname === '/-/reset') stats = newStats()
  if (pathname === '/-/throttle') {
    for (const key of Object.keys(throttle)) throttle[key] = Number(searchParams.get(key) ?? 0)
  }
  const { blobGets, ...counters } = stats
  const gets = [...blobGets.values()]
  response.end(
    JSON.stringify({
      ...counters,
      active,
      blobGets: gets.reduce((sum, n) => sum + n, 0),
      distinctBlobs: gets.length,
      mostGetsOfOneBlob: Math.max(0, ...gets),
    }),
  )
}

const server = createServer((request, response) => {
  if (request.url.startsWith('/-/')) {
    control(request.url, response)
    return
  }
  answer(request, response).catch((error) => {
    process.stderr.write(`${request.method} ${request.url}: ${error.stack}\n`)
    response.destroy()
  })
})
server.keepAliveTimeout = 60_000
server.listen(Number(process.argv[3]), '127.0.0.1')
