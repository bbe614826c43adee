import { defineConfig } from 'vitest/config'

/** Real programs share the machine: one file after the other, and time enough for a slow disk. */
export default defineConfig({
  test: {
    include: ['test/e2e/**/*.test.ts'],
    globalSetup: ['test/e2e/support/preflight.ts'],
    setupFiles: ['test/support/leak-check.ts'],
    testTimeout: 180_000,
    hookTimeout: 120_000,
    pool: 'forks',
    maxWorkers: 1,
    fileParallelism: false,
  },
})
