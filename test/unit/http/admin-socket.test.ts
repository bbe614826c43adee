import { spawn } from 'node:child_process'
import { existsSync } from 'node:fs'
import { mkdir, readdir, rename, stat, symlink, unlink, writeFile } from 'node:fs/promises'
import { createServer, type Server } from 'node:net'
import { hostname } from 'node:os'
import { join } from 'node:path'
import { pino } from 'pino'
import { describe, expect, it, onTestFinished } from 'vitest'
import { systemClock } from '../../../src/clock.ts'
import { askAdmin } from '../../../src/http/admin-client.ts'
import { AdminSocket, VolumeInUseError } from '../../../src/http/admin-socket.ts'
import { makeTempDirectory } from '../../support/temp-directory.ts'
import { waitFor } from '../../support/wait-for.ts'

interface Volume {
  readonly root: string
  readonly own: string
  readonly warnings: string[]
  /** A process that starts, as far as its socket goes. */
  starter(): AdminSocket
}

async function makeVolume(root?: string): Promise<Volume> {
  const rootDirectory = root ?? (await makeTempDirectory())
  const own = join(rootDirectory, 'layover')
  const temporaryDirectory = join(own, 'temporary')
  await mkdir(temporaryDirectory, { recursive: true })
  const warnings: string[] = []
  const logger = pino({ level: 'warn' }, { write: (line: string) => warnings.push(line) })
  const options = { path: join(own, 'admin.sock'), temporaryDirectory, rootDirectory }
  return {
    root: rootDirectory,
    own,
    warnings,
    starter: () => {
      const socket = new AdminSocket({ clock: systemClock, logger }, options)
      onTestFinished(() => socket.stop())
      return socket
    },
  }
}

/** Those in the directory. */
async function sockets({ own }: Volume): Promise<string[]> {
  return (await readdir(own)).filter((name) => name.endsWith('.sock'))
}

async function answerOf(path: string): Promise<string> {
  const answer = await askAdmin(path, { method: 'GET', path: '/hello' })
  let text = ''
  for await (const part of answer.setEncoding('utf8')) text += String(part)
  return text
}

/** Leaves a socket behind whose process was killed. */
async function killedAt(path: string): Promise<void> {
  const code = `require('node:net').createServer().listen(${JSON.stringify(path)}, () => console.log('up'))`
  const child = spawn(process.execPath, ['-e', code], { stdio: ['ignore', 'pipe', 'inherit'] })
  await new Promise((resolve) => child.stdout.once('data', resolve))
  const gone = new Promise((resolve) => child.once('close', resolve))
  child.kill('SIGKILL')
  await gone
  expect(existsSync(path)).toBe(true)
}

/** Something listens there, and answers nothing or something else. */
async function listenAt(path: string, answer?: string): Promise<Server> {
  const server = createServer((socket) => {
    // What is not read is never over.
    socket.on('error', () => undefined).resume()
    if (answer !== undefined) socket.end(answer)
  })
  await new Promise<void>((resolve) => server.listen(path, () => resolve()))
  onTestFinished(() => void server.close())
  return server
}

