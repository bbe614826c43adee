// The servers that are compared, each with the settings that suit it best, in front of the same origin,
// and the origin itself as the target `direct`.

import { mkdir, readdir, rm, stat, writeFile } from 'node:fs/promises'
import { createRequire } from 'node:module'
import path from 'node:path'
import { fileURLToPath } from 'node:url'
import { fetchAll } from './drivers.mjs'
import { untilIdle } from './measure.mjs'
import { freePort, run, startServer, stopServer, untilItAnswers } from './processes.mjs'
import { START_ENVIRONMENT, START_FLAGS } from './start-command.mjs'

/** A medium blob of the data set is one. */
const LARGE_FILE_MIN_BYTES = 1_000_000

const root = fileURLToPath(new URL('../../', import.meta.url))
const layoverMain = path.join(root, 'dist', 'main.js')

const layover = {
  name: 'layover',
  missing: 'dist/main.js is not there: npm run build',
  settings: 'one process, access log on in its default form, written to a file',
  async version() {
    const built = await stat(layoverMain).catch(() => undefined)
    return built && createRequire(import.meta.url)(path.join(root, 'package.json')).version
  },
  config: ({ cache, port, upstream }) => `version: 0.1
storage:
  filesystem:
    rootdirectory: ${cache}
http:
  addr: 127.0.0.1:${port}
proxy:
  remoteurl: http://${upstream}
  tagttl: 1h
`,
  env: START_ENVIRONMENT,
  command: (configFile) => [process.execPath, [...START_FLAGS, layoverMain, 'serve', configFile]],
}

const dockerRegistry = {
  name: 'docker-registry',
  missing: 'docker-registry is not installed (Debian: docker-registry)',
  settings: 'proxy mode, access log off, descriptor cache in memory, Go runtime as delivered',
  async version() {
    const { stdout } = await run('docker-registry', ['--version'])
    return stdout.trim().split(' ').at(-1)
  },
  config: ({ cache, port, upstream }) => `version: 0.1
log:
  level: error
  accesslog:
    disabled: true
storage:
  filesystem:
    rootdirectory: ${cache}
  delete:
    enabled: true
  cache:
    blobdescriptor: inmemory
http:
  addr: 127.0.0.1:${port}
  secret: bench
proxy:
  remoteurl: http://${upstream}
`,
  env: { OTEL_TRACES_EXPORTER: 'none' },
  command: (configFile) => ['docker-registry', ['serve', configFile]],
}

const nginx = {
  name: 'nginx',
  missing: 'nginx is not installed (Debian: nginx-light)',
  settings: 'proxy_cache, one worker per core, access log off, sendfile, proxy_cache_lock on',
  async version() {
    const { stderr } = await run('nginx', ['-v'])
    return stderr.trim().split('/').at(-1)
  },
  config: ({ cache, directory, port, upstream }) => `
${process.getuid() === 0 ? 'user root;' : '# workers run as whoever started this'}
worker_processes auto;
daemon off;
pid ${directory}/nginx.pid;
error_log ${directory}/error.log warn;
worker_rlimit_nofile 16384;
events { worker_connections 4096; }
http {
  access_log off;
  sendfile on;
  sendfile_max_chunk 2m;
  tcp_nopush on;
  tcp_nodelay on;
  open_file_cache max=10000;
  keepalive_requests 1000000;
  keepalive_timeout 300;
${['client_body', 'proxy', 'fastcgi', 'uwsgi', 'scgi']
  .map((kind) => `  ${kind}_temp_path ${directory}/${kind};`)
  .join('\n')}
  proxy_cache_path ${cache} levels=1:2 keys_zone=content:50m max_size=20g inactive=7d
                   use_temp_path=off;
  upstream origin {
    server ${upstream};
    keepalive 64;
  }
  server {
    listen 127.0.0.1:${port};
    proxy_http_version 1.1;
    proxy_set_header Connection "";
    proxy_set_header Host ${upstream};
    proxy_cache content;
    proxy_cache_key $uri;
    proxy_cache_lock on;
    proxy_cache_lock_timeout 600s;
    proxy_cache_lock_age 600s;
    proxy_cache_use_stale error timeout updating;
    proxy_max_temp_file_size 4096m;
    proxy_buffers 16 128k;
    proxy_buffer_size 16k;
    proxy_busy_buffers_size 1m;
    location = /v2/ {
      proxy_cache off;
      proxy_pass http://origin;
    }
    location ~ ^/v2/.+/(blobs|manifests)/sha256: {
      proxy_cache_valid 200 7d;
      proxy_pass http://origin;
    }
    location ~ ^/v2/.+/manifests/ {
      proxy_cache_valid 200 1h;
      proxy_pass http://origin;
    }
  }
}
`,
  command: (configFile, directory) => [
    'nginx',
    ['-c', configFile, '-p', directory, '-e', path.join(directory, 'error.log')],
  ],
}

