// The program as operators run it: a process of its own, with arguments, variables and signals.

import { once } from 'node:events'
import { closeSync, existsSync, openSync } from 'node:fs'
import { get, type IncomingMessage } from 'node:http'
import { createServer } from 'node:net'
import { writeFile } from 'node:fs/promises'
import { join } from 'node:path'
import { describe, expect, it, onTestFinished } from 'vitest'
import { openRaw, rawGet } from '../support/http-client.ts'
import { blobOf } from '../support/images.ts'
import { configurationFile, Program, upstreamFor } from '../support/program.ts'
import { makeTempDirectory } from '../support/temp-directory.ts'
import { waitFor, within } from '../support/wait-for.ts'

const MIB = 1024 * 1024

/** All that is said about what is served, where, and how to use it. */
async function startLine(program: Program): Promise<string> {
  const lines = await waitFor('the start line', () => {
    const whole = program.stderr.split('\n').slice(0, -1)
    const found = whole.filter((line) => line.includes('Registry configured as a proxy cache to'))
    return found.length > 0 && found
  })
  expect(lines.length).toBe(1)
  return lines[0] ?? ''
}

describe('serve', () => {
  it('says in one line what it serves, where, and how to use it', async () => {
    const upstream = await upstreamFor()
    const root = await makeTempDirectory()
    const program = new Program(['serve', await configurationFile(upstream.url, { root })])
    const url = await program.url()
    expect((await rawGet(`${url}/v2/`)).status).toBe(200)
    const line = await startLine(program)
    expect(line).toContain(
      `proxy cache to ${upstream.url}: serving on ${url}, keeping data in ${root}.`,
    )
    expect(line).toContain(`registry-mirrors\\": [\\"${url}\\"]`)
    expect(program.stderr).not.toContain('a-secret')
    program.kill('SIGTERM')
    expect(await program.exitCode()).toBe(0)
    expect(program.stdout).toContain('"GET /v2/ HTTP/1.1" 200 2')
  })

  it('names http.host and the prefix, where clients reach it by these', async () => {
    const upstream = await upstreamFor()
    const program = new Program(['serve', await configurationFile(upstream.url)], {
      REGISTRY_HTTP_HOST: 'https://cache.example:8443/',
      REGISTRY_HTTP_PREFIX: '/hub/',
    })
    const line = await startLine(program)
    expect(line).toContain('serving on https://cache.example:8443/hub, keeping')
    expect(line).toContain('registry-mirrors\\": [\\"https://cache.example:8443/hub\\"]')
  })

  it('may listen on a unix socket, at which no client is pointed', async () => {
    const upstream = await upstreamFor()
    const socketPath = join(await makeTempDirectory(), 'layover.sock')
    const file = await configurationFile(upstream.url)
    const variables = { REGISTRY_HTTP_NET: 'unix', REGISTRY_HTTP_ADDR: socketPath }
    const program = new Program(['serve', file], variables)
    const line = await startLine(program)
    expect(line).toContain(`serving on unix:${socketPath}, keeping`)
    expect(line).not.toContain('registry-mirrors')
    const [answer] = (await once(get({ socketPath, path: '/v2/' }), 'response')) as [
      IncomingMessage,
    ]
    answer.resume()
    expect(answer.statusCode).toBe(200)
    expect(await new Program(['health', file], variables).exitCode()).toBe(0)
  })

  it('takes the file that REGISTRY_CONFIGURATION_PATH names', async () => {
    const upstream = await upstreamFor()
    const program = new Program(['serve'], {
      REGISTRY_CONFIGURATION_PATH: await configurationFile(upstream.url),
    })
    await program.url()
    expect(program.stderr).toContain(`proxy cache to ${upstream.url}`)
  })

  it('is what is done without a command, and its file may be named by --config', async () => {
    const upstream = await upstreamFor()
    const program = new Program(['--config', await configurationFile(upstream.url)])
    const other = new Program([await configurationFile(upstream.url)])
    await Promise.all([program.url(), other.url()])
  })

  it('starts while the upstream is down', async () => {
    const upstream = await upstreamFor()
    await upstream.down()
    const program = new Program(['serve', await configurationFile(upstream.url)])
    expect((await rawGet(`${await program.url()}/v2/`)).status).toBe(200)
  })

  it('heeds REGISTRY_ variables', async () => {
    const upstream = await upstreamFor()
    const program = new Program(['serve', await configurationFile('http://127.0.0.1:1')], {
      REGISTRY_PROXY_REMOTEURL: upstream.url,
      REGISTRY_LOG_FORMATTER: 'json',
    })
    await program.url()
    expect(program.stderr).toContain(`proxy cache to ${upstream.url}`)
    expect(program.stderr.startsWith('{"level":"')).toBe(true)
  })

  it('says that the port is in use, and what to do, and exits with 1', async () => {
    const server = createServer().listen(0, '127.0.0.1')
    onTestFinished(() => void server.close())
    const port = await waitFor('a port', () => {
      const address = server.address()
      return typeof address === 'object' && address ? address.port : undefined
    })
    const file = await configurationFile('http://127.0.0.1:1')
    const program = new Program(['serve', file], { REGISTRY_HTTP_ADDR: `127.0.0.1:${port}` })
    expect(await program.exitCode()).toBe(1)
    expect(program.stderr).toContain(`cannot listen on 127.0.0.1:${port}`)
    expect(program.stderr).toContain('another process uses it')
    expect(program.stderr).not.toContain('    at ')
  })

  it('says which file it cannot read, and exits with 2', async () => {
    const program = new Program(['serve', '/nowhere/config.yml'])
    expect(await program.exitCode()).toBe(2)
    expect(program.stderr).toContain('cannot read the configuration /nowhere/config.yml')
  })

  it('starts with an index that is garbage', async () => {
    const upstream = await upstreamFor()
    const root = await makeTempDirectory()
    const file = await configurationFile(upstream.url, { root })
    const first = new Program(['serve', file])
    await first.url()
    first.kill('SIGTERM')
    await first.exitCode()
    await writeFile(join(root, 'layover/index/usage.mdb'), 'x'.repeat(100_000))
    const last = new Program(['serve', file])
    expect((await rawGet(`${await last.url()}/v2/`)).status).toBe(200)
  })

  it('goes on after kill -9 where it stopped', async () => {
    const upstream = await upstreamFor()
    const blob = blobOf(8 * MIB, 'killed')
    upstream.addBlob('library/alpine', blob)
    const gate = upstream.gate({ kind: 'blob' }, { afterBytes: 4 * MIB })
    const file = await configurationFile(upstream.url)
    const first = new Program(['serve', file])
    const path = `/v2/library/alpine/blobs/${blob.digest}`
    const client = await openRaw((await first.url()) + path)
    expect((await client.read(4 * MIB)).length).toBe(4 * MIB)
    first.kill('SIGKILL')
    await first.exitCode()
    expect((await client.finish()).ending).not.toBe('complete')
    gate.release()
    upstream.reset()
    const second = new Program(['serve', file])
    const answer = await rawGet((await second.url()) + path)
    expect(answer.body.equals(blob.bytes)).toBe(true)
    expect(upstream.bytesSent(blob.digest)).toBe(4 * MIB)
  })
})

