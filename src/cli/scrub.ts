// `layover scrub`: has the server that runs read all stored blobs again, now.

import type { ScrubStatus } from '../cache/upkeep/scrubber.ts'
import { EXIT_OK, type CliDeps } from './deps.ts'
import { askServer, textIn, type ServerOptions } from './server.ts'
import { formatBytes } from './table.ts'

export async function scrub(options: ServerOptions, deps: CliDeps): Promise<number> {
  const question = { method: 'POST', path: '/admin/scrub', body: {} } as const
  return askServer(options, question, deps, async (answer) => {
    const { scrub: status } = JSON.parse(await textIn(answer)) as { scrub: ScrubStatus }
    deps.print(
      `all stored blobs are read again, at ${formatBytes(status.bytesPerSecond)}/s: ` +
        'the log tells what is found, and when it is over\n',
    )
    return EXIT_OK
  })
}