export const KINDS = [layover, dockerRegistry, nginx]

/** One server with its cache directory, started anew as often as the scenarios need it cold. */
export class Target {
  #kind
  #directory
  #origin
  #priming
  #port
  #child
  #warm = new Set()
  #cachesUsed = 0

  /** @param deps.priming paths pulled after each start, so that no server is measured on its first steps */
  constructor(kind, { directory, origin, priming }) {
    this.#kind = kind
    this.#directory = path.join(directory, kind.name)
    this.#origin = origin
    this.#priming = priming
  }

  get name() {
    return this.#kind.name
  }

  get url() {
    return `http://127.0.0.1:${this.#port}`
  }

  get pid() {
    return this.#child.pid
  }

  get logFile() {
    return path.join(this.#directory, 'log')
  }

  /** Pulls everything in these sets until the server has it. What is warm already is not asked for again. */
  async warm(pathSets) {
    if (this.#child === undefined) await this.#start()
    for (const paths of pathSets) {
      if (this.#warm.has(paths)) continue
      // Twice: docker-registry stores behind the client's back, and not each time it is asked.
      for (let pass = 0; pass < 2; pass++) {
        await fetchAll(this.url, paths)
        await this.untilIdle()
      }
      this.#warm.add(paths)
    }
  }

  /** The server anew with an empty cache, and used to work by a few pulls of something else. */
  async chill() {
    await this.stop()
    await removeLargeFiles(this.#cache)
    this.#cachesUsed++
    // What one target wrote must not be written back while the next one is measured.
    await run('sync')
    await this.#start()
    await fetchAll(this.url, this.#priming)
    await this.untilIdle()
  }

  untilIdle() {
    return untilIdle(this.pid, () => this.#origin.active())
  }

  async stop() {
    if (this.#child !== undefined) await stopServer(this.#child)
    this.#child = undefined
    this.#warm.clear()
  }

  get #cache() {
    return path.join(this.#directory, `cache-${this.#cachesUsed}`)
  }

  async #start() {
    await mkdir(this.#cache, { recursive: true })
    this.#port ??= await freePort()
    const configFile = path.join(this.#directory, 'config')
    const upstream = new URL(this.#origin.url).host
    await writeFile(
      configFile,
      this.#kind.config({
        directory: this.#directory,
        cache: this.#cache,
        port: this.#port,
        upstream,
      }),
    )
    const [command, args] = this.#kind.command(configFile, this.#directory)
    const { logFile } = this
    this.#child = startServer(command, args, { logFile, env: this.#kind.env })
    await untilItAnswers(this.#child, `${this.url}/v2/`, logFile)
  }
}

/**
 * Makes room on the disk. The thousands of small files stay until all is over: ext4 does not use inodes again that were
 * freed in the last minutes, and passes over them one by one, so whoever is measured after an emptied cache looks slow.
 */
async function removeLargeFiles(directory) {
  const entries = await readdir(directory, { recursive: true, withFileTypes: true }).catch(() => [])
  for (const entry of entries.filter((each) => each.isFile())) {
    const file = path.join(entry.parentPath ?? entry.path, entry.name)
    const { size } = await stat(file)
    if (size >= LARGE_FILE_MIN_BYTES) await rm(file)
  }
}

/** The upstream; as a target, what there is to be had without a cache in between. */
export class Origin {
  name = 'direct'
  #child
  #url

  async start(datasetDirectory, directory) {
    const program = fileURLToPath(new URL('origin.mjs', import.meta.url))
    const logFile = path.join(directory, 'origin.log')
    const port = await freePort()
    this.#url = `http://127.0.0.1:${port}`
    const args = [program, datasetDirectory, String(port)]
    this.#child = startServer(process.execPath, args, { logFile })
    await untilItAnswers(this.#child, `${this.#url}/v2/`, logFile)
  }

  get url() {
    return this.#url
  }

  get pid() {
    return this.#child.pid
  }

  /** It has no cache to be filled or emptied, and runs as long as the others need it. */
  async warm() {}
  async chill() {}
  async stop() {}

  untilIdle() {
    return untilIdle(this.pid, () => this.active())
  }

  /** @param throttle { rate, connectionRate } in bytes/s, { latencyMs } before each answer; absent: none */
  async throttle(throttle) {
    await this.#control(`throttle?${new URLSearchParams(throttle)}`)
  }

  async resetStats() {
    await this.#control('reset')
  }

  /** @returns what origin.mjs counted since the last reset */
  stats() {
    return this.#control('stats')
  }

  async active() {
    return (await this.stats()).active
  }

  async #control(action) {
    const response = await fetch(`${this.#url}/-/${action}`)
    return response.json()
  }
}