describe('SIGTERM', () => {
  it('lets a download that is being served end, and exits with 0', async () => {
    const upstream = await upstreamFor()
    const blob = blobOf(2 * MIB, 'drain')
    upstream.addBlob('library/alpine', blob)
    const gate = upstream.gate({ kind: 'blob' }, { afterBytes: MIB })
    const program = new Program(['serve', await configurationFile(upstream.url)])
    const client = await openRaw(`${await program.url()}/v2/library/alpine/blobs/${blob.digest}`)
    program.kill('SIGTERM')
    // As from npm, after Ctrl-C: once more, a moment later.
    await waitFor('the program to say so', () => program.stderr.includes('SIGTERM: finishing'))
    program.kill('SIGINT')
    gate.release()
    // The client keeps its connection: that must not hold up the stop.
    expect((await client.read(2 * MIB)).equals(blob.bytes)).toBe(true)
    expect(await program.exitCode()).toBe(0)
    expect(program.stderr).toContain('stopped')
    client.leave()
  })

  it('sent again ends it at once', async () => {
    const upstream = await upstreamFor()
    const blob = blobOf(2 * MIB, 'at once')
    upstream.addBlob('library/alpine', blob)
    upstream.gate({ kind: 'blob' }, { afterBytes: MIB })
    const program = new Program(['serve', await configurationFile(upstream.url)])
    const client = await openRaw(`${await program.url()}/v2/library/alpine/blobs/${blob.digest}`)
    program.kill('SIGTERM')
    await waitFor('the program to say so', () => program.stderr.includes('SIGTERM: finishing'))
    // What comes within a second is the same signal, by another way.
    await waitFor('the program to be gone', () => {
      program.kill('SIGTERM')
      return program.isGone
    })
    expect(await program.exitCode()).toBe(143)
    client.leave()
  })
})

