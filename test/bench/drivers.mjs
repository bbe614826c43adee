// The clients: wrk for request rates, the C driver beside this file for everything else, and plain Node
// where nothing is measured. All give { seconds, requests, bytes, errors } and times in milliseconds.

import { Agent, request } from 'node:http'
import { writeFile } from 'node:fs/promises'
import path from 'node:path'
import { fileURLToPath } from 'node:url'
import { run } from './processes.mjs'

/** What container clients send. docker-registry's proxy answers 400 to a client that leaves schema 2 out. */
const ACCEPT = [
  'application/vnd.oci.image.index.v1+json',
  'application/vnd.oci.image.manifest.v1+json',
  'application/vnd.docker.distribution.manifest.list.v2+json',
  'application/vnd.docker.distribution.manifest.v2+json',
].join(', ')

const WARM_UP_CONNECTIONS = 4

/** Builds the C driver. Returns undefined where there is no compiler. */
export async function buildDownloader(directory) {
  const source = fileURLToPath(new URL('download.c', import.meta.url))
  const binary = path.join(directory, 'download')
  const built = await run('cc', ['-O2', '-o', binary, source]).catch(() => undefined)
  if (built === undefined) return undefined
  if (built.code !== 0) throw new Error(`cc cannot build ${source}:\n${built.stderr}`)
  return binary
}

/**
 * Downloads with the C driver.
 *
 * @param what.requests how many in all; or `seconds`: for how long
 * @param what.slow { count, bytesPerSecond }: the first `count` connections read at that pace
 */
export async function download(binary, url, what) {
  const { paths, connections = 1, requests, seconds, head = false, slow, limitSeconds = 150 } = what
  const args = ['-c', connections, '-f', paths.file, '-H', `Accept: ${ACCEPT}`, '-T', limitSeconds]
  if (requests !== undefined) args.push('-n', requests)
  if (seconds !== undefined) args.push('-d', seconds)
  if (head) args.push('-X', 'HEAD')
  if (slow !== undefined) args.push('-s', slow.count, '-r', slow.bytesPerSecond)
  const limitMs = (limitSeconds + 20) * 1000
  const { stdout, stderr } = await run(binary, [...args.map(String), new URL(url).host], {
    limitMs,
  })
  if (stdout === '') throw new Error(`the download driver failed: ${stderr}`)
  const { statuses, timedOut, cpuSeconds: _client, ...result } = JSON.parse(stdout)
  const refused = result.requests - (statuses['200'] ?? 0)
  const errors = result.errors + refused + (timedOut ? 1 : 0) + (head ? 0 : tooFew(result, paths))
  return { ...result, errors, statuses }
}

/** A 200 without the bytes is fast, and wrong. */
const tooFew = ({ requests, bytes }, { leastBytes }) => (bytes < requests * leastBytes ? 1 : 0)

/** Asks for the paths in turn for `seconds`, with wrk, in one thread. */
export async function wrk(scriptDirectory, url, { paths, connections, seconds }) {
  const script = path.join(scriptDirectory, 'wrk.lua')
  await writeFile(script, wrkScript(paths.file))
  const args = [
    '-t',
    '1',
    '-c',
    connections,
    '-d',
    `${seconds}s`,
    '--timeout',
    '20s',
    '-s',
    script,
    url,
  ]
  const { stdout, stderr } = await run('wrk', args.map(String))
  const summary = /^SUMMARY (.*)$/m.exec(stdout)?.[1]
  if (summary === undefined) throw new Error(`wrk failed: ${stdout}${stderr}`)
  const result = JSON.parse(summary)
  return { ...result, errors: result.errors + tooFew(result, paths) }
}

const wrkScript = (pathsFile) => `
local requests, turn = {}, 0
function init(args)
  wrk.headers["Accept"] = "${ACCEPT}"
  for path in io.lines("${pathsFile}") do requests[#requests + 1] = wrk.format("GET", path) end
end
function request()
  turn = turn % #requests + 1
  return requests[turn]
end
function done(summary, latency)
  local e = summary.errors
  io.write(string.format(
    'SUMMARY {"seconds":%f,"requests":%d,"bytes":%d,"errors":%d,"totalMs":{"p50":%f,"p99":%f,"max":%f}}\\n',
    summary.duration / 1e6, summary.requests, summary.bytes,
    e.status + e.connect + e.read + e.write + e.timeout,
    latency:percentile(50) / 1e3, latency:percentile(99) / 1e3, latency.max / 1e3))
end
`

/** Asks for every path once and throws the bodies away. Throws unless all answers are 200. */
export async function fetchAll(url, { list }) {
  const agent = new Agent({ keepAlive: true, maxSockets: WARM_UP_CONNECTIONS })
  const left = list.values()
  const worker = async () => {
    for (const pathname of left) await fetchOne(new URL(pathname, url), agent)
  }
  try {
    await Promise.all(Array.from({ length: WARM_UP_CONNECTIONS }, worker))
  } finally {
    agent.destroy()
  }
}

function fetchOne(url, agent) {
  return new Promise((resolve, reject) => {
    const asked = request(url, { agent, headers: { Accept: ACCEPT } }, (response) => {
      response.resume()
      response.once('error', reject)
      response.once('end', () => {
        if (response.statusCode === 200) resolve()
        else reject(new Error(`GET ${url}: ${response.statusCode}`))
      })
    })
    asked.once('error', reject)
    asked.end()
  })
}