describe('the admin socket', () => {
  it('is for its owner only, answers, and is gone after the stop', async () => {
    const volume = await makeVolume()
    const socket = volume.starter()
    await socket.claim()
    expect(await answerOf(join(volume.own, 'admin.sock'))).toContain('it is starting, or stopping')
    socket.serve((_, response) => response.end('here'))
    expect(await answerOf(join(volume.own, 'admin.sock'))).toBe('here')
    expect((await stat(join(volume.own, 'admin.sock'))).mode & 0o777).toBe(0o600)
    expect(await sockets(volume)).toEqual(['admin.sock'])
    await socket.stop()
    await socket.stop()
    expect(await sockets(volume)).toEqual([])
    expect(await readdir(join(volume.own, 'temporary'))).toEqual([])
  })

  it('lets nobody else have the directory, and says who has it', async () => {
    const volume = await makeVolume()
    const first = volume.starter()
    await first.claim()
    const refusal = volume.starter().claim()
    await expect(refusal).rejects.toThrow(VolumeInUseError)
    await expect(refusal).rejects.toThrow(`pid ${process.pid} on host ${hostname()}`)
    await expect(refusal).rejects.toThrow(volume.root)
    expect(await sockets(volume)).toEqual(['admin.sock'])
    // The first one is none the worse for it.
    await expect(volume.starter().claim()).rejects.toThrow(VolumeInUseError)
    await first.stop()
    await volume.starter().claim()
    expect(volume.warnings).toEqual([])
  })

  it('is the same through a symbolic link', async () => {
    const volume = await makeVolume()
    await volume.starter().claim()
    const link = join(await makeTempDirectory(), 'link')
    await symlink(volume.root, link)
    const other = await makeVolume(link)
    await expect(other.starter().claim()).rejects.toThrow(VolumeInUseError)
  })

  it('is taken over from a process that was killed', async () => {
    const volume = await makeVolume()
    await killedAt(join(volume.own, 'admin.sock'))
    await volume.starter().claim()
    expect(volume.warnings).toEqual([])
    await expect(volume.starter().claim()).rejects.toThrow(VolumeInUseError)
  })

  it('removes what a process that was killed while it started has left', async () => {
    const volume = await makeVolume()
    await killedAt(join(volume.own, 'admin-00000000-0000-4000-8000-000000000000.sock'))
    await volume.starter().claim()
    expect(await sockets(volume)).toEqual(['admin.sock'])
  })

  it('takes the place of a file that is no socket', async () => {
    const volume = await makeVolume()
    await writeFile(join(volume.own, 'admin.sock'), '')
    await volume.starter().claim()
    expect((await stat(join(volume.own, 'admin.sock'))).isSocket()).toBe(true)
  })

  it('goes to exactly one of many that start at once, on a directory that was left behind', async () => {
    for (let round = 0; round < 10; round++) {
      const volume = await makeVolume()
      if (round % 2 === 1) await killedAt(join(volume.own, 'admin.sock'))
      const starters = Array.from({ length: 6 }, () => volume.starter())
      const results = await Promise.allSettled(starters.map((starter) => starter.claim()))
      const refused = results.flatMap((result) => (result.status === 'rejected' ? [result] : []))
      expect(refused).toHaveLength(5)
      for (const { reason } of refused) expect(reason).toBeInstanceOf(VolumeInUseError)
      expect(volume.warnings).toEqual([])
      expect(await sockets(volume)).toEqual(['admin.sock'])
      for (const starter of starters) await starter.stop()
      expect(await sockets(volume)).toEqual([])
    }
  })

  it('waits for one that has not decided, and gives way when that one wins', async () => {
    const volume = await makeVolume()
    // A larger name than any other: it has to leave, unless it has seen nobody before.
    const rival = join(volume.own, 'admin-ffffffff-ffff-4fff-bfff-ffffffffffff.sock')
    const claim = JSON.stringify({ isDecided: false, pid: 1, host: 'rival' })
    let asked = 0
    const server = await listenAt(
      rival,
      `HTTP/1.1 200 OK\r\nContent-Length: ${claim.length}\r\n\r\n${claim}`,
    )
    server.on('connection', () => asked++)
    const starting = volume.starter().claim()
    const outcome = starting.then(
      () => 'won',
      (error: unknown) => error,
    )
    await waitFor('the rival to be asked twice', () => asked >= 2)
    await rename(rival, join(volume.own, 'admin.sock'))
    const error = await outcome
    expect(error).toBeInstanceOf(VolumeInUseError)
    expect(String(error)).toContain('pid 1 on host rival')
  })

  it('leaves alone what answers something else', async () => {
    const volume = await makeVolume()
    await listenAt(join(volume.own, 'admin.sock'), 'SSH-2.0-other\r\n')
    const refusal = volume.starter().claim()
    await expect(refusal).rejects.toThrow('remove that file')
    expect(existsSync(join(volume.own, 'admin.sock'))).toBe(true)
  })

  it('is reached where its path is too long for a socket', async () => {
    const root = join(await makeTempDirectory(), 'x'.repeat(120))
    const volume = await makeVolume(root)
    const path = join(volume.own, 'admin.sock')
    const socket = volume.starter()
    await socket.claim()
    socket.serve((_, response) => response.end('far away'))
    expect(await answerOf(path)).toBe('far away')
    await expect(volume.starter().claim()).rejects.toThrow(VolumeInUseError)
    await socket.stop()
    expect(await sockets(volume)).toEqual([])
    expect(volume.warnings).toEqual([])
  })

  it('stays when another process has it by now, since somebody had removed ours', async () => {
    const volume = await makeVolume()
    const [first, second] = [volume.starter(), volume.starter()]
    await first.claim()
    await unlink(join(volume.own, 'admin.sock'))
    await second.claim()
    await first.stop()
    expect(await sockets(volume)).toEqual(['admin.sock'])
    await expect(volume.starter().claim()).rejects.toThrow(VolumeInUseError)
  })

  it('is done without where there can be none, with a warning', async () => {
    const volume = await makeVolume()
    // What network file systems and others refuse in their own ways.
    await rename(join(volume.own, 'temporary'), join(volume.own, 'elsewhere'))
    await writeFile(join(volume.own, 'temporary'), '')
    await volume.starter().claim()
    expect(volume.warnings).toHaveLength(1)
    expect(volume.warnings[0]).toContain('no admin socket')
    expect(await sockets(volume)).toEqual([])
  })
})