describe.runIf(existsSync('/dev/full'))('a log on a disk that is full', () => {
  it.each([
    ['the access log', 1],
    ['the log', 2],
  ])('does not keep the program from ending: %s', async (_what, descriptor) => {
    const full = openSync('/dev/full', 'w')
    onTestFinished(() => closeSync(full))
    const socketPath = join(await makeTempDirectory(), 'layover.sock')
    const file = await configurationFile((await upstreamFor()).url)
    const stdio = [0, 1, 2].map((each) => (each === descriptor ? full : 'ignore'))
    const variables = { REGISTRY_HTTP_NET: 'unix', REGISTRY_HTTP_ADDR: socketPath }
    const program = new Program(['serve', file], variables, { stdio })
    await waitFor('it to serve', () => existsSync(socketPath))
    const [answer] = (await once(get({ socketPath, path: '/v2/' }), 'response')) as [
      IncomingMessage,
    ]
    answer.resume()
    expect(answer.statusCode).toBe(200)
    program.kill('SIGTERM')
    expect(await program.exitCode()).toBe(0)
  })
})

describe('a log whose reader has gone', () => {
  it('does not keep the program from ending', async () => {
    const program = new Program(['serve', await configurationFile((await upstreamFor()).url)])
    const url = await program.url()
    program.closeStderr()
    // Each of these is a line in the log.
    for (let line = 0; line < 3; line++) {
      expect((await rawGet(`${url}/v2/library/alpine/manifests/${line}`)).status).toBe(404)
      expect((await rawGet(`${url}/v2/?ns=a.example&ns=b.example`)).status).toBe(404)
    }
    program.kill('SIGTERM')
    expect(await program.exitCode()).toBe(0)
  })
})

describe('an access log that nobody reads', () => {
  it('loses lines beyond some megabytes, and keeps neither clients nor the end waiting', async () => {
    const upstream = await upstreamFor()
    const file = await configurationFile(upstream.url)
    const program = new Program(['serve', file])
    const url = await program.url()
    program.stopReadingStdout()
    // What is printed of it is as long.
    const headers = { 'User-Agent': 'x'.repeat(14_000) }
    for (let lines = 0; lines < 700; lines++) {
      expect((await rawGet(`${url}/v2/`, { headers })).status).toBe(200)
    }
    await waitFor('the program to say so', () => {
      return program.stderr.includes('lines of the access log are dropped')
    })
    program.kill('SIGTERM')
    await within('the program to exit', program.gone)
    expect(program.stderr).toContain('stopped')
    const next = new Program(['serve', file])
    expect((await rawGet(`${await next.url()}/v2/`)).status).toBe(200)
  })
})

describe('check-config', () => {
  it('prints the effective configuration, without secrets, and exits with 0', async () => {
    const program = new Program(['check-config', await configurationFile('http://127.0.0.1:1')])
    expect(await program.exitCode()).toBe(0)
    expect(program.stdout).toContain('remoteurl: http://127.0.0.1:1')
    expect(program.stdout).toContain('tagttl: 1m0s')
    expect(program.stdout + program.stderr).not.toContain('a-secret')
  })

  it.each([
    ['no file', {}],
    ['an empty name of a file', { REGISTRY_CONFIGURATION_PATH: '' }],
  ])(
    'without arguments and with %s in the environment it is of proxy.yml',
    async (_what, named) => {
      const program = new Program(['check-config'], named)
      expect(await program.exitCode()).toBe(0)
      expect(program.stdout).toContain('rootdirectory: ./data\n')
      expect(program.stdout).toContain('addr: :5000\n')
    },
  )

  it('prints every mistake with its path, and exits with 2', async () => {
    const more = 'log: {level: loud}\ncatalog: {maxentries: many}\n'
    const program = new Program(['check-config', await configurationFile('nonsense', { more })])
    expect(await program.exitCode()).toBe(2)
    for (const path of ['log.level', 'catalog.maxentries', 'proxy.remoteurl']) {
      expect(program.stderr).toContain(path)
    }
    expect(program.stdout).toBe('')
  })
})

describe('health', () => {
  it('exits with 0 while the server of the same configuration answers, else with 1', async () => {
    const upstream = await upstreamFor()
    const { port } = new URL(
      await new Program(['serve', await configurationFile(upstream.url)]).url(),
    )
    const variables = { REGISTRY_HTTP_ADDR: `:${port}` }
    const alive = new Program(['health', await configurationFile(upstream.url)], variables)
    expect(await alive.exitCode()).toBe(0)

    const dead = new Program(['health', await configurationFile(upstream.url)], {
      REGISTRY_HTTP_ADDR: ':9',
    })
    expect(await dead.exitCode()).toBe(1)
    expect(dead.stderr).toContain('not alive')
  })
})

describe('the other commands', () => {
  it('print the version', async () => {
    for (const args of [['version'], ['--version']]) {
      const program = new Program(args)
      expect(await program.exitCode()).toBe(0)
      expect(program.stdout).toMatch(/\d+\.\d+\.\d+\n$/)
    }
  })

  it('refuse what nobody knows with 2', async () => {
    const program = new Program(['serve', '--unheard-of'])
    expect(await program.exitCode()).toBe(2)
    expect(program.stderr).toContain('--unheard-of')
  })
})
