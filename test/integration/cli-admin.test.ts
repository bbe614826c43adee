// du, purge and scrub as operators type them, against a server in a process of its own; and two servers on one volume.

import { chmod, chown, mkdir, readdir, stat } from 'node:fs/promises'
import { hostname } from 'node:os'
import { join } from 'node:path'
import { describe, expect, it } from 'vitest'
import type { PurgeItem } from '../../src/cache/upkeep/purge-run.ts'
import type { UsageReport } from '../../src/cache/upkeep/usage-report.ts'
import { untilKnown } from '../support/admin.ts'
import type { FakeUpstream } from '../support/fake-upstream.ts'
import { openRaw, rawGet } from '../support/http-client.ts'
import { blobOf, buildImage, type TestImage } from '../support/images.ts'
import { plantBlob } from '../support/planted-volume.ts'
import { configurationFile, Program, upstreamFor } from '../support/program.ts'
import { makeTempDirectory } from '../support/temp-directory.ts'
import { waitFor } from '../support/wait-for.ts'

const NAME = 'library/alpine'
const NOBODY = 65_534

interface Running {
  readonly upstream: FakeUpstream
  readonly server: Program
  readonly url: string
  readonly root: string
  readonly file: string
}

async function serve(root?: string): Promise<Running> {
  const upstream = await upstreamFor()
  const directory = root ?? (await makeTempDirectory())
  const file = await configurationFile(upstream.url, { root: directory })
  const server = new Program(['serve', file])
  const url = await server.url()
  await untilKnown(directory)
  return { upstream, server, url, root: directory, file }
}

async function pull({ upstream, url }: Running, tag: string, image: TestImage): Promise<void> {
  upstream.addImage(NAME, tag, image)
  const paths = [
    `manifests/${tag}`,
    ...[image.config, ...image.layers].map(({ digest }) => `blobs/${digest}`),
  ]
  for (const path of paths) {
    expect((await rawGet(`${url}/v2/${NAME}/${path}`)).status).toBe(200)
  }
}

/** Runs a command to its end. */
async function run(
  ...args: readonly string[]
): Promise<{ code: number | null; stdout: string; stderr: string }> {
  const program = new Program(args)
  const code = await program.exitCode()
  return { code, stdout: program.stdout, stderr: program.stderr }
}

/** Waits until so many blobs are known to be stored. */
async function untilStored({ root }: Running, blobs: number): Promise<UsageReport> {
  return waitFor(`${blobs} blobs`, async () => {
    const { stdout } = await run('du', '--root', root, '--json')
    const report = JSON.parse(stdout) as UsageReport
    return report.blobs === blobs ? report : undefined
  })
}

/** Something is left, and can be removed. */
async function expectRest({ root }: Running): Promise<void> {
  const rest = await run('purge', NAME, '--root', root)
  expect(rest.code).toBe(0)
  expect(rest.stdout).toMatch(/freed .* in [1-9]\d* blobs/)
}

describe('du', () => {
  it('shows what takes the space, in tables, by the configuration of the server', async () => {
    const all = await serve()
    await pull(all, '3', buildImage({ layers: [3_000_000] }))
    const report = await untilStored(all, 3)
    expect(report.repositories).toMatchObject([{ name: NAME, blobs: 3 }])
    const { code, stdout } = await run('du', '--config', all.file)
    expect(code).toBe(0)
    expect(stdout).toMatch(/^ *[\d.]+ MiB {2}on disk of [\d.]+ GiB that it may take$/m)
    expect(stdout).toMatch(/^ *TOTAL {2}ONLY HERE {2}BLOBS {2}UPSTREAM$/m)
    expect(stdout).toMatch(/^ *2\.87 MiB {3}2\.87 MiB {6}3 {2}library\/alpine$/m)
    expect(stdout).toMatch(/^ *2\.87 MiB {6}3 {2}under an hour ago$/m)
    const byAge = await run('du', '--by', 'age', '--root', all.root)
    expect(byAge.stdout.split('\n')[0]?.trim()).toBe('TOTAL  BLOBS  LAST USED')
    expect((await run('du', '--by', 'colour', '--root', all.root)).code).toBe(2)
  })
})

