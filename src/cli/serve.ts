// `layover serve`: from the configuration to a server that runs until it is told to stop.

import type { Configuration } from '../config/schema.ts'
import { startService } from '../service.ts'
import { createLogger } from '../telemetry/logger.ts'
import { load } from './configuration.ts'
import { EXIT_FAILURE, EXIT_OK, EXIT_USAGE, type CliDeps } from './deps.ts'

export async function serve(file: string | undefined, deps: CliDeps): Promise<number> {
  const loaded = await load(file, deps)
  if (!loaded) return EXIT_USAGE
  const { configuration, warnings } = loaded
  const { accessDestination, clock, logDestination } = deps
  const logger = createLogger({ clock, destination: logDestination }, configuration.log)
  deps.onBug((err) => logger.error({ err, isBug: true }, 'an error that nobody caught'))
  accessDestination.onDrop(() => {
    logger.warn('lines of the access log are dropped: nobody reads stdout as fast as they come')
  })
  for (const warning of warnings) logger.warn(warning)
  try {
    const { environment, storageWorkerUrl, version } = deps
    const userAgent = `layover/${version}`
    const service = await startService(configuration, {
      clock,
      logger,
      accessDestination,
      environment,
      storageWorkerUrl,
      userAgent,
    })
    logger.info(startLine(configuration, service.url))
    for (const { upstream, url } of service.boundUrls) logger.info(`${upstream} alone on ${url}`)
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
  const names = proxy.others.map(({ name }) => name)
  const registries = [proxy.main.remoteUrls.join(' and '), ...names].join(', ')
  const whatAndWhere = (url: string): string =>
    `Registry configured as a proxy cache to ${registries}: ` +
    `serving on ${url}, keeping data in ${storage.rootDirectory}`
  // No client can be pointed at a socket, only at what stands in front of it.
  if (http.host === undefined && 'path' in http.listen) {
    return whatAndWhere(`unix:${http.listen.path}`)
  }
  const url = http.host === undefined ? listenUrl : `${http.host.replace(/\/$/, '')}${http.prefix}`
  const hint = `Point a client at it: {"registry-mirrors": ["${url}"]} in Docker's daemon.json`
  return `${whatAndWhere(url)}. ${hint}`
}
