import { defineConfig } from 'vitest/config'

export default defineConfig({
  test: {
    include: ['test/**/*.test.ts'],
    exclude: ['test/e2e/**', 'node_modules/**'],
    provide: { matrixForm: 'short' },
    testTimeout: 30_000,
    hookTimeout: 30_000,
    setupFiles: ['test/support/leak-check.ts', 'test/support/fixed-seed.ts'],
    pool: 'forks',
    maxWorkers: 2,
  },
})