describe('purge', () => {
  it('lists in a dry run what it then removes', async () => {
    const all = await serve()
    const image = buildImage({ layers: [3_000_000] })
    await pull(all, '3', image)
    await untilStored(all, 3)
    const dry = await run('purge', 'alpine:3', '--dry-run', '--root', all.root)
    // The upstream is not Docker Hub: there is no library/ to assume.
    expect(dry).toMatchObject({ code: 0, stdout: 'nothing matches\n' })
    const named = await run('purge', `${NAME}:3`, '--dry-run', '--root', all.root)
    expect(named.code).toBe(0)
    // With its directory and link, which cost something on most file systems.
    expect(named.stdout).toMatch(
      new RegExp(`2\\.8\\d MiB  removed    blob      ${NAME}@${image.layers[0]?.digest}`),
    )
    expect(named.stdout).toContain(`manifest  ${NAME}@${image.manifest.digest} (3)`)
    expect(named.stdout).toMatch(/would free 2\.[89]\d MiB in 3 blobs\n/)
    await untilStored(all, 3)
    const real = await run('purge', `${NAME}:3`, '--config', all.file)
    expect(real.stdout).toBe(named.stdout.replace('would free', 'freed'))
    await untilStored(all, 0)
    expect(all.server.stderr).toContain('purged 3 blobs')
  })

  it('tells the same as JSON, a line for each', async () => {
    const all = await serve()
    await pull(all, '3', buildImage())
    await untilStored(all, 3)
    const { stdout } = await run(
      'purge',
      'library/*',
      '--json',
      '--unused-for',
      '0s',
      '--root',
      all.root,
    )
    const lines = stdout.trimEnd().split('\n')
    const items = lines.slice(0, -1).map((line) => JSON.parse(line) as PurgeItem)
    expect(items.map(({ outcome }) => outcome)).toEqual(['removed', 'removed', 'removed'])
    expect(JSON.parse(lines.at(-1) ?? '')).toMatchObject({ summary: { removed: 3, inUse: 0 } })
  })

  it('says what it keeps for other images, and why', async () => {
    const all = await serve()
    const image = buildImage()
    await pull(all, '3', image)
    all.upstream.addImage('library/other', '3', image)
    expect((await rawGet(`${all.url}/v2/library/other/manifests/3`)).status).toBe(200)
    await untilStored(all, 3)
    const { code, stdout } = await run('purge', NAME, '--root', all.root)
    expect(code).toBe(0)
    expect(stdout).toContain(`kept       blob      ${NAME}@${image.config.digest}\n`)
    expect(stdout).toMatch(/; 2 kept: other stored images name them\n$/)
  })

  it('exits with 3 when something is in use', async () => {
    const all = await serve()
    const image = buildImage({ layers: [16_000_000] })
    await pull(all, '3', image)
    await untilStored(all, 3)
    const reader = await openRaw(`${all.url}/v2/${NAME}/blobs/${image.layers[0]?.digest}`)
    await reader.read(1_000)
    const { code, stdout } = await run(
      'purge',
      '--upstream',
      new URL(all.upstream.url).host,
      '--root',
      all.root,
    )
    expect(code).toBe(3)
    expect(stdout).toContain('1 in use, kept: try again later')
    expect((await reader.finish()).ending).toBe('complete')
  })

  it('exits with 2 when it is not said what to remove, or not rightly', async () => {
    const { root } = await serve()
    const nothing = await run('purge', '--root', root)
    expect(nothing).toMatchObject({ code: 2, stdout: '' })
    expect(nothing.stderr).toContain('nothing selected')
    expect((await run('purge', 'No Name', '--root', root)).stderr).toContain('is no name')
    const age = await run('purge', '--unused-for', 'long', '--root', root)
    expect(age).toMatchObject({ code: 2 })
    expect(age.stderr).toContain('such as 7d')
    expect((await run('purge', 'a', '--unheard-of')).code).toBe(2)
  })
})

describe('scrub', () => {
  it('has everything read again, and says where to look', async () => {
    const all = await serve()
    await pull(all, '3', buildImage())
    await untilStored(all, 3)
    const { code, stdout } = await run('scrub', '--root', all.root)
    expect(code).toBe(0)
    expect(stdout).toContain('the log tells')
    await waitFor('the log to tell', () => all.server.stderr.includes('read 3 stored blobs'))
  })
})

describe('a command without a server', () => {
  it('says so, and exits with 1', async () => {
    const root = await makeTempDirectory()
    for (const args of [['du'], ['purge', NAME], ['scrub']]) {
      const { code, stderr } = await run(...args, '--root', root)
      expect(code).toBe(1)
      expect(stderr).toContain(`no server runs on ${root}`)
    }
    const { server, root: served } = await serve()
    server.kill('SIGKILL')
    await server.exitCode()
    expect((await run('du', '--root', served)).stderr).toContain(`no server runs on ${served}`)
  })

  it('tells of its configuration as serve does', async () => {
    const { code, stderr } = await run('du', '--config', '/nowhere/config.yml')
    expect(code).toBe(2)
    expect(stderr).toContain('cannot read the configuration')
  })

  it('has its exit codes in the help', async () => {
    const { code, stdout } = await run('purge', '--help')
    expect(code).toBe(0)
    expect(stdout).toContain('Exit codes: 0 done;')
  })
})

