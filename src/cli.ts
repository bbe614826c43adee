// The commands. What they need of the process is handed in, and they answer with an exit code: 0 for done, 1
// for a failure, 2 for a mistake in the call or the configuration.

import { readFile } from 'node:fs/promises'
import { get } from 'node:http'
import { Command, CommanderError } from 'commander'
import type { Clock } from './clock.ts'
import { formatConfiguration } from './config/format.ts'
import { ConfigurationError, loadConfiguration, type LoadedConfiguration } from './config/load.ts'
import type { Configuration } from './config/schema.ts'
import { startService } from './service.ts'
import { createLogger, type Destination } from './telemetry/logger.ts'

export interface CliDeps {
  readonly clock: Clock
  readonly environment: Readonly<Record<string, string | undefined>>
  readonly version: string
  readonly storageWorkerUrl: URL
  /** Used when neither the call nor the environment names a file. */
  readonly defaultConfigurationPath: string
  /** For what the user asked to see. */
  readonly print: (text: string) => void
  /** For messages about the call. */
  readonly complain: (text: string) => void
  readonly logDestination: Destination
  readonly accessDestination: Destination
  /** Resolves when the process is asked to stop. */
  readonly stopRequested: Promise<string>
  /** Takes what is to be told of an error that nobody caught. */
  readonly onBug: (report: (error: unknown) => void) => void
}

export const EXIT_OK = 0
export const EXIT_FAILURE = 1
export const EXIT_USAGE = 2

/** Shorter than the 5 s that the Dockerfile gives the check. */
const HEALTH_TIMEOUT_MS = 4_000

/** @param args what follows the program's name */
export async function runCli(args: readonly string[], deps: CliDeps): Promise<number> {
  let exitCode = EXIT_OK
  const program = new Command('layover')
    .description('A pull-through cache for container images')
    .version(deps.version)
    .exitOverride()
    .configureOutput({ writeOut: deps.print, writeErr: deps.complain })
  program
    .command('serve', { isDefault: true })
    .description('serve the cache')
    .argument('[file]', 'configuration: a config.yml of registry:2 or registry:3, or a proxy.yml')
    .option('--config <file>', 'the same as the argument')
    .action(async (file: string | undefined, options: { config?: string }) => {
      exitCode = await serve(options.config ?? file, deps)
    })
  program
    .command('check-config')
    .description('print the effective configuration, or every mistake in it')
    .argument('[file]', 'configuration')
    .option('--config <file>', 'the same as the argument')
    .action(async (file: string | undefined, options: { config?: string }) => {
      exitCode = await checkConfiguration(options.config ?? file, deps)
    })
  program
    .command('health')
    .description('ask the server that runs with this configuration whether it is alive')
    .argument('[file]', 'configuration')
    .option('--config <file>', 'the same as the argument')
    .action(async (file: string | undefined, options: { config?: string }) => {
      exitCode = await askHealth(options.config ?? file, deps)
    })
  program
    .command('version')
    .description('print the version')
    .action(() => deps.print(`layover ${deps.version}\n`))
  try {
    await program.parseAsync([...args], { from: 'user' })
  } catch (error) {
    if (!(error instanceof CommanderError)) throw error
    // Asking for help or the version ends the parsing, but is no mistake.
    return error.exitCode === 0 ? EXIT_OK : EXIT_USAGE
  }
  return exitCode
}

async function checkConfiguration(file: string | undefined, deps: CliDeps): Promise<number> {
  const loaded = await load(file, deps)
  if (!loaded) return EXIT_USAGE
  for (const warning of loaded.warnings) deps.complain(`warning: ${warning}\n`)
  deps.print(formatConfiguration(loaded.configuration))
  return EXIT_OK
}

/** For a container's HEALTHCHECK: the image has no curl. */
async function askHealth(file: string | undefined, deps: CliDeps): Promise<number> {
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

async function serve(file: string | undefined, deps: CliDeps): Promise<number> {
  const loaded = await load(file, deps)
  if (!loaded) return EXIT_USAGE
  const { configuration, warnings } = loaded
  const { clock, logDestination } = deps
  const logger = createLogger({ clock, destination: logDestination }, configuration.log)
  deps.onBug((err) => logger.error({ err, isBug: true }, 'an error that nobody caught'))
  for (const warning of warnings) logger.warn(warning)
  try {
    const { accessDestination, storageWorkerUrl, version } = deps
    const userAgent = `layover/${version}`
    const service = await startService(configuration, {
      clock,
      logger,
      accessDestination,
      storageWorkerUrl,
      userAgent,
    })
    logger.info(startLine(configuration, service.url))
    if (service.debugUrl) logger.info(`health and metrics on ${service.debugUrl}`)
    const signal = await deps.stopRequested
    logger.info(`${signal}: finishing what is under way; send it again to stop at once`)
    await service.stop()
    logger.info('stopped')
    return EXIT_OK
  } catch (error) {
    logger.error({ err: error }, 'cannot serve')
    return EXIT_FAILURE
  }
}

/** What, where, and how to use it, in one line. */
function startLine({ http, proxy, storage }: Configuration, listenUrl: string): string {
  const url = http.host === undefined ? listenUrl : `${http.host.replace(/\/$/, '')}${http.prefix}`
  return (
    `Registry configured as a proxy cache to ${proxy.remoteUrl}: ` +
    `serving on ${url}, keeping data in ${storage.rootDirectory}. ` +
    `Point a client at it: {"registry-mirrors": ["${url}"]} in Docker's daemon.json`
  )
}

/** @returns undefined after having said what is wrong */
async function load(
  file: string | undefined,
  deps: CliDeps,
): Promise<LoadedConfiguration | undefined> {
  const { complain, environment } = deps
  const path = file ?? environment['REGISTRY_CONFIGURATION_PATH'] ?? deps.defaultConfigurationPath
  let text: string
  try {
    text = await readFile(path, 'utf8')
  } catch (error) {
    const reason = error instanceof Error ? error.message : String(error)
    complain(`cannot read the configuration ${path}: ${reason}\n`)
    return undefined
  }
  try {
    return loadConfiguration({ text, path }, environment)
  } catch (error) {
    if (!(error instanceof ConfigurationError)) throw error
    complain(`${error.message}\n`)
    // A misspelt key may be the reason.
    for (const warning of error.warnings) complain(`warning: ${warning}\n`)
    return undefined
  }
}
