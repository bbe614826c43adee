// `layover health`: whether the server that runs with a configuration is alive.

import { get } from 'node:http'
import { load } from './configuration.ts'
import { EXIT_FAILURE, EXIT_OK, EXIT_USAGE, type CliDeps } from './deps.ts'

/** Shorter than the 5 s that the Dockerfile gives the check. */
const HEALTH_TIMEOUT_MS = 4_000

/** For a container's HEALTHCHECK: the image has no curl. */
export async function askHealth(file: string | undefined, deps: CliDeps): Promise<number> {
  const loaded = await load(file, deps)
  if (!loaded) return EXIT_USAGE
  const { listen } = loaded.configuration.http
  const target =
    'path' in listen
      ? { socketPath: listen.path }
      : { host: localHost(listen.host), port: listen.port }
  return new Promise((resolve) => {
    const asking = get({ ...target, path: '/livez', timeout: HEALTH_TIMEOUT_MS }, (response) => {
      response.resume()
      resolve(response.statusCode === 200 ? EXIT_OK : EXIT_FAILURE)
    })
    asking.once('timeout', () => asking.destroy(new Error('no answer in time')))
    asking.once('error', (error) => {
      deps.complain(`not alive: ${error.message}\n`)
      resolve(EXIT_FAILURE)
    })
  })
}

/** An address that stands for all of this machine's is asked on the loopback. */
function localHost(host: string | undefined): string {
  return host === undefined || host === '0.0.0.0' || host === '::' ? '127.0.0.1' : host
}