describe('two servers on one root directory', () => {
  it('are one too many: the second says who has it, and ends with 1; the first serves on', async () => {
    const first = await serve()
    const second = new Program([
      'serve',
      await configurationFile(first.upstream.url, { root: first.root }),
    ])
    expect(await second.exitCode()).toBe(1)
    expect(second.stderr).toContain(
      `another Layover serves from ${first.root} (pid ${first.server.pid} on host ${hostname()})`,
    )
    expect(second.stderr).not.toContain('    at ')
    await pull(first, '3', buildImage())
    await untilStored(first, 3)
    first.server.kill('SIGTERM')
    expect(await first.server.exitCode()).toBe(0)
    await serve(first.root)
  })

  it('do not meet when the first was killed a moment ago', async () => {
    const root = await makeTempDirectory()
    for (let round = 0; round < 5; round++) {
      const { server } = await serve(root)
      server.kill('SIGKILL')
      await server.exited
    }
    const own = (await readdir(join(root, 'layover'))).filter((name) => name.endsWith('.sock'))
    expect(own).toEqual(['admin.sock'])
  })

  it('are told apart when they start at the same moment', async () => {
    const upstream = await upstreamFor()
    const root = await makeTempDirectory()
    const files = await Promise.all(
      Array.from({ length: 3 }, () => configurationFile(upstream.url, { root })),
    )
    const servers = files.map((file) => new Program(['serve', file]))
    const outcomes = await Promise.all(
      servers.map((server) =>
        server.url().then(
          () => 'serves',
          () => 'refused',
        ),
      ),
    )
    expect(outcomes.filter((outcome) => outcome === 'serves')).toHaveLength(1)
    for (const [i, server] of servers.entries()) {
      if (outcomes[i] === 'refused') expect(await server.exitCode()).toBe(1)
    }
  })
})

describe('the root directory', () => {
  it('may have a path that is too long for a socket', async () => {
    const root = join(await makeTempDirectory(), 'x'.repeat(150))
    const all = await serve(root)
    await pull(all, '3', buildImage())
    await untilStored(all, 3)
    const second = new Program(['serve', all.file])
    expect(await second.exitCode()).toBe(1)
    expect(second.stderr).toContain('another Layover serves from')
  })

  it('has folders and files as the umask says, like those of registry', async () => {
    const before = process.umask(0o022)
    try {
      const all = await serve()
      await pull(all, '3', buildImage({ layers: [300_000] }))
      await untilStored(all, 3)
      for (const part of ['docker', 'layover/index']) {
        const entries = await readdir(join(all.root, part), {
          recursive: true,
          withFileTypes: true,
        })
        for (const entry of entries) {
          const mode = (await stat(join(entry.parentPath, entry.name))).mode & 0o777
          const wanted = entry.isDirectory() ? 0o755 : 0o644
          expect([entry.name, mode.toString(8)]).toEqual([entry.name, wanted.toString(8)])
        }
      }
    } finally {
      process.umask(before)
    }
  })

  it.runIf(process.geteuid?.() === 0)(
    'that belongs to another user is refused with one message that says what to do',
    async () => {
      const upstream = await upstreamFor()
      const root = await makeTempDirectory()
      await mkdir(join(root, 'layover/temporary'), { recursive: true })
      await chmod(root, 0o755)
      const file = await configurationFile(upstream.url, { root: join(root, 'volume') })
      await chmod(join(file, '..'), 0o755)
      await chown(file, NOBODY, NOBODY)
      const program = new Program(['serve', file], {}, { uid: NOBODY })
      expect(await program.exitCode()).toBe(1)
      expect(program.stderr.trim().split('\n')).toHaveLength(1)
      expect(program.stderr).toContain('it belongs to another user')
    },
  )
})

describe('a long purge', () => {
  const COUNT = 1_000

  async function serveMany(): Promise<Running> {
    const root = await makeTempDirectory()
    for (let i = 0; i < COUNT; i++) await plantBlob(root, NAME, blobOf(10, i))
    return serve(root)
  }

  it('ends when the one who asked for it is interrupted', async () => {
    const all = await serveMany()
    const program = new Program(['purge', NAME, '--root', all.root])
    await waitFor('the first line', () => program.stdout.includes('removed'))
    program.kill('SIGINT')
    expect(await program.exitCode()).toBe(1)
    await waitFor('the purge to end', () => all.server.stderr.includes('msg="purged '))
    await expectRest(all)
  })

  it('ends when nobody reads on what it prints', async () => {
    const all = await serveMany()
    const program = new Program(['purge', NAME, '--root', all.root])
    program.closeStdout()
    expect(await program.exitCode()).toBe(141)
    expect(program.stderr).toBe('')
    await waitFor('the purge to end', () => all.server.stderr.includes('msg="purged '))
    await expectRest(all)
  })
})
