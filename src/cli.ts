// The commands: what they are called, and what they take. What they do is in cli/. They answer with an exit code:
// 0 for done, 1 for a failure, 2 for a mistake in the call or the configuration, 3 for a purge that left something.

import { Command, CommanderError, Option } from 'commander'
import { checkConfiguration } from './cli/check-configuration.ts'
import { EXIT_CODES, EXIT_OK, EXIT_USAGE, type CliDeps } from './cli/deps.ts'
import { askHealth } from './cli/health.ts'
import { purge, type PurgeOptions } from './cli/purge.ts'
import { scrub } from './cli/scrub.ts'
import { serve } from './cli/serve.ts'
import type { ServerOptions } from './cli/server.ts'
import { showUsage, type UsageOptions } from './cli/usage.ts'

interface FileOptions {
  readonly config?: string
}

/** @param args what follows the program's name */
export async function runCli(args: readonly string[], deps: CliDeps): Promise<number> {
  let exitCode = EXIT_OK
  const program = new Command('layover')
    .description('A pull-through cache for container images')
    .version(deps.version)
    .exitOverride()
    .configureOutput({ writeOut: deps.print, writeErr: deps.complain })
    .addHelpText('after', `\n${EXIT_CODES}`)
  const onFile = (
    name: string,
    run: (file: string | undefined, deps: CliDeps) => Promise<number>,
  ): Command =>
    program
      // Without a command it serves.
      .command(name, { isDefault: name === 'serve' })
      .argument('[file]', 'configuration: a config.yml of registry:2 or registry:3, or a proxy.yml')
      .option('--config <file>', 'the same as the argument')
      .action(async (file: string | undefined, options: FileOptions) => {
        exitCode = await run(options.config ?? file, deps)
      })
  const onServer = (name: string): Command =>
    program
      .command(name)
      .option('--config <file>', 'the configuration that the server runs with')
      .option('--root <directory>', 'or the root directory that it serves from')
      .addHelpText('after', `\n${EXIT_CODES}`)
  onFile('serve', serve).description('serve the cache')
  onFile('check-config', checkConfiguration).description(
    'print the effective configuration, or every mistake in it',
  )
  onFile('health', askHealth).description(
    'ask the server that runs with this configuration whether it is alive',
  )
  onServer('du')
    .description('show what takes the space, by upstream, repository and last use')
    .addOption(
      new Option('--by <table>', 'this table only, whole').choices([
        'upstream',
        'repository',
        'age',
      ]),
    )
    .option('--json', 'all of it as one JSON document, sizes in bytes')
    .action(async (options: UsageOptions) => {
      exitCode = await showUsage(options, deps)
    })
  onServer('purge')
    .description('remove images from the cache that runs; what is in use stays')
    .argument(
      '[image]',
      'repository, repository:tag, repository@digest; * and ** stand for anything',
    )
    .option('--upstream <host>', 'what comes from this registry')
    .option('--unused-for <duration>', 'what nobody has asked for in this time: 7d, 12h')
    .option('--dry-run', 'only list what would go, and how much that is')
    .option('--force', 'what storage.retention pins too; without a pattern an image goes anyway')
    .option('--json', 'a line of JSON for each thing, and one with the sums')
    .action(async (image: string | undefined, options: PurgeOptions) => {
      exitCode = await purge(image, options, deps)
    })
  onServer('scrub')
    .description('read all stored blobs again now, and set aside what is damaged')
    .action(async (options: ServerOptions) => {
      exitCode = await scrub(options, deps)
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
