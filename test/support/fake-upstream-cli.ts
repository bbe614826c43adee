// The fake upstream by hand: `npm run fake-upstream -- --help`. It serves a few images, with the faults that
// the call names, and takes further ones while it runs, by URL, at a port beside.

import { createServer, type IncomingMessage } from 'node:http'
import { Command } from 'commander'
import { FAULT_NOTES, NAMED_FAULTS, type Fault, type FaultName } from './fake-upstream-faults.ts'
import type { RequestKind } from './fake-upstream-requests.ts'
import { startFakeUpstream, type FakeUpstream } from './fake-upstream.ts'
import { buildImage, buildIndex } from './images.ts'

const KINDS = [
  'manifest-tag',
  'manifest-digest',
  'blob',
  'cdn',
  'tags',
  'referrers',
  'token',
  'ping',
] as const satisfies readonly RequestKind[]

interface Options {
  readonly port: string
  readonly controlPort: string
  readonly auth: 'none' | 'bearer' | 'basic'
  readonly username?: string
  readonly password?: string
  readonly redirectBlobs?: true
  readonly image: readonly string[]
  readonly fault: readonly string[]
}

interface PlannedByHand {
  readonly kind: RequestKind | undefined
  readonly fault: Fault
  readonly times: number | undefined
}

const HELP = `
A fault is [kind:]name[*times], or [kind:]{…} with the fields of Fault (fake-upstream-faults.ts):
  --fault hang --fault 'blob:cut-at-64k*1' --fault 'token:{"status":429}'
Kinds: ${KINDS.join(', ')}. Without a kind every answer has it.

While it runs, at the control port:
  curl 'http://127.0.0.1:5002/?fault=blob:cut-at-64k'     one more fault
  curl 'http://127.0.0.1:5002/?clear'                     none any more
  curl 'http://127.0.0.1:5002/'                           what was asked so far

Names:
${Object.entries(FAULT_NOTES)
  .map(([name, about]) => `  ${name.padEnd(26)} ${about}`)
  .join('\n')}
`

/** @throws {TypeError} what cannot be understood, with what could */
export function parseFault(text: string): PlannedByHand {
  const kind = KINDS.find((one) => text.startsWith(`${one}:`))
  const rest = kind ? text.slice(kind.length + 1) : text
  const [, name = '', times] = /^(.*?)(?:\*(\d+))?$/s.exec(rest) ?? []
  return { kind, fault: faultOf(name), times: times === undefined ? undefined : Number(times) }
}

function faultOf(name: string): Fault {
  if (name in NAMED_FAULTS) return NAMED_FAULTS[name as FaultName]
  try {
    if (name.startsWith('{')) return JSON.parse(name) as Fault
  } catch (error) {
    throw new TypeError(`${name} is not JSON`, { cause: error })
  }
  throw new TypeError(`there is no fault ${name}: --help lists them`)
}

function add(upstream: FakeUpstream, text: string): void {
  const { fault, kind, times } = parseFault(text)
  upstream.fault(kind ? { kind } : {}, fault, times === undefined ? {} : { times })
}

/** `name:tag` or `name:tag=bytes,bytes`: an image with layers of these sizes, for two platforms. */
function addImage(upstream: FakeUpstream, text: string): void {
  const [reference = '', sizes = '1000000,20000'] = text.split('=')
  const [name = '', tag = 'latest'] = reference.split(':')
  const layers = sizes.split(',').map(Number)
  const images = ['amd64', 'arm64'].map((architecture) =>
    buildImage({ layers, architecture, seed: `${reference}/${architecture}` }),
  )
  upstream.addImage(name, tag, buildIndex(images))
}

function control(upstream: FakeUpstream, { url = '/' }: IncomingMessage): string {
  const { searchParams } = new URL(url, 'http://control.invalid')
  if (searchParams.has('clear')) upstream.clearFaults()
  for (const text of searchParams.getAll('fault')) add(upstream, text)
  const lines = upstream.requests.map(
    ({ method, path, status }) => `${status ?? '---'} ${method} ${path}\n`,
  )
  return lines.join('')
}

const DEFAULT_IMAGE = 'library/alpine:3.20'

async function run(options: Options): Promise<void> {
  const { auth, fault, image, password, redirectBlobs, username } = options
  const upstream = await startFakeUpstream({
    auth,
    port: Number(options.port),
    ...(username !== undefined &&
      password !== undefined && { credentials: { username, password } }),
    ...(redirectBlobs && { redirectBlobs }),
  })
  const images = image.length === 0 ? [DEFAULT_IMAGE] : image
  for (const text of images) addImage(upstream, text)
  for (const text of fault) add(upstream, text)
  const server = createServer((request, response) => {
    try {
      response.end(control(upstream, request))
    } catch (error) {
      response.writeHead(400).end(`${String(error)}\n`)
    }
  })
  server.listen(Number(options.controlPort), '127.0.0.1')
  process.stdout.write(`${upstream.url} has ${images.join(' ')}\n`)
  process.stdout.write(`faults: http://127.0.0.1:${options.controlPort}/?fault=…\n`)
}

function collected(value: string, before: readonly string[]): readonly string[] {
  return [...before, value]
}

export const program = new Command('fake-upstream')
  .description('A registry that is as wrong, slow or absent as you want it to be')
  .option('--port <port>', 'where the registry is, at 127.0.0.1', '5001')
  .option('--control-port <port>', 'where faults are taken while it runs', '5002')
  .option('--auth <scheme>', 'none, bearer or basic', 'none')
  .option('--username <name>', 'who gets a token')
  .option('--password <password>', 'with which password')
  .option('--redirect-blobs', 'blobs are at another port, by URLs that work once')
  .option(
    '--image <name:tag=sizes>',
    `an image; again for more (default: ${DEFAULT_IMAGE})`,
    collected,
    [],
  )
  .option('--fault <fault>', 'a fault; again for more', collected, [])
  .addHelpText('after', HELP)
  .action(run)
