import { defineConfig } from 'vitest/config'

/** Every cell of the fault matrix; `npm test` runs a few of them. */
export default defineConfig({
  test: {
    include: ['test/faults/*.test.ts'],
    provide: { matrixForm: 'whole' },
    reporters: ['default', './test/faults/report.ts'],
    setupFiles: ['test/support/leak-check.ts'],
    testTimeout: 120_000,
    hookTimeout: 60_000,
    pool: 'forks',
    maxWorkers: 2,
  },
})
