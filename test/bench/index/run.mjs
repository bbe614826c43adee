// A volume of a million blobs: how long until it serves, what finding everything again costs, what a use costs, how
// long it takes to choose what has to go.   node test/bench/index/run.mjs [--blobs=1000000] [--directory=DIR] [--keep]

import { createHash } from 'node:crypto'
import { existsSync, mkdirSync, readFileSync, rmSync, writeFileSync } from 'node:fs'
import { mkdtemp } from 'node:fs/promises'
import { get } from 'node:http'
import { tmpdir } from 'node:os'
import path from 'node:path'
import { fileURLToPath } from 'node:url'
import { parseArgs } from 'node:util'
import { freePort, startServer, stopServer } from '../processes.mjs'
import { START_ENVIRONMENT, START_FLAGS } from '../start-command.mjs'
import { measureIndex } from './in-process.mjs'

const BLOBS_PER_IMAGE = 10
const MIB = 1024 ** 2
const main = fileURLToPath(new URL('../../../dist/main.js', import.meta.url))

const { values } = parseArgs({
  options: {
    blobs: { type: 'string', default: '1000000' },
    directory: { type: 'string', default: tmpdir() },
    keep: { type: 'boolean', default: false },
  },
})
const count = Number(values.blobs)
if (!Number.isInteger(count) || count < BLOBS_PER_IMAGE) {
  throw new Error(`--blobs: expected a number of at least ${BLOBS_PER_IMAGE}, got ${values.blobs}`)
}

const directory = await mkdtemp(path.join(values.directory, 'layover-index-'))
try {
  const root = path.join(directory, 'data')
  const rows = [['volume', `${count} blobs in ${Math.ceil(count / BLOBS_PER_IMAGE)} repositories`]]
  const made = timed(() => makeVolume(root))
  rows.push(['made in', seconds(made.ms)])

  // The index is lost: it serves at once, and finds everything again meanwhile.
  const lost = await serve(root, { name: 'lost', isDone: (log) => log.includes('"msg":"found ') })
  rows.push(['no index: serves after', ms(lost.readyMs)])
  rows.push(['no index: all found again after', seconds(lost.doneMs)])
  rows.push(['  slowest answer meanwhile', ms(lost.slowestMs)])
  rows.push(['  most memory meanwhile', memory(lost)])

  // While it is read through once, beside the serving, there is a file that tells of it.
  const opening = path.join(root, 'layover/index/opening')
  const again = await serve(root, { name: 'again', isDone: () => !existsSync(opening) })
  rows.push(['index there: serves after', ms(again.readyMs)])
  rows.push(['index there: read through after', seconds(again.doneMs)])
  rows.push(['  slowest answer meanwhile', ms(again.slowestMs)])
  rows.push(['  most memory meanwhile', memory(again)])
  rows.push(...(await measureIndex(root, made.value)))

  for (const [what, figure] of rows) process.stdout.write(`${what.padEnd(36)} ${figure}\n`)
} finally {
  if (!values.keep) rmSync(directory, { recursive: true, force: true })
}

/** @returns digests of some manifests, to ask for */
function makeVolume(directoryOfVolume) {
  const registry = path.join(directoryOfVolume, 'docker/registry/v2')
  const manifests = []
  const put = (bytes) => {
    const hex = createHash('sha256').update(bytes).digest('hex')
    write(path.join(registry, 'blobs/sha256', hex.slice(0, 2), hex, 'data'), bytes)
    return hex
  }
  for (let image = 0; image * BLOBS_PER_IMAGE < count; image++) {
    const repository = path.join(registry, `repositories/team-${image % 1000}/image-${image}`)
    const layers = Array.from({ length: BLOBS_PER_IMAGE - 1 }, (_, layer) => {
      const bytes = Buffer.from(`layer ${layer} of image ${image}`)
      const hex = put(bytes)
      write(path.join(repository, '_layers/sha256', hex, 'link'), `sha256:${hex}`)
      return { mediaType: 'application/octet-stream', digest: `sha256:${hex}`, size: bytes.length }
    })
    const mediaType = 'application/vnd.oci.image.manifest.v1+json'
    const [config, ...rest] = layers
    const manifest = JSON.stringify({ schemaVersion: 2, mediaType, config, layers: rest })
    const hex = put(Buffer.from(manifest))
    write(path.join(repository, '_manifests/revisions/sha256', hex, 'link'), `sha256:${hex}`)
    if (manifests.length < 1000) {
      manifests.push({ repository: `team-${image % 1000}/image-${image}`, digest: `sha256:${hex}` })
    }
  }
  return manifests
}

function write(file, bytes) {
  mkdirSync(path.dirname(file), { recursive: true })
  writeFileSync(file, bytes)
}

/** Starts the server, and stops it when it is done with what is measured. */
async function serve(root, { name, isDone }) {
  const port = await freePort()
  const config = path.join(directory, 'config.yml')
  const log = path.join(directory, `${name}.log`)
  writeFileSync(
    config,
    `version: 0.1
storage: { filesystem: { rootdirectory: ${root} } }
http: { addr: 127.0.0.1:${port} }
log: { formatter: json, accesslog: { disabled: true } }
proxy: { remoteurl: 'http://127.0.0.1:9', ttl: 0 }
`,
  )
  const startedMs = performance.now()
  const server = startServer(process.execPath, [...START_FLAGS, main, 'serve', config], {
    logFile: log,
    env: START_ENVIRONMENT,
  })
  let [readyMs, slowestMs, ownBytes] = [undefined, 0, 0]
  try {
    for (;;) {
      const askedMs = performance.now()
      const isAnswered = await answers(port)
      if (isAnswered && readyMs === undefined) readyMs = performance.now() - startedMs
      else if (isAnswered) slowestMs = Math.max(slowestMs, performance.now() - askedMs)
      if (server.exitCode !== null) throw new Error(readFileSync(log, 'utf8'))
      ownBytes = Math.max(ownBytes, residentBytes(server.pid, 'RssAnon'))
      if (readyMs !== undefined && isDone(readFileSync(log, 'utf8'))) break
      await pause(readyMs === undefined ? 5 : 50)
    }
    const doneMs = performance.now() - startedMs
    const peakBytes = residentBytes(server.pid, 'VmHWM')
    return { readyMs, slowestMs, doneMs, ownBytes, peakBytes }
  } finally {
    await stopServer(server)
  }
}

/** Whether the registry's base answers. */
function answers(port) {
  return new Promise((resolve) => {
    get({ port, path: '/v2/', agent: false }, (response) => {
      response.resume()
      response.on('end', () => resolve(response.statusCode === 200))
    }).on('error', () => resolve(false))
  })
}

function residentBytes(pid, what) {
  const status = readFileSync(`/proc/${pid}/status`, 'utf8')
  const [, kib = '0'] = new RegExp(`^${what}:\\s+(\\d+)`, 'm').exec(status) ?? []
  return Number(kib) * 1024
}

/** The rest is mapped from files, the index above all: the system takes it back when it is short of memory. */
function memory({ ownBytes, peakBytes }) {
  return `${mib(peakBytes)}, of which ${mib(ownBytes)} are its own`
}

function timed(action) {
  const startedMs = performance.now()
  const value = action()
  return { value, ms: performance.now() - startedMs }
}

function pause(durationMs) {
  return new Promise((resolve) => {
    setTimeout(resolve, durationMs)
  })
}

function ms(value) {
  return `${Math.round(value)} ms`
}

function seconds(value) {
  return `${(value / 1000).toFixed(1)} s`
}

function mib(bytes) {
  return `${Math.round(bytes / MIB)} MiB`
}
