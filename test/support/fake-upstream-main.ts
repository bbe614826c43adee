// The process around fake-upstream-cli.ts.

import { program } from './fake-upstream-cli.ts'

await program.parseAsync()
